"""What stands between a batch and a loss: `(model, batch, key) -> (losses [N], outputs)`."""

from jaxemb.objectives.chunks import in_chunks
from jaxemb.objectives.classification import classification, competing
from jaxemb.objectives.columns import ColumnsObjective, Objective, on_columns
from jaxemb.objectives.definitions import (
    EntryPredictor,
    definition_to_entry,
    definition_to_word,
    entry_cross_entropy,
    entry_embeddings,
    isotropic_entries,
    mask_pooling,
    prompted,
)
from jaxemb.objectives.denoising import DenoisingAutoEncoder, delete_words, denoising, word_pieces
from jaxemb.objectives.masked_autoencoder import MaskedAutoEncoder, hide_words, masked_autoencoding
from jaxemb.objectives.masked_language_model import (
    MaskedLanguageHead,
    MaskedLanguageModel,
    hide_tokens,
    masked_language_modelling,
)
from jaxemb.objectives.matryoshka import (
    adaptive_layers,
    alignment_kl,
    compressed,
    espresso,
    matryoshka,
    matryoshka_2d,
    starbucks,
)
from jaxemb.objectives.views import supervised_contrastive

__all__ = [
    "ColumnsObjective",
    "DenoisingAutoEncoder",
    "EntryPredictor",
    "MaskedAutoEncoder",
    "MaskedLanguageHead",
    "MaskedLanguageModel",
    "Objective",
    "adaptive_layers",
    "alignment_kl",
    "classification",
    "competing",
    "compressed",
    "definition_to_entry",
    "definition_to_word",
    "delete_words",
    "denoising",
    "entry_cross_entropy",
    "entry_embeddings",
    "espresso",
    "hide_tokens",
    "hide_words",
    "in_chunks",
    "isotropic_entries",
    "mask_pooling",
    "masked_autoencoding",
    "masked_language_modelling",
    "matryoshka",
    "matryoshka_2d",
    "on_columns",
    "prompted",
    "starbucks",
    "supervised_contrastive",
    "word_pieces",
]
