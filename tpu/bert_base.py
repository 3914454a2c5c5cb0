"""InfoNCE on pairs with a BERT-base, any batch size.

    jaxemb compile tpu/bert_base.py --topology v5e:8x8
    jaxemb train tpu/bert_base.py --out /mnt/run --distributed --set data=/mnt/pairs.parquet

Without `data` the weights are random and the texts made up: enough to compile a run, and to time it on a slice.
"""

import functools

from jaxemb.losses import info_nce
from jaxemb.objectives import on_columns
from jaxemb.parallel import ENCODER_RULES, make_mesh
from jaxemb.train import Run, adamw
from tpu.shapes import bert, pretrained, records, tokenized


def run(
    data=None,  # file of records with the columns query and document
    model="google-bert/bert-base-uncased",  # directory or hub id
    batch_size=65_536,
    length=128,
    chunk=8192,
    tile=512,
    dropout=0.0,
    fsdp=1,
    tensor=1,
    steps=1000,
    learning_rate=1e-4,
):
    mesh = make_mesh(fsdp=fsdp, tensor=tensor)
    if data:
        embedder, batches = pretrained(model, dropout, mesh), tokenized(data, ["query", "document"], batch_size, length)
    else:
        embedder = lambda: bert(768, 12, vocab_size=30_522, dropout=dropout)
        batches = lambda embedder: records({"query": 1, "document": 1}, batch_size, length)
    return Run(
        embedder=embedder,
        data=batches,
        objective=on_columns(functools.partial(info_nce, tile=tile), "query", "document", chunk=chunk),
        optimizer=adamw(learning_rate, steps),
        steps=steps,
        mesh=mesh,
        rules=ENCODER_RULES,
    )
