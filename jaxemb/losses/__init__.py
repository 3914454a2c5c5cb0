"""Losses: pure functions of embeddings that give one value per example, in f32.

None of them knows a model. The mean over the batch is what the field reports and what the train step minimises.
Written for the global batch: under `jax.jit` with sharded embeddings every device count gives the same numbers.
"""

from jaxemb.losses import ranking
from jaxemb.losses.angle import angle, angle_similarity, angle_with_negatives
from jaxemb.losses.contrastive_tension import contrastive_tension, contrastive_tension_in_batch
from jaxemb.losses.cosent import cosent, pair_ranking
from jaxemb.losses.distillation import (
    clip_distill,
    distill_kl,
    distill_kl_scores,
    embed_distill,
    m3_kd,
    margin_mse,
    margin_mse_scores,
)
from jaxemb.losses.info_nce import info_nce, symmetric_info_nce
from jaxemb.losses.masks import duplicates
from jaxemb.losses.mega_batch_margin import mega_batch_margin
from jaxemb.losses.orthogonal import orthogonal_regularization
from jaxemb.losses.pairs import contrastive, cosine_similarity_mse, online_contrastive, softmax_nli
from jaxemb.losses.similarity import SIMILARITIES, Similarity, cosine, dot, euclidean
from jaxemb.losses.triplet import batch_all_triplet, batch_hard_triplet, batch_semi_hard_triplet, triplet

__all__ = [
    "SIMILARITIES",
    "Similarity",
    "angle",
    "angle_similarity",
    "angle_with_negatives",
    "batch_all_triplet",
    "batch_hard_triplet",
    "batch_semi_hard_triplet",
    "clip_distill",
    "contrastive",
    "contrastive_tension",
    "contrastive_tension_in_batch",
    "cosent",
    "cosine",
    "cosine_similarity_mse",
    "distill_kl",
    "distill_kl_scores",
    "dot",
    "duplicates",
    "embed_distill",
    "euclidean",
    "info_nce",
    "m3_kd",
    "margin_mse",
    "margin_mse_scores",
    "mega_batch_margin",
    "online_contrastive",
    "orthogonal_regularization",
    "pair_ranking",
    "ranking",
    "softmax_nli",
    "symmetric_info_nce",
    "triplet",
]
