"""Losses: pure functions of embeddings that give one value per example, in f32.

None of them knows a model. The mean over the batch is what the field reports and what the train step minimises.
Written for the global batch: under `jax.jit` with sharded embeddings every device count gives the same numbers.
"""

from jaxemb.losses.cosent import cosent, pair_ranking
from jaxemb.losses.info_nce import info_nce, symmetric_info_nce
from jaxemb.losses.masks import duplicates
from jaxemb.losses.similarity import SIMILARITIES, Similarity, cosine, dot, euclidean

__all__ = [
    "SIMILARITIES",
    "Similarity",
    "cosent",
    "cosine",
    "dot",
    "duplicates",
    "euclidean",
    "info_nce",
    "pair_ranking",
    "symmetric_info_nce",
]
