"""Layers and functions that models and losses are made of."""

from jaxemb.nn import rope_scaling
from jaxemb.nn.activations import ACTIVATIONS
from jaxemb.nn.attention import Windows, attention
from jaxemb.nn.cross_attention import CrossAttention
from jaxemb.nn.dropout import dropout
from jaxemb.nn.kernels import Kernel, dense_kernels
from jaxemb.nn.linear import Linear, linear_kernels, uniform_linear
from jaxemb.nn.low_rank import Adapter, LowRank, merge_lora
from jaxemb.nn.module import Module
from jaxemb.nn.norm import Norm
from jaxemb.nn.quantized import Quantized, QuantizedScales, quantize, quantize_base
from jaxemb.nn.rope import RopeConfig, rotate
from jaxemb.nn.similarity import SIMILARITIES, Similarity, cosine, dot, euclidean, paired, unit
from jaxemb.nn.stack import Layer, Layout, Stack
from jaxemb.nn.stack_config import StackConfig, make_norm

__all__ = [
    "ACTIVATIONS",
    "SIMILARITIES",
    "Adapter",
    "CrossAttention",
    "Kernel",
    "Layer",
    "Layout",
    "Linear",
    "LowRank",
    "Module",
    "Norm",
    "Quantized",
    "QuantizedScales",
    "RopeConfig",
    "Similarity",
    "Stack",
    "StackConfig",
    "Windows",
    "attention",
    "cosine",
    "dense_kernels",
    "dot",
    "dropout",
    "euclidean",
    "linear_kernels",
    "make_norm",
    "merge_lora",
    "paired",
    "quantize",
    "quantize_base",
    "rope_scaling",
    "rotate",
    "uniform_linear",
    "unit",
]
