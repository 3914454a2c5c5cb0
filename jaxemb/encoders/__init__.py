"""Encoders: token ids, pixels or sounds to hidden states."""

from jaxemb.encoders.convolutional import AlexNet, LeNet, ResNet18, Statistics
from jaxemb.encoders.encoder import Encoder, LayeredEncoder
from jaxemb.encoders.hashed_bag import Bags, HashedBag, hashed_ngrams
from jaxemb.encoders.mlp import Mlp
from jaxemb.encoders.transformer import Transformer, TransformerConfig

__all__ = [
    "AlexNet",
    "Bags",
    "Encoder",
    "HashedBag",
    "LayeredEncoder",
    "LeNet",
    "Mlp",
    "ResNet18",
    "Statistics",
    "Transformer",
    "TransformerConfig",
    "hashed_ngrams",
]
