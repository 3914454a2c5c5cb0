"""Poolings: from states of tokens to one vector per text. Small modules, some with weights, all aware of packed rows.

pooled = Mean()(states, tokens)  # [B, T, D] to [N, D]
"""

from jaxemb.pooling.attention import Attention
from jaxemb.pooling.base import Concatenation, Pooling, members, of_texts, to_slots, weighted_sum
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

__all__ = [
    "POOLINGS",
    "AtToken",
    "Attention",
    "Cls",
    "Concatenation",
    "LastToken",
    "Max",
    "Mean",
    "MeanSqrtLength",
    "Pooling",
    "WeightedMean",
    "members",
    "named",
    "names_of",
    "of_texts",
    "splade",
    "to_slots",
    "weighted_sum",
]
