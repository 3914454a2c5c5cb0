"""Layers and functions that models and losses are made of."""

from jaxemb.nn.activations import ACTIVATIONS
from jaxemb.nn.linear import Linear, uniform_linear
from jaxemb.nn.module import Module
from jaxemb.nn.norm import Norm
from jaxemb.nn.similarity import SIMILARITIES, Similarity, cosine, dot, euclidean, paired, unit

__all__ = [
    "ACTIVATIONS",
    "SIMILARITIES",
    "Linear",
    "Module",
    "Norm",
    "Similarity",
    "cosine",
    "dot",
    "euclidean",
    "paired",
    "uniform_linear",
    "unit",
]
