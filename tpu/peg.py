"""PEG's recipe: a BERT-large, 80,000 records a batch with 5 hard negatives each, weighted by their difficulty.

    jaxemb rehearse tpu/peg.py --topology v5e:16x16

Every query is compared with all documents and all hard negatives of the batch: 6 x 80,128 candidates. The batch is the
next multiple of 256 chips. The weights' alpha would follow a schedule; its value does not change what a step costs.
"""

from jaxemb.losses import progressive_info_nce
from jaxemb.objectives import on_columns
from jaxemb.train import Run, adamw
from tpu.shapes import bert, records


def run(batch_size=80_128, hard_negatives=5, length=128, chunk=16_384, tile=512, alpha=-2.0, dropout=0.0, steps=1000):
    def loss(queries, documents, negatives):
        return progressive_info_nce(queries, documents, negatives, alpha=alpha, tile=tile).losses

    return Run(
        embedder=lambda: bert(1024, 24, vocab_size=21_128, dropout=dropout),
        data=lambda embedder: records({"query": 1, "document": 1, "negative": hard_negatives}, batch_size, length),
        objective=on_columns(loss, "query", "document", negatives="negative", chunk=chunk),
        optimizer=adamw(1e-5, steps),
        steps=steps,
    )
