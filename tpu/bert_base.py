"""InfoNCE on pairs with a BERT-base, plain data parallelism, any batch size.

jaxemb rehearse tpu/bert_base.py --topology v5e:8x8
"""

import functools

from jaxemb.losses import info_nce
from jaxemb.objectives import on_columns
from jaxemb.train import Run, adamw
from tpu.shapes import bert, records


def run(batch_size=65_536, length=128, chunk=8192, tile=512, dropout=0.0, steps=1000, learning_rate=1e-4):
    return Run(
        embedder=lambda: bert(768, 12, vocab_size=30_522, dropout=dropout),
        data=lambda embedder: records({"query": 1, "document": 1}, batch_size, length),
        objective=on_columns(functools.partial(info_nce, tile=tile), "query", "document", chunk=chunk),
        optimizer=adamw(learning_rate, steps),
        steps=steps,
    )
