"""Encoders: token ids, pixels or sounds to hidden states."""

from jaxemb.encoders.hashed_bag import Bags, HashedBag, hashed_ngrams
from jaxemb.encoders.mlp import Mlp
from jaxemb.encoders.transformer import RopeConfig, Transformer, TransformerConfig

__all__ = ["Bags", "HashedBag", "Mlp", "RopeConfig", "Transformer", "TransformerConfig", "hashed_ngrams"]
