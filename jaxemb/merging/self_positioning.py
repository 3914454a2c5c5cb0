"""Self Positioning: a gradient search for how much of every task vector to keep."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxemb.checks import arrays, check_types, checked, each
from jaxemb.merging.slerp import gram_of, slerp_coefficients
from jaxemb.merging.trees import apply_task_vectors, check_groups, match_vectors
from jaxemb.objectives import Objective
from jaxemb.trees import PyTree

Parametrization = Literal["slerp_scale", "simplex_scale", "simplex", "free"]
Penalty = Literal["scale", "square"]


@dataclasses.dataclass(frozen=True)
class SelfPositioning:
    """The settings of `self_position`.

    Attributes:
      param: what is searched. "slerp_scale", the paper's: lam times the iterated SLERP of the task vectors with
        positive weights a (`slerp_coefficients`), from equal ones and lam = 1. The others are ours, and begin at the
        average. "simplex_scale": `lam softmax(a)`, from a = 0 and lam = 1; "simplex": lam stays 1; "free": n
        coefficients, from 1/n.
      learning_rate: of SGD; 0.02 suits small models.
      momentum: of SGD, in [0, 1).
      steps: at least 1.
      mu: >= 0, weight of the penalty; the paper's best is below 0.05.
      penalty: "scale" is `mu lam`, the paper's; "square" `mu lam^2`. For "free" lam is the coefficients' norm.
      decay: in [0, 1), of the running probe loss, by which the iterate that is kept is chosen.
      normalize: "initial" divides each task's loss by its value where the search begins, on its first probe batch, so
        that losses of several scales count alike; None for one loss throughout.
    """

    param: Parametrization = "slerp_scale"
    learning_rate: float = 0.02
    momentum: float = 0.9
    steps: int = 300
    mu: float = 0.0
    penalty: Penalty = "scale"
    decay: float = 0.9
    normalize: Literal["initial"] | None = None

    def __post_init__(self):
        check_types(self)
        if self.param not in (known := get_args(Parametrization)):
            raise ValueError(f"param must be one of {', '.join(known)}; got {self.param!r}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be > 0; got {self.learning_rate}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1; got {self.steps}")
        if not self.mu >= 0:
            raise ValueError(f"mu must be >= 0; got {self.mu}")
        if self.penalty not in ("scale", "square"):
            raise ValueError(f"penalty must be 'scale' or 'square'; got {self.penalty!r}")
        for name in ("momentum", "decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1); got {getattr(self, name)}")
        if self.normalize not in ("initial", None):
            raise ValueError(f"normalize must be 'initial' or None; got {self.normalize!r}")


class SelfPositionHistory(NamedTuple):
    """What every step S saw, before it moved.

    Attributes:
      losses: of the tasks, on their probe batches, `[S, n]`, not normalised.
      loss: what is minimised, `[S]`.
      running: its exponential average, `[S]`.
      coefficients: `[S, n]` or `[S, G, n]`.
      scale: `[S]`.
    """

    losses: np.ndarray
    loss: np.ndarray
    running: np.ndarray
    coefficients: np.ndarray
    scale: np.ndarray


@dataclasses.dataclass(frozen=True)
class SelfPositionResult:
    """The merged model and where it is.

    Attributes:
      tasks: their names, in the order of the coefficients.
      coefficients: `[n]`, or `[G, n]` with groups.
      scale: lam; 1 unless it was searched.
      params: `base + scale sum_i coefficients_i vectors_i`.
      step: number of the iterate that was kept.
      history: of the search.
    """

    tasks: tuple[str, ...]
    coefficients: np.ndarray
    scale: float
    params: PyTree
    step: int
    history: SelfPositionHistory


@checked(base=arrays, vectors=each(arrays))
def self_position(
    objectives: Mapping[str, Objective],
    base: PyTree,
    vectors: Mapping[str, PyTree],
    probes: Mapping[str, Iterable[PyTree]],
    config: SelfPositioning = SelfPositioning(),
    *,
    groups: PyTree | None = None,
    weights: Mapping[str, float] | None = None,
    key: jax.Array | None = None,
) -> SelfPositionResult:
    """Merges task vectors with the coefficients that SGD finds on small, balanced probe sets.

    With `theta = base + lam sum_i w_i tau_i`, where the w are functions of what is searched, the search minimises

        J = (1/n) sum_i mean L_i(theta; probe batch of task i) + mu lam

    The models stay as they are: `dJ/dw_i = lam <dJ/dtheta, tau_i>` takes one backward pass and n inner products. Of the
    iterates, the one with the lowest running probe loss is kept; those before 1 / (1 - decay) steps do not take part,
    as the average of so few batches is no better than one lucky batch.

    Draw probe sets from data that the task models did not see: a task model that has learnt its probe set by heart
    gets too much weight. They must be disjoint from evaluation data, too. That a softmax with in-batch negatives is
    harder with more of them is why batches must have one size. With "slerp_scale" and more than two tasks the result
    depends on their order, which is that of `objectives`.

    Args:
      objectives: by the task's name, `(model, batch, key) -> (losses [N], outputs)`: its training loss.
      base: the model that all task models were trained from.
      vectors: by the task's name, its task vector.
      probes: by the task's name, its probe batches, all of one shape; at least `config.steps` of them, so a list
        must be repeated with `itertools.cycle`.
      config: the settings.
      groups: see `apply_task_vectors`: coefficients (not lam) for each group; not with "slerp_scale", whose angles are
        between whole models.
      weights: by the task's name, its share of J instead of 1/n; they are divided by their sum.
      key: for dropout, with a number of its own for every step; None for none.

    Raises:
      ValueError: before compilation, if there are no tasks, groups with "slerp_scale", the mappings have other tasks
        than `objectives`, trees do not match, or probe batches have different numbers of examples and no weights are
        given; later, if a task's probe batches end too early.
      ArithmeticError: naming the task, if a probe loss is not finite.

    References:
      Li et al. 2024, arXiv 2410.15035; "slerp_scale" and the penalty as a reader's published notes quote its formulas.
    """
    names = tuple(objectives)
    rows = _check(names, base, vectors, probes, groups, weights, config.param)
    columns = tuple(vectors[name] for name in names)
    gram = gram_of(base, columns) if config.param == "slerp_scale" else None
    iterators = {name: iter(probes[name]) for name in names}
    first = _next_batches(iterators, 0)
    counts = [jax.eval_shape(objectives[n], base, batch, key)[0].shape for n, batch in zip(names, first, strict=True)]
    shares = _shares(dict(zip(names, counts, strict=True)), weights)
    shape: tuple[int, ...] = (len(names),)
    if groups is not None:
        shape = (1 + max(int(np.max(row)) for row in rows), *shape)
    optimizer = optax.sgd(config.learning_rate, momentum=config.momentum or None)

    def losses_at(point, base, columns, batches, key):
        coefficients, scale = _position(point, config.param, gram)
        model = apply_task_vectors(base, columns, coefficients, scale, groups)
        losses = [objectives[n](model, batch, key)[0] for n, batch in zip(names, batches, strict=True)]
        for one in losses:
            chex.assert_rank(one, 1)
        return jnp.stack([jnp.mean(one) for one in losses])

    @jax.jit
    def step(point, opt_state, units, base, columns, batches, key):
        def total(point):
            losses = losses_at(point, base, columns, batches, key)
            coefficients, scale = _position(point, config.param, gram)
            return jnp.sum(shares * losses / units) + config.mu * _size(config, coefficients, scale), losses

        (loss, losses), gradient = jax.value_and_grad(total, has_aux=True)(point)
        updates, opt_state = optimizer.update(gradient, opt_state, point)
        return optax.apply_updates(point, updates), opt_state, loss, losses

    point = _start(config.param, shape)
    opt_state = optimizer.init(point)
    units = np.ones(len(names), np.float32)
    if config.normalize == "initial":
        units = _checked(jax.jit(losses_at)(point, base, columns, first, key), names, 0)

    seen: list[tuple] = []
    for number in range(config.steps):
        batches = first if number == 0 else _next_batches(iterators, number)
        step_key = None if key is None else jax.random.fold_in(key, number)
        at, (point, opt_state, loss, losses) = point, step(point, opt_state, units, base, columns, batches, step_key)
        losses, loss = _checked(losses, names, number), float(loss)
        running = config.decay * seen[-1][2] + (1 - config.decay) * loss if seen else loss
        seen.append((losses, loss, running, *map(np.asarray, _position(at, config.param, gram))))

    history = SelfPositionHistory(*(np.stack([np.asarray(x) for x in column]) for column in zip(*seen, strict=True)))
    warm_up = min(round(1 / (1 - config.decay)), config.steps) - 1
    kept = warm_up + int(np.argmin(history.running[warm_up:]))
    coefficients, scale = history.coefficients[kept], float(history.scale[kept])
    params = apply_task_vectors(base, columns, coefficients, scale, groups)
    return SelfPositionResult(names, coefficients, scale, params, kept, history)


def _check(names, base, vectors, probes, groups, weights, param) -> list[Any]:
    """What is wrong with the arguments; else the groups of each tensor."""
    if not names:
        raise ValueError("tasks must be at least one; got 0")
    given = {"vectors": vectors, "probes": probes} | ({} if weights is None else {"weights": weights})
    for what, mapping in given.items():
        if set(mapping) != set(names):
            raise ValueError(f"{what} must be of the tasks {list(names)}; got {list(mapping)}")
    match_vectors(base, tuple(vectors[name] for name in names))
    if param == "slerp_scale" and groups is not None:
        raise ValueError("groups must be None with param 'slerp_scale', whose angles are between whole models")
    return check_groups(base, groups)


def _shares(counts: Mapping[str, tuple[int, ...]], weights: Mapping[str, float] | None) -> np.ndarray:
    """The tasks' shares of J, `[n]`; `counts` are the shapes of their losses."""
    if weights is None and len(set(counts.values())) > 1:
        raise ValueError(f"probe batches must have one number of examples, or weights be given; got {dict(counts)}")
    shares = np.array([1.0 if weights is None else weights[name] for name in counts], np.float32)
    if not shares.sum() > 0 or shares.min() < 0:
        raise ValueError(f"weights must be >= 0 with a positive sum; got {weights}")
    return shares / shares.sum()


def _start(param: Parametrization, shape: tuple[int, ...]) -> dict[str, jax.Array]:
    """Equal shares, and lam = 1: but for "slerp_scale" the average of the task models."""
    if param == "free":
        return {"coefficients": jnp.full(shape, 1 / shape[-1])}
    return {"logits": jnp.zeros(shape)} | ({} if param == "simplex" else {"scale": jnp.ones(())})


def _position(
    point: Mapping[str, jax.Array], param: Parametrization, gram: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Coefficients and scale."""
    if param == "free":
        return point["coefficients"], jnp.ones(())
    shares, scale = jax.nn.softmax(point["logits"]), point.get("scale", jnp.ones(()))
    return shares if gram is None else slerp_coefficients(shares, gram), scale


def _size(config: SelfPositioning, coefficients: jax.Array, scale: jax.Array) -> jax.Array:
    """What the penalty is of: lam or its square."""
    if config.param != "free":
        return jnp.square(scale) if config.penalty == "square" else jnp.abs(scale)
    square = jnp.sum(jnp.square(coefficients))
    return square if config.penalty == "square" else jnp.sqrt(square)


def _next_batches(iterators: Mapping[str, Iterator[Any]], number: int) -> tuple[Any, ...]:
    batches = []
    for name, iterator in iterators.items():
        try:
            batches.append(next(iterator))
            arrays(f"probes[{name!r}][{number}]", batches[-1])
        except StopIteration:
            raise ValueError(f"probes must have a batch for every step; those of {name!r} end after {number}") from None
    return tuple(batches)


def _checked(losses: jax.Array, names: tuple[str, ...], number: int) -> np.ndarray:
    values = np.asarray(losses)
    for name, value in zip(names, values, strict=True):
        if not np.isfinite(value):
            raise ArithmeticError(f"the probe loss of task {name!r} is {value} at step {number}")
    return values
