"""PEG's recipe: a BERT-large, 80,000 records a batch with 5 hard negatives each.

    jaxemb compile tpu/peg.py --topology v5e:16x16
    jaxemb train tpu/peg.py --out /mnt/run --distributed --set data=/mnt/mined.parquet

Every query is compared with all documents and all hard negatives of the batch: 6 x 80,128 candidates. The batch is the
next multiple of 256 chips. Records are weighted by their difficulty where `alpha` is not 0, below 0 for noisy pairs
(experiments/results/peg), or follows a schedule (`jaxemb.transforms.progressive_learning`); that costs a step nothing.
Without `data` the weights are random and the texts made up.
"""

from jaxemb.losses import progressive_info_nce
from jaxemb.objectives import on_columns
from jaxemb.parallel import ENCODER_RULES, make_mesh
from jaxemb.train import Run, adamw
from tpu.shapes import bert, pretrained, records, tokenized


def run(
    data=None,  # file of records with the columns query, document and negative, a list of `hard_negatives` texts
    model="hfl/chinese-roberta-wwm-ext-large",  # directory or hub id
    batch_size=80_128,
    hard_negatives=5,
    length=128,
    chunk=16_384,
    tile=512,
    alpha=0.0,
    dropout=0.0,
    fsdp=1,
    tensor=1,
    steps=1000,
    learning_rate=1e-5,
):
    def loss(queries, documents, negatives):
        return progressive_info_nce(queries, documents, negatives, alpha=alpha, tile=tile).losses

    texts = {"query": 1, "document": 1, "negative": hard_negatives}
    mesh = make_mesh(fsdp=fsdp, tensor=tensor)
    if data:
        embedder, batches = pretrained(model, dropout, mesh), tokenized(data, list(texts), batch_size, length)
    else:
        embedder = lambda: bert(1024, 24, vocab_size=21_128, dropout=dropout)
        batches = lambda embedder: records(texts, batch_size, length)
    return Run(
        embedder=embedder,
        data=batches,
        objective=on_columns(loss, "query", "document", negatives="negative", chunk=chunk),
        optimizer=adamw(learning_rate, steps),
        steps=steps,
        mesh=mesh,
        rules=ENCODER_RULES,
    )
