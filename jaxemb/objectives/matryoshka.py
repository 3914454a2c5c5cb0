"""Objectives that train many sizes of a model at once: fewer dimensions, fewer layers, both.

    objective = on_columns(info_nce, "query", "document")
    matryoshka(objective, dims=(384, 128, 32))                      # dimensions
    adaptive_layers(objective, layers_per_step=1)                   # layers
    matryoshka_2d(objective, dims=(256, 128, 64, 32))               # both, sampled
    espresso(objective, dim=128)                                    # both, every layer and one length
    starbucks(objective, sizes=((2, 32), (4, 128), (6, 384)))       # both, the sizes that will be used

Each takes an objective of `on_columns` and gives another, so that they compose, and one pass of the model serves all
sizes. What they train is cut afterwards by `SentenceEmbedder.truncate(layers=, dim=)`.

Notation: X_n is the embedding `[N, D]` that the first n of L layers give, after pooling and heads; X_n^d its first d
components; l the loss of the objective.
"""

import dataclasses
import functools
import itertools
import logging
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxemb.checks import checked, positive, shapes, size
from jaxemb.embedder import Embedder
from jaxemb.nn import Module
from jaxemb.nn import unit as _unit
from jaxemb.objectives.columns import Batch, ColumnsObjective, Embeddings, Objective
from jaxemb.types import Tokens

LayerWeighting = Literal["uniform", "log", "linear"] | Callable[[int], float]
Head = Callable[[jax.Array], jax.Array]

_LAYER_WEIGHTS: Mapping[str, Callable[[int], float]] = {
    "uniform": lambda n: 1.0,
    "log": lambda n: 1 / (1 + math.log(1 + n)),
    "linear": lambda n: 1 / (1 + n),
}
_DIMS, _LAYERS = 0x64696D73, 0x6C617972  # told apart from each other and from the keys of dropout

logger = logging.getLogger(__name__)


@checked()
def matryoshka(
    objective: Objective,
    dims: Sequence[int],
    weights: Sequence[float] | None = None,
    *,
    dims_per_step: int | None = None,
    always_full: bool = False,
    normalize: bool = True,
    targets: Sequence[str] = (),
) -> ColumnsObjective:
    """Matryoshka representation learning: the loss of several prefixes of the embeddings,

        sum_{d in dims} c_d l(X^d)

    Args:
      objective: of `on_columns`, or another that is made of one.
      dims: the lengths of the prefixes.
      weights: c, one per length; None for 1.
      dims_per_step: of `dims`, how many are drawn each step, all equally likely, the same for all columns. A sampled
        prefix is the embedding with the other components set to 0, so that one program serves all lengths: the same
        thing to losses of cosines, dot products and Euclidean distances. Without a key all of them count.
      always_full: adds l(X) with weight 1 at every step, drawn or not.
      normalize: give the prefixes unit length.
      targets: names of the batch's arrays `[..., D]`, such as a teacher's embeddings, that are cut in the same way (but
        keep their length).

    Returns:
      The objective; its outputs are the whole embeddings.

    Raises:
      ValueError: for no dims, a dim < 1, as many weights as dims not being given, dims_per_step out of range; when
        called, for a dim > D.

    sentence-transformers' MatryoshkaLoss, but that this samples the prefixes by a key, within the compiled step.

    References:
      Kusupati et al. 2022, https://arxiv.org/abs/2205.13147, eq. 1.
    """
    objective = _of_columns(objective, "matryoshka")
    dims = tuple(dims)
    weights = (1.0,) * len(dims) if weights is None else tuple(weights)
    if not dims or min(dims) < 1:
        raise ValueError(f"dims must be one or more numbers >= 1; got {dims}")
    if len(weights) != len(dims):
        raise ValueError(f"weights must have one entry per dim ({len(dims)}); got {len(weights)}")
    _check_per_step("dims_per_step", dims_per_step, len(dims))

    def losses(embeddings: Embeddings, batch: Batch, key: jax.Array | None) -> jax.Array:
        full = _width(embeddings)
        if max(dims) > full:
            raise ValueError(f"dims must be in 1..{full}, the dimension of the embeddings; got {dims}")
        if full not in dims and not always_full:
            logger.warning("the whole dimension %d is not among dims %s, and so is not trained", full, dims)
        unit = _unit if normalize else lambda x: x

        def loss_at(cut: Callable[[jax.Array], jax.Array]) -> jax.Array:
            kept = {name: unit(cut(e)) for name, e in embeddings.items()}
            return objective.losses(kept, batch | {name: cut(jnp.asarray(batch[name])) for name in targets}, key)

        chosen = _sample(key, _DIMS, len(dims), dims_per_step)
        drawn: list[tuple[Any, Callable]] = [(1.0, lambda x: x)] if always_full else []
        if chosen is None:
            drawn += [(c, functools.partial(_prefix, dim=d)) for d, c in zip(dims, weights, strict=True)]
        else:
            pick = lambda values, i: jnp.asarray(values)[i]
            drawn += [(pick(weights, i), functools.partial(_masked_prefix, dim=pick(dims, i))) for i in chosen]
        return functools.reduce(operator.add, [c * loss_at(cut) for c, cut in drawn])

    return dataclasses.replace(objective, losses=losses)


@checked()
def adaptive_layers(
    objective: Objective,
    layers: Sequence[int] | None = None,
    *,
    layers_per_step: int | None = None,
    last_weight: float = 1.0,
    prior_weight: float = 1.0,
    layer_weighting: LayerWeighting = "uniform",
    kl_weight: float = 1.0,
    kl_temperature: float = 1.0,
    detach_teacher: bool = True,
) -> ColumnsObjective:
    """The loss of the last layer and of earlier ones S, which also follow the last one:

        w_last l(X_L) + sum_{n in S} [ w_prior w(n) / |S| l(X_n) + w_KL T KL(softmax(X_L / T) || softmax(X_n / T)) ]

    The softmax is over the components of an embedding; KL is the mean over the texts of all columns. (Where embeddings
    have unit length, all softmaxes are nearly uniform and KL nearly 0.)

    Args:
      objective: of `on_columns`, or `matryoshka` of one (KL is then of the whole embeddings).
      layers: the numbers of layers n before the last; None for 1..L-1. 0 is the embedding layer.
      layers_per_step: of `layers`, how many are drawn each step, all equally likely, the same for all columns; None for
        all, as is done without a key.
      last_weight, prior_weight: w_last and w_prior.
      layer_weighting: w(n): "uniform" 1, "log" 1 / (1 + ln(1 + n)), "linear" 1 / (1 + n), or a function of n.
      kl_weight: w_KL >= 0; 0 leaves the term out.
      kl_temperature: T > 0.
      detach_teacher: no gradient of KL to the last layer.

    Returns:
      The objective, of models that are an `Embedder`; its outputs are the embeddings of the last layer.

    Raises:
      ValueError: for layers < 0, an unknown weighting, a negative weight, T <= 0, layers_per_step out of range; when
        called, for layers >= L.
      TypeError: when called with another kind of model.

    sentence-transformers' AdaptiveLayerLoss draws from the layers 0..L-1, `layers=range(L)` here, with T = 0.3. There,
    earlier layers of pre-norm encoders (ModernBERT) are taken without the final norm, which a model that is cut to them
    does have; here they are taken with it.

    References:
      Li et al. 2024, https://arxiv.org/abs/2402.14776.
    """
    objective = _of_columns(objective, "adaptive_layers")
    prior, weight_of = _check_layers(layers), _weight_of(layer_weighting)
    if min(last_weight, prior_weight, kl_weight) < 0 or not kl_temperature > 0:
        raise ValueError(
            "weights must be >= 0 and kl_temperature > 0; got "
            f"{last_weight=}, {prior_weight=}, {kl_weight=}, {kl_temperature=}"
        )
    _check_per_step("layers_per_step", layers_per_step, math.inf if prior is None else len(prior))

    def needed(model: Embedder) -> tuple[int, ...]:
        return (*_before_last(prior, model), model.depth)

    def losses(embeddings: Embeddings, head: Head, batch: Batch, key: jax.Array | None) -> jax.Array:
        count = next(iter(embeddings.values())).shape[-2] - 1
        loss_of = lambda x: objective.losses({name: head(e) for name, e in x.items()}, batch, key)
        weights = [weight_of(n) for n in (range(1, count + 1) if prior is None else prior)]
        at = lambda i: {name: jnp.take(e, i, axis=-2) for name, e in embeddings.items()}
        last = at(count)
        total = last_weight * loss_of(last)
        chosen = _sample(key, _LAYERS, count, layers_per_step)
        for i in range(count) if chosen is None else chosen:
            weight = prior_weight / (count if chosen is None else len(chosen)) * jnp.asarray(weights, jnp.float32)[i]
            total += weight * loss_of(at(i))
            if kl_weight:
                kl = _mean_over_texts(at(i), last, kl_temperature, detach_teacher)
                total += kl_weight * kl_temperature * kl
        return total

    return _of_layers(objective, needed, losses)


@checked()
def matryoshka_2d(
    objective: Objective,
    dims: Sequence[int],
    *,
    layers: Sequence[int] | None = None,
    layers_per_step: int | None = 1,
    dims_per_step: int | None = 1,
    normalize: bool = True,
    targets: Sequence[str] = (),
    **options: Any,
) -> ColumnsObjective:
    """2D Matryoshka sentence embeddings. With a layer n < L and a length d drawn each step, as published:

        l(X_L) + l(X_n) + KL(softmax(X_L) || softmax(X_n)) + l(X_L^d) + l(X_n^d)

    It is `adaptive_layers(matryoshka(objective, dims, always_full=True))`; d is the same for both layers. Published are
    the powers of two from 8 on below D as `dims`. There the gradient of KL reaches the last layer as well, which costs
    quality at full size; `detach_teacher=False` is that.

    sentence-transformers' Matryoshka2dLoss is `adaptive_layers(matryoshka(objective, dims, dims_per_step=1), range(L),
    layers_per_step=1, kl_temperature=0.3)` with D among the dims and another d for each layer.

    Args:
      objective: of `on_columns`.
      dims, dims_per_step, normalize, targets: as of `matryoshka`.
      layers, layers_per_step: as of `adaptive_layers`.
      **options: others of `adaptive_layers`.

    Raises:
      ValueError, TypeError: as these do.

    References:
      Li et al. 2024, https://arxiv.org/abs/2402.14776v1, eq. 1-6.
    """
    both = matryoshka(
        objective, dims, dims_per_step=dims_per_step, always_full=True, normalize=normalize, targets=targets
    )
    return adaptive_layers(both, layers, layers_per_step=layers_per_step, **options)


@checked()
def espresso(
    objective: Objective,
    dim: int,
    *,
    layers: Sequence[int] | None = None,
    layer_weighting: LayerWeighting = lambda n: 1 / (1 + math.log(n)),
    compress: bool = True,
    kl_temperature: float = 1.0,
    normalize: bool = True,
) -> ColumnsObjective:
    """Espresso sentence embeddings (ESE), the revision of 2D Matryoshka: every layer, and one length d, at every step.

        l(X_L) + l(X_L^d) + A(X_L) + 1/|S| sum_{n in S} w(n) [l(X_n^d) + A(X_n)]
        A(X) = mean((X^d - C)^2) + T KL(softmax(C / T) || softmax(X^d / T)),  C = sg(`compressed(X, d)`)

    A draws the first d components towards what a principal component analysis keeps of all D.

    Args:
      objective: of `on_columns`.
      dim: d.
      layers: S, the numbers of layers before the last; None for 1..L-1.
      layer_weighting: w(n): as of `adaptive_layers`; 1 / (1 + ln n).
      compress: whether A is there.
      kl_temperature: T > 0.
      normalize: give what the loss sees unit length.

    Returns:
      The objective, of models that are an `Embedder`; its outputs are the embeddings of full size.

    Raises:
      ValueError: for a dim < 1, layers < 0, an unknown weighting, T <= 0; when called, for layers >= L or a dim > D.
      TypeError: when called with another kind of model.

    The authors' code has `layers=range(L - 1)` with "log": from the embedding layer, and without the last but one.

    References:
      Li et al. 2024, https://arxiv.org/abs/2402.14776, its second version.
    """
    objective = _of_columns(objective, "espresso")
    prior, weight_of = _check_layers(layers), _weight_of(layer_weighting)
    if dim < 1 or not kl_temperature > 0:
        raise ValueError(f"dim must be >= 1 and kl_temperature > 0; got {dim=}, {kl_temperature=}")

    def needed(model: Embedder) -> tuple[int, ...]:
        return (*_before_last(prior, model), model.depth)

    def alignment(x: Embeddings) -> jax.Array:
        """A, of each record the mean over its texts, `[N]`."""
        texts = jnp.concatenate([e.reshape(-1, e.shape[-1]) for e in x.values()])
        target = jnp.split(compressed(texts, dim), np.cumsum([e.shape[0] * e.shape[1] for e in x.values()])[:-1])
        of_texts = []
        for e, c in zip(x.values(), target, strict=True):
            cut, c = e[..., :dim], c.reshape(*e.shape[:-1], dim)
            kl = alignment_kl(cut, c, temperature=kl_temperature)
            of_texts.append(jnp.mean(jnp.square(cut - c), axis=-1) + kl_temperature * kl)
        return jnp.concatenate(of_texts, axis=1).mean(axis=1)

    def losses(embeddings: Embeddings, head: Head, batch: Batch, key: jax.Array | None) -> jax.Array:
        if dim > (full := _width(embeddings)):
            raise ValueError(f"dim must be in 1..{full}, the dimension of the embeddings; got {dim}")
        unit = _unit if normalize else head
        count = next(iter(embeddings.values())).shape[-2] - 1
        at = lambda i: {name: e[..., i, :] for name, e in embeddings.items()}
        loss_of = lambda x: objective.losses({name: unit(e) for name, e in x.items()}, batch, key)

        def small(i: int) -> jax.Array:
            loss = loss_of({name: e[..., :dim] for name, e in at(i).items()})
            return loss + alignment(at(i)) if compress else loss

        total = loss_of(at(count)) + small(count)
        numbers = range(1, count + 1) if prior is None else prior
        return total + sum(weight_of(n) / count * small(i) for i, n in enumerate(numbers))

    return _of_layers(objective, needed, losses)


@checked(shapes(x="M D"), dim=size)
def compressed(x: jax.Array, dim: int) -> jax.Array:
    """`sg(X U_d diag(s_d))` with `softmax(X^T X / sqrt(D)) = U diag(s) V^T`, rows of the softmax summing to 1.

    Of embeddings of M texts, `[M, D]` to f32 `[M, dim]`: the directions in which components depend on one another most.
    Signs are such that the largest entry of each direction is positive (where the authors' code leaves them to chance).
    The decomposition takes O(D^3).
    """
    x = jax.lax.stop_gradient(x.astype(jnp.float32))
    dependencies = jax.nn.softmax(x.T @ x / math.sqrt(x.shape[-1]), axis=-1)
    u, s, _ = jnp.linalg.svd(dependencies, full_matrices=False)
    largest = jnp.take_along_axis(u, jnp.abs(u).argmax(axis=0, keepdims=True), axis=0)
    return x @ (u * jnp.sign(largest) * s)[:, :dim]


@checked()
def starbucks(
    objective: Objective,
    sizes: Sequence[tuple[int, int]],
    *,
    kl_weight: float = 1.0,
    kl_on: Literal["components", "scores"] = "components",
    kl_temperature: float = 1.0,
    detach_teacher: bool = True,
    normalize: bool = True,
) -> ColumnsObjective:
    """Starbucks representation learning (SRL): the sizes that will be used, each at every step, and no others:

        l(X_L) + sum_{(n, d), not the last} [ l(X_n^d) + w_KL KL(softmax(teacher / T) || softmax(student / T)) ]

    Teacher and student are, on "components", X_L^d and X_n^d of every text (mean over the texts); on "scores", the dot
    products of a record's text in the first column with all texts of the other columns, at full size and at this one.

    The losses are summed, not averaged: gradients are as many times those of plain training as there are sizes.

    Args:
      objective: of `on_columns`.
      sizes: (layers, dim), both strictly increasing; the last one the full size (L, D).
      kl_weight: w_KL >= 0; 0 leaves the term out.
      kl_on: "components" (semantic similarity) or "scores" (retrieval).
      kl_temperature: T > 0.
      detach_teacher: no gradient of KL to the teacher.
      normalize: give what the loss sees (and scores are made of) unit length. Retrieval by dot product wants False.

    Returns:
      The objective, of models that are an `Embedder`; its outputs are the embeddings of full size.

    Raises:
      ValueError: for sizes that are not as above, a negative weight, T <= 0, an unknown `kl_on`, or scores of less than
        two columns or of several texts per record in the first.
      TypeError: when called with another kind of model.

    The authors' code for semantic similarity is `kl_weight=0.3, detach_teacher=False` (it multiplies KL by a
    temperature of 0.3 by which it does not divide), that for retrieval `kl_on="scores", normalize=False`.

    References:
      Zhuang et al. 2024, https://arxiv.org/abs/2410.13230.
    """
    objective = _of_columns(objective, "starbucks")
    sizes = tuple((n, d) for n, d in sizes)
    ordered = all(a[0] < b[0] and a[1] < b[1] for a, b in itertools.pairwise(sizes))
    if not sizes or min(sizes[0]) < 1 or not ordered:
        raise ValueError(f"sizes must be (layers, dim) >= 1, both strictly increasing; got {sizes}")
    if kl_on not in ("components", "scores"):
        raise ValueError(f"kl_on must be 'components' or 'scores'; got {kl_on!r}")
    if kl_weight < 0 or not kl_temperature > 0:
        raise ValueError(f"kl_weight must be >= 0 and kl_temperature > 0; got {kl_weight=}, {kl_temperature=}")

    def needed(model: Embedder) -> tuple[int, ...]:
        if sizes[-1] != (full := (model.depth, model.dim)):
            raise ValueError(f"the last of sizes must be the full size {full}; got {sizes[-1]}")
        return tuple(n for n, _ in sizes)

    def losses(embeddings: Embeddings, head: Head, batch: Batch, key: jax.Array | None) -> jax.Array:
        unit = _unit if normalize else head
        at = lambda i, dim: {name: e[..., i, :dim] for name, e in embeddings.items()}
        seen = lambda i, dim: {name: unit(e) for name, e in at(i, dim).items()}
        last = len(sizes) - 1
        whole = seen(last, sizes[-1][1])
        total = objective.losses(whole, batch, key)
        for i, (_, dim) in enumerate(sizes[:-1]):
            total += objective.losses(seen(i, dim), batch, key)
            if kl_weight and kl_on == "components":
                total += kl_weight * _mean_over_texts(at(i, dim), at(last, dim), kl_temperature, detach_teacher)
            elif kl_weight:
                kl = alignment_kl(
                    _scores(seen(i, dim)), _scores(whole), temperature=kl_temperature, detach_teacher=detach_teacher
                )
                total += kl_weight * kl
        return total

    return _of_layers(objective, needed, losses)


@checked(shapes(student="... C", teacher="... C"), temperature=positive)
def alignment_kl(
    student: jax.Array, teacher: jax.Array, *, temperature: float = 1.0, detach_teacher: bool = True
) -> jax.Array:
    """`KL(softmax(teacher / T) || softmax(student / T))` along the last axis, `[..., C]` to f32 `[...]`."""
    teacher = jax.lax.stop_gradient(teacher) if detach_teacher else teacher
    log = lambda x: jax.nn.log_softmax(x.astype(jnp.float32) / temperature)
    return optax.losses.kl_divergence_with_log_targets(log(student), log(teacher))


@nnx.dataclass
class _AtLayers(Module):
    """An embedder that gives the embeddings of several depths when it is called, `[N, len(layers), D]`.

    Those of one that ends in `Normalize` are taken before it, as layers are aligned by their components, and have an
    axis more, `[N, 1, len(layers), D]`, by which one knows that its embeddings are to have unit length.
    """

    embedder: Embedder = nnx.data()
    layers: tuple[int, ...] = nnx.static(default=())

    def __call__(self, tokens: Tokens, *, key: jax.Array | None = None) -> jax.Array:
        if not self.embedder.normalizes:
            return self.embedder.at_layers(tokens, self.layers, key=key)
        bare = dataclasses.replace(self.embedder, heads=self.embedder.heads[:-1])
        return bare.at_layers(tokens, self.layers, key=key)[:, None]


def _of_layers(
    objective: ColumnsObjective, layers: Callable[[Embedder], tuple[int, ...]], losses: Callable[..., jax.Array]
) -> ColumnsObjective:
    """The objective whose losses see the embeddings of several layers, the last of them last.

    Args:
      losses: `(embeddings before a final Normalize, that head or the identity, batch, key) -> [N]`.
    """
    as_given = lambda e: _unit(e[:, :, 0]) if e.ndim > 4 else e

    def embed(model, batch: Batch, key: jax.Array | None) -> Embeddings:
        if not isinstance(model, Embedder):
            raise TypeError(f"layers are those of an Embedder; got {type(model).__name__}")
        return objective.embed(_AtLayers(embedder=model, layers=layers(model)), batch, key)

    def losses_of(embeddings: Embeddings, batch: Batch, key: jax.Array | None) -> jax.Array:
        normalizes = next(iter(embeddings.values())).ndim > 4
        bare = {name: e[:, :, 0] if normalizes else e for name, e in embeddings.items()}
        return losses(bare, _unit if normalizes else lambda x: x, batch, key)

    return ColumnsObjective(embed, losses_of, lambda embeddings: objective.output(as_given(embeddings)[..., -1, :]))


def _sample(key: jax.Array | None, name: int, count: int, per_step: int | None) -> jax.Array | None:
    """`per_step` different ones of `count`, or None for all."""
    if key is None or per_step is None or per_step >= count:
        return None
    return jax.random.choice(jax.random.fold_in(key, name), count, (per_step,), replace=False)


def _of_columns(objective: Objective, name: str) -> ColumnsObjective:
    if not isinstance(objective, ColumnsObjective):
        got = getattr(objective, "__qualname__", type(objective).__name__).partition(".")[0]
        raise ValueError(f"{name} cuts the embeddings that a loss sees; it takes an objective of on_columns, not {got}")
    return objective


def _check_layers(layers: Sequence[int] | None) -> tuple[int, ...] | None:
    prior = None if layers is None else tuple(layers)
    if prior is not None and (not prior or min(prior) < 0 or len(set(prior)) != len(prior)):
        raise ValueError(f"layers must be distinct numbers >= 0, at least one; got {prior}")
    return prior


def _before_last(prior: tuple[int, ...] | None, model: Embedder) -> Sequence[int]:
    """The layers `prior`, or all before the last."""
    last = model.depth
    if prior is not None and max(prior) >= last:
        raise ValueError(f"layers must be before the last, {last}; got {prior}")
    return range(1, last) if prior is None else prior


def _weight_of(weighting: LayerWeighting) -> Callable[[int], float]:
    if not callable(weighting) and weighting not in _LAYER_WEIGHTS:
        raise ValueError(f"layer_weighting must be one of {sorted(_LAYER_WEIGHTS)} or a function; got {weighting!r}")
    return weighting if callable(weighting) else _LAYER_WEIGHTS[weighting]


def _prefix(x: jax.Array, dim: int) -> jax.Array:
    return x[..., :dim]


def _masked_prefix(x: jax.Array, dim: jax.Array) -> jax.Array:
    return jnp.where(jnp.arange(x.shape[-1]) < dim, x, 0)


def _check_per_step(name: str, per_step: int | None, most: float) -> None:
    if per_step is not None and not 1 <= per_step <= most:
        raise ValueError(f"{name} must be in 1..{most} or None; got {per_step}")


def _width(embeddings: Embeddings) -> int:
    return next(iter(embeddings.values())).shape[-1]


def _mean_over_texts(student: Embeddings, teacher: Embeddings, temperature: float, detach: bool) -> jax.Array:
    """Of each record, the mean of `alignment_kl` over its texts in all columns, `[N]`."""
    by_column = [
        alignment_kl(student[name], teacher[name], temperature=temperature, detach_teacher=detach) for name in student
    ]
    return jnp.concatenate(by_column, axis=1).mean(axis=1)


def _scores(embeddings: Embeddings) -> jax.Array:
    """Dot products of the first column's texts with all of the others, `[N, M]`."""
    queries, *others = embeddings.values()
    if queries.shape[1] != 1 or not others:
        raise ValueError(
            "kl_on='scores' needs one text per record in the first column and another column; got "
            f"{ {name: e.shape for name, e in embeddings.items()} }"
        )
    candidates = jnp.concatenate([e.reshape(-1, e.shape[-1]) for e in others])
    return queries[:, 0] @ candidates.T
