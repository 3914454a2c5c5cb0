"""Encoders: token ids, pixels or sounds to hidden states."""

from jaxemb.encoders.transformer import RopeConfig, Transformer, TransformerConfig

__all__ = ["RopeConfig", "Transformer", "TransformerConfig"]
