"""The models that several parts share, of random weights, for both libraries: BERT in three sizes."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import numpy as np

from benchmarks import harness
from jaxemb.embedder import Embedder, Normalize
from jaxemb.encoders.transformer import Transformer, TransformerConfig
from jaxemb.types import Tokens


class Shape(NamedTuple):
    """What decides a model's cost. MPNet's relative bias is left out, as the peer's BERT has none."""

    layers: int
    dim: int
    heads: int
    mlp_dim: int
    vocabulary: int = 30_522
    dropout: float = 0.1

    def flops(self, rows: int, length: int) -> float:
        """Of a forward pass."""
        return harness.encoder_flops([length] * rows, self.layers, self.dim, self.mlp_dim)

    def attention_flops(self, rows: int, length: int) -> float:
        """Of the attention's own two products, which no weight takes part in."""
        return 4.0 * self.layers * rows * length**2 * self.dim

    def weights(self) -> int:
        """Kernels of the layers; embeddings are looked up, not multiplied."""
        return self.layers * (4 * self.dim**2 + 2 * self.dim * self.mlp_dim)


SHAPES = {
    "MiniLM": Shape(6, 384, 12, 1536),
    "MPNet-base": Shape(12, 768, 12, 3072),
    "BERT-large": Shape(24, 1024, 16, 4096),
}
TINY = Shape(2, 32, 2, 64, vocabulary=100, dropout=0.0)  # most of the time to compile is dropout's


def embedder(shape: Shape, positions: int = 512, *, compute: str = "bfloat16", weights: str = "float32") -> Embedder:
    """A BERT with mean pooling and unit vectors; `compute` is the type inside of it, `weights` that of its arrays."""
    model = _made(shape, positions)
    config = dataclasses.replace(model.encoder.config, dtype=compute)
    model = dataclasses.replace(model, encoder=dataclasses.replace(model.encoder, config=config))
    return model if weights == "float32" else _cast(model, weights)


@functools.partial(jax.jit, static_argnames=("shape", "positions"))
def _made(shape: Shape, positions: int) -> Embedder:
    config = TransformerConfig(
        vocab_size=shape.vocabulary,
        dim=shape.dim,
        layers=shape.layers,
        heads=shape.heads,
        mlp_dim=shape.mlp_dim,
        max_positions=positions,
        position_table=positions,
        token_types=2,
        dropout=shape.dropout,
        attention_dropout=shape.dropout,
    )
    return Embedder(Transformer.init(jax.random.key(0), config), heads=(Normalize(),))


@functools.partial(jax.jit, static_argnames="dtype")
def _cast(model: Embedder, dtype: str) -> Embedder:
    return jax.tree.map(lambda leaf: leaf.astype(dtype), model)


def full_rows(shape: Shape, rows: int, length: int, seed: int = 0) -> Tokens:
    """Texts of exactly `length` tokens, one to a row: neither library has padding to skip."""
    ids = np.random.default_rng(seed).integers(0, shape.vocabulary, (rows, length), np.int32)
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), ids.shape)
    return jax.device_put(Tokens(ids, np.ones_like(ids), positions))


def torch_bert(shape: Shape, positions: int, device: str, dtype):
    """transformers' BertModel of the same shape, with PyTorch's `scaled_dot_product_attention`."""
    import torch
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.dim,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.mlp_dim,
        hidden_dropout_prob=shape.dropout,
        attention_probs_dropout_prob=shape.dropout,
        max_position_embeddings=positions,
        attn_implementation="sdpa",
    )
    with torch.device(device):
        return BertModel(config, add_pooling_layer=False).to(dtype)


def torch_rows(shape: Shape, rows: int, length: int, device: str, seed: int = 0):
    """Token ids of such texts. Without a mask, so that PyTorch may choose its flash kernel."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, shape.vocabulary, (rows, length), generator=generator).to(device)
