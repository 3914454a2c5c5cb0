"""What stands between a batch and a loss: `(model, batch, key) -> (losses [N], outputs)`."""

from jaxemb.objectives.chunks import in_chunks
from jaxemb.objectives.classification import classification, competing
from jaxemb.objectives.columns import Objective, on_columns
from jaxemb.objectives.denoising import DenoisingAutoEncoder, delete_words, denoising, word_pieces
from jaxemb.objectives.views import supervised_contrastive

__all__ = [
    "DenoisingAutoEncoder",
    "Objective",
    "classification",
    "competing",
    "delete_words",
    "denoising",
    "in_chunks",
    "on_columns",
    "supervised_contrastive",
    "word_pieces",
]
