"""Losses: pure functions of embeddings that give one value per example, in f32.

None of them knows a model. The mean over the batch is what the field reports and what the train step minimises.
Written for the global batch: under `jax.jit` with sharded embeddings every device count gives the same numbers.
"""

from jaxemb.losses import masks, ranking, soft_targets
from jaxemb.losses.angle import angle, angle_similarity, angle_with_negatives
from jaxemb.losses.contrastive_tension import contrastive_tension, contrastive_tension_in_batch
from jaxemb.losses.cosent import cosent, pair_ranking
from jaxemb.losses.decoupled import decoupled_contrastive, hard_negative_nce
from jaxemb.losses.distillation import (
    clip_distill,
    distill_kl,
    distill_kl_scores,
    embed_distill,
    m3_kd,
    margin_mse,
    margin_mse_scores,
)
from jaxemb.losses.gist import gist
from jaxemb.losses.info_nce import info_nce, symmetric_info_nce
from jaxemb.losses.late_interaction import m3_unified, maxsim, maxsim_candidates, maxsim_info_nce, xtr
from jaxemb.losses.masks import Mask, duplicates
from jaxemb.losses.mega_batch_margin import mega_batch_margin
from jaxemb.losses.memory_info_nce import memory_info_nce
from jaxemb.losses.orthogonal import orthogonal_regularization
from jaxemb.losses.pairs import contrastive, cosine_similarity_mse, online_contrastive, softmax_nli
from jaxemb.losses.progressive import progressive_info_nce, progressive_weights
from jaxemb.losses.prototypes import prototype_logits, prototype_pull, relation_distillation
from jaxemb.losses.siglip import siglip
from jaxemb.losses.soft_targets import cwcl, soft_target_contrastive
from jaxemb.losses.sparse import csr_reconstruction, flops, flops_ramp, k_sparse, normalized_mse
from jaxemb.losses.supcon import supcon
from jaxemb.losses.triplet import batch_all_triplet, batch_hard_triplet, batch_semi_hard_triplet, triplet
from jaxemb.nn.similarity import SIMILARITIES, Similarity, cosine, dot, euclidean

__all__ = [
    "SIMILARITIES",
    "Mask",
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
    "csr_reconstruction",
    "cwcl",
    "decoupled_contrastive",
    "distill_kl",
    "distill_kl_scores",
    "dot",
    "duplicates",
    "embed_distill",
    "euclidean",
    "flops",
    "flops_ramp",
    "gist",
    "hard_negative_nce",
    "info_nce",
    "k_sparse",
    "m3_kd",
    "m3_unified",
    "margin_mse",
    "margin_mse_scores",
    "masks",
    "maxsim",
    "maxsim_candidates",
    "maxsim_info_nce",
    "mega_batch_margin",
    "memory_info_nce",
    "normalized_mse",
    "online_contrastive",
    "orthogonal_regularization",
    "pair_ranking",
    "progressive_info_nce",
    "progressive_weights",
    "prototype_logits",
    "prototype_pull",
    "ranking",
    "relation_distillation",
    "siglip",
    "soft_target_contrastive",
    "soft_targets",
    "softmax_nli",
    "supcon",
    "symmetric_info_nce",
    "triplet",
    "xtr",
]
