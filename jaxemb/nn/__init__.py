"""Layers and functions that models and losses are made of."""

from jaxemb.nn import rope_scaling
from jaxemb.nn.activations import ACTIVATIONS
from jaxemb.nn.attention import Windows, attention
from jaxemb.nn.dropout import dropout
from jaxemb.nn.linear import Linear, uniform_linear
from jaxemb.nn.module import Module
from jaxemb.nn.norm import Norm
from jaxemb.nn.rope import RopeConfig, rotate
from jaxemb.nn.similarity import SIMILARITIES, Similarity, cosine, dot, euclidean, paired, unit
from jaxemb.nn.stack import Layer, Layout, Stack
from jaxemb.nn.stack_config import StackConfig, make_norm

__all__ = [
    "ACTIVATIONS",
    "SIMILARITIES",
    "Layer",
    "Layout",
    "Linear",
    "Module",
    "Norm",
    "RopeConfig",
    "Similarity",
    "Stack",
    "StackConfig",
    "Windows",
    "attention",
    "cosine",
    "dot",
    "dropout",
    "euclidean",
    "make_norm",
    "paired",
    "rope_scaling",
    "rotate",
    "uniform_linear",
    "unit",
]
