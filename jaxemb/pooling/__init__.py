"""Poolings: from states of tokens to one vector per text. Small modules, some with weights, all aware of packed rows.

pooled = Mean()(states, tokens)  # [B, T, D] to [N, D]
"""

from jaxemb.pooling.attention import Attention
from jaxemb.pooling.base import Concatenation, Pooling, members, of_texts, to_slots, weighted_sum
from jaxemb.pooling.latent_attention import LatentAttention, TokenAttention
from jaxemb.pooling.latent_queries import AllLayers, LatentQueries, pooling_design
from jaxemb.pooling.plain import (
    POOLINGS,
    AtToken,
    Cls,
    LastToken,
    Max,
    Mean,
    MeanSqrtLength,
    WeightedMean,
    named,
    names_of,
)
from jaxemb.pooling.sparse import splade
from jaxemb.pooling.without_prompt import WithoutPrompt

__all__ = [
    "POOLINGS",
    "AllLayers",
    "AtToken",
    "Attention",
    "Cls",
    "Concatenation",
    "LastToken",
    "LatentAttention",
    "LatentQueries",
    "Max",
    "Mean",
    "MeanSqrtLength",
    "Pooling",
    "TokenAttention",
    "WeightedMean",
    "WithoutPrompt",
    "members",
    "named",
    "names_of",
    "of_texts",
    "pooling_design",
    "splade",
    "to_slots",
    "weighted_sum",
]
