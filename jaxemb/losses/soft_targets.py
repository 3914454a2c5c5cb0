"""Cross-entropy against soft targets: documents are right to a degree (CWCL, label smoothing, distillation)."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxemb.checks import checked, in_32_bits, non_negative, positive, shapes
from jaxemb.losses.info_nce import info_nce
from jaxemb.losses.program import one_program
from jaxemb.losses.records import Tile, make_records
from jaxemb.losses.reductions import LOG_SUM_EXP, SUM, TILE, at, constant
from jaxemb.nn.similarity import Similarity, dot, unit


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Targets:
    """How right each document is for each query: weights `[N, N]`, computed some rows at a time, without gradient.

    Attributes:
      weight: `(row facts, column facts) -> f32 [r, c]`, >= 0; a hashable function.
      rows, columns: the facts, arrays `[N, ...]`.
    """

    weight: Callable[[Any, Any], jax.Array] = dataclasses.field(metadata={"static": True})
    rows: Any
    columns: Any


def _check_weights(name: str, weights) -> None:
    if isinstance(weights, Targets):
        return
    values = np.asarray(weights)
    if values.ndim != 2 or values.shape[0] != values.shape[1]:
        raise ValueError(f"{name} must be [N, N]; got {values.shape}")
    if not (values >= 0).all() or not (values.sum(axis=1) > 0).all():
        raise ValueError(f"{name} must be >= 0 with a positive sum in every row")


@one_program()
def affine(features: jax.Array) -> Targets:
    """`(1 + cos(f_i, f_j)) / 2` of features `[N, D]`: CWCL's weights."""
    return _of_features(_affine, features)


@checked(shapes(features="N D"), temperature=positive)
def exponential(features: jax.Array, temperature: float = 0.1) -> Targets:
    """`exp((cos(f_i, f_j) - 1) / temperature)` of features `[N, D]`; normalised, a softmax of the cosines."""
    return _of_features(_Exponential(temperature), features)


@checked(shapes(labels="N"), labels=in_32_bits)
def equal(labels: jax.Array | Sequence[int]) -> Targets:
    """1 where labels `[N]` are equal, else 0."""
    labels = jnp.asarray(labels)
    return Targets(_equal, labels, labels)


@checked(shapes(weights="N N"), weights=_check_weights)
def given(weights: jax.Array) -> Targets:
    """The weights `[N, N]` themselves, for small batches.

    Raises:
      ValueError: for a shape that is not square, negative weights, or a row that sums to 0.
    """
    return Targets(_given, jnp.asarray(weights), jnp.arange(len(weights)))


@one_program(targets=_check_weights, temperature=positive)
def soft_target_contrastive(
    queries: jax.Array,
    documents: jax.Array,
    targets: Targets | jax.Array,
    *,
    temperature: float | jax.Array = 0.05,
    similarity: str | Similarity = "cosine",
    tile: int = TILE,
) -> jax.Array:
    """Cross-entropy of the softmax over documents against row-normalised weights w. With `z_ij = s_ij / temperature`:

        loss_i = log sum_j exp(z_ij) - sum_j w_ij z_ij / sum_j w_ij

    Args:
      queries, documents: `[N, D]`.
      targets: `Targets`, or the weights `[N, N]`.
      temperature: > 0.
      similarity, tile: as in `info_nce`.

    Returns:
      f32 `[N]`, at least the entropy of the normalised weights.

    Raises:
      ValueError: for shapes that do not fit or a temperature <= 0.
    """
    records = make_records(queries, documents, similarity=similarity)
    targets = targets if isinstance(targets, Targets) else given(targets)
    for name, facts in (("rows", targets.rows), ("columns", targets.columns)):
        for leaf in jax.tree.leaves(facts):
            if leaf.shape[0] != len(queries):
                raise ValueError(f"targets: {name} must be facts of {len(queries)} records; got shape {leaf.shape}")
    entries = Partial(_weighted, 1 / jnp.float32(temperature), jax.lax.stop_gradient(targets))
    total, aligned, weight = records.reduce(entries, (LOG_SUM_EXP, SUM, constant(SUM)), tile=tile)
    return total - aligned / weight


@one_program(shapes(locked="N D", learned="N D", features="N F"), temperature=positive, reverse_weight=non_negative)
def cwcl(
    locked: jax.Array,
    learned: jax.Array,
    features: jax.Array | None = None,
    *,
    temperature: float | jax.Array = 0.07,
    targets: Targets | None = None,
    reverse_weight: float = 1.0,
    tile: int = TILE,
) -> jax.Array:
    """Continuously weighted contrastive loss: a tower learns the geometry of a locked tower of another modality.

    `soft_target_contrastive` from the locked to the learned side, with weights `(1 + cos(f_i, f_j)) / 2` of the locked
    tower's features, plus `reverse_weight` times `info_nce` from the learned to the locked side.

    Args:
      locked: embeddings of the locked tower, `[N, D]`; with a trained head, after it.
      learned: embeddings of the tower that learns, `[N, D]`.
      features: of the locked tower before any trained head, `[N, F]`; None for `locked` itself. Without gradient.
      temperature: > 0, usually trained, and shared by both directions.
      targets: other weights than those of `features`.
      reverse_weight: of the second term, >= 0.
      tile: as in `info_nce`.

    Returns:
      f32 `[N]`; the mean is the paper's loss, a sum of both directions.

    Raises:
      ValueError: for shapes that do not fit, both features and targets, a temperature <= 0 or reverse_weight < 0.

    References:
      Srinivasa et al. 2023, arXiv 2309.14580, equations 3 to 5.
    """
    if features is not None and targets is not None:
        raise ValueError("give features or targets, not both")
    targets = affine(locked if features is None else features) if targets is None else targets
    loss = soft_target_contrastive(locked, learned, targets, temperature=temperature, tile=tile)
    return loss + reverse_weight * info_nce(learned, locked, temperature=temperature, tile=tile)


def _weighted(inverse_temperature, targets: Targets, tile: Tile):
    """The logits, their weighted form, and the weights."""
    logits = (tile.similarity - tile.positive[:, None]) * inverse_temperature
    weights = targets.weight(at(targets.rows, tile.i), at(targets.columns, tile.j))
    return logits, weights * logits, weights


def _of_features(weight, features: jax.Array) -> Targets:
    if features.ndim != 2:
        raise ValueError(f"features must be [N, D]; got {features.shape}")
    features = unit(jax.lax.stop_gradient(features))
    return Targets(weight, features, features)


def _affine(rows, columns):
    return (1 + dot(rows, columns)) / 2


def _equal(rows, columns):
    return (rows[:, None] == columns[None, :]).astype(jnp.float32)


def _given(rows, columns):
    return jnp.take(rows, columns, axis=1).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class _Exponential:
    temperature: float

    def __call__(self, rows, columns):
        return jnp.exp((dot(rows, columns) - 1) / self.temperature)
