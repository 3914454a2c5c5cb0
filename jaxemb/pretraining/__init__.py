"""Models and objectives that make backbones: (masked) language modelling, TSDAE, SMAE, learning from definitions."""

from jaxemb.pretraining.definitions import (
    EntryPredictor,
    definition_to_entry,
    definition_to_word,
    entry_cross_entropy,
    entry_embeddings,
    isotropic_entries,
    prompted,
)
from jaxemb.pretraining.denoising import DenoisingAutoEncoder, delete_words, denoising, word_pieces
from jaxemb.pretraining.grit import embed_and_write, seeing_both_ways
from jaxemb.pretraining.language_model import LanguageHead, LanguageModel, language_modelling
from jaxemb.pretraining.masked_autoencoder import MaskedAutoEncoder, mask_words, masked_autoencoding
from jaxemb.pretraining.masked_language_model import (
    MaskedLanguageHead,
    MaskedLanguageModel,
    mask_tokens,
    masked_language_modelling,
)
from jaxemb.pretraining.masked_next_token import masked_next_tokens

__all__ = [
    "DenoisingAutoEncoder",
    "EntryPredictor",
    "LanguageHead",
    "LanguageModel",
    "MaskedAutoEncoder",
    "MaskedLanguageHead",
    "MaskedLanguageModel",
    "definition_to_entry",
    "definition_to_word",
    "delete_words",
    "denoising",
    "embed_and_write",
    "entry_cross_entropy",
    "entry_embeddings",
    "isotropic_entries",
    "language_modelling",
    "mask_tokens",
    "mask_words",
    "masked_autoencoding",
    "masked_language_modelling",
    "masked_next_tokens",
    "prompted",
    "seeing_both_ways",
    "word_pieces",
]
