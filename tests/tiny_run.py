"""A model, data and a run small enough to train in a second; shared by the tests of training."""

import dataclasses
import functools
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np

import jaxemb
from jaxemb.checkpoints import Parameters, read_tensors
from jaxemb.data import SPECIAL_TOKENS, Tokenizer
from jaxemb.embedder import Embedder
from jaxemb.encoders import Transformer, TransformerConfig
from jaxemb.nn import unit
from jaxemb.objectives import on_columns
from jaxemb.sentence_embedder import SentenceEmbedder
from jaxemb.train import Run, adamw
from jaxemb.types import Tokens

CONFIG = TransformerConfig(
    vocab_size=50, dim=16, layers=2, heads=2, mlp_dim=32, position_table=16, token_types=2, dropout=0.1
)


@functools.cache
def tiny_model(seed: int = 0, **changes) -> Embedder:
    config = dataclasses.replace(CONFIG, **changes)
    rng = np.random.default_rng(seed)

    def draw(path, like):  # as `Transformer.init` does, but there is nothing to compile
        if like.ndim - ("layers" in jax.tree_util.keystr(path)) > 1:
            return jnp.asarray((0.02 * np.clip(rng.normal(size=like.shape), -2, 2)).astype(like.dtype))
        return jnp.asarray(np.full(like.shape, jax.tree_util.keystr(path).endswith("norm.weight"), like.dtype))

    shapes = jax.eval_shape(lambda: Transformer.init(jax.random.key(0), config))
    return Embedder(encoder=jax.tree_util.tree_map_with_path(draw, shapes))


@functools.cache
def tiny_embedder() -> SentenceEmbedder:
    """A model of the same sizes that has a tokenizer and is saved as a directory."""
    config = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 16,
    }
    tokenizer = Tokenizer.word_piece([*SPECIAL_TOKENS, *map(str, range(45))])
    return jaxemb.new("bert", config, tokenizer, key=jax.random.key(0))


def read_model(path: Path) -> dict[str, np.ndarray]:
    return dict(read_tensors(path))


def text_batch(indices, texts_per_record: int = 1) -> Tokens:
    """Texts that depend on their record alone, 3 to 8 tokens long."""
    ids, mask = np.zeros((len(indices) * texts_per_record, 8), np.int32), np.zeros((len(indices) * texts_per_record, 8))
    for row in range(len(ids)):
        rng = np.random.default_rng([int(indices[row // texts_per_record]), row % texts_per_record])
        length = rng.integers(3, 9)
        ids[row, :length], mask[row, :length] = rng.integers(1, 50, length), 1
    return jax.tree.map(np.asarray, Tokens.from_mask(ids, mask))


def pair_batch(indices) -> dict:
    indices = np.asarray(indices, np.int32)
    shifted = indices + 1000
    return {
        "query": text_batch(indices),
        "document": text_batch(shifted),
        "score": (indices % 5 / 5).astype(np.float32),
        "id": indices,
    }


def pairs(embedder=None, *, records: int = 40, batch_size: int = 8, seed: int = 0):
    """Shuffled batches without end."""
    return (
        grain.MapDataset.range(records)
        .seed(seed)
        .shuffle()
        .repeat()
        .batch(batch_size, batch_fn=pair_batch)
        .to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
    )


def in_batch_softmax(queries, documents):
    """`-log softmax(10 cos(q, d))` at the own document, `[N]`."""
    scores = 10 * unit(queries) @ unit(documents).T
    return -jnp.diagonal(jax.nn.log_softmax(scores, axis=-1))


def distance(queries, documents):
    """`1 - cos(q, d)`, `[N]`: every record on its own."""
    return 1 - jnp.sum(unit(queries) * unit(documents), axis=-1)


CONTRASTIVE = on_columns(in_batch_softmax, "query", "document")
PAIRWISE = on_columns(distance, "query", "document")


def mean_similarity(embedder: SentenceEmbedder) -> dict[str, float]:
    losses, _ = jax.jit(PAIRWISE)(embedder.model, pair_batch(range(8)), None)
    return {"similarity": float(jnp.mean(1 - losses))}


def tiny_run(**changes) -> Run:
    settings = {
        "embedder": tiny_embedder,
        "data": pairs,
        "objective": CONTRASTIVE,
        "optimizer": adamw(1e-2, 12),
        "steps": 12,
        "evaluators": {"tiny": mean_similarity},
        "evaluate_every": 4,
        "checkpoint_every": 3,
        "log_every": 2,
    }
    return Run(**settings | changes)


def assert_bitwise_equal(a, b) -> None:
    """Same structure and the same bits; for trees of arrays and keys."""
    data = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    jax.tree_util.tree_map_with_path(
        lambda path, x, y: np.testing.assert_array_equal(data(x), data(y), err_msg=jax.tree_util.keystr(path)), a, b
    )


def toy_objective(model, batch, key):
    """`(score - w[id mod 5] + noise)^2`, `[N]`: learns the five scores; compiles in no time."""
    noise = 0.01 * jax.random.normal(key, batch["score"].shape)
    return jnp.square(batch["score"] - model["w"][batch["id"] % 5] + noise), {}


def toy_run(**changes) -> Run:
    """A `tiny_run` without a transformer, for tests of the loop itself."""
    settings = {
        "embedder": lambda: Parameters({"w": jnp.asarray(np.full(5, 0.5, np.float32))}),
        "objective": toy_objective,
        "evaluators": {"toy": lambda embedder: {"error": float(np.sum(np.abs(embedder.model["w"] - SCORES)))}},
    }
    return tiny_run(**settings | changes)


SCORES = np.arange(5, dtype=np.float32) / 5
