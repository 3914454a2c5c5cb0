"""What stands between a batch and a loss: `(model, batch, key) -> (losses [N], outputs)`."""

from jaxemb.objectives.chunks import in_chunks
from jaxemb.objectives.classification import classification, competing
from jaxemb.objectives.columns import ColumnsObjective, Objective, on_columns
from jaxemb.objectives.matryoshka import (
    adaptive_layers,
    alignment_kl,
    compressed,
    espresso,
    matryoshka,
    matryoshka_2d,
    starbucks,
)
from jaxemb.objectives.sources import by_source
from jaxemb.objectives.views import supervised_contrastive

__all__ = [
    "ColumnsObjective",
    "Objective",
    "adaptive_layers",
    "alignment_kl",
    "by_source",
    "classification",
    "competing",
    "compressed",
    "espresso",
    "in_chunks",
    "matryoshka",
    "matryoshka_2d",
    "on_columns",
    "starbucks",
    "supervised_contrastive",
]
