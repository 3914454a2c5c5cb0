"""HyperInterval: a hypernetwork maps boxes of task embeddings to boxes of weights, which bounds forgetting."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxemb.checks import checked
from jaxemb.encoders.mlp import Mlp
from jaxemb.interval import CentredBox, bound, worst_case_logits
from jaxemb.nn.classes import class_cross_entropy
from jaxemb.objectives.classification import competing
from jaxemb.transforms.base import Context, Task, Trained, Transform, Variables, find_state, nothing, output_of
from jaxemb.transforms.continual import hypernetwork as hyper
from jaxemb.trees import PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class HyperIntervalConfig(hyper.HypernetworkConfig):
    """What a HyperInterval is; the fields of `HypernetworkConfig`, and these.

    Attributes:
      gamma: size of a task's box; 0 is the plain hypernetwork (without nesting).
      kappa: weight of the loss of the middle, in [0, 1]; 1 minus it is that of the worst case.
      nesting: "none": a box around each task's embedding, with trained radii that sum to gamma. "cos": boxes within
        `gamma / d` around centres within `gamma / 2d`, all of which share `[-gamma / 2d, gamma / 2d]^d`.
      learnable_radii: whether the radii are trained; None: without nesting.
      target: "interval" bounds the logits over the box of weights, soundly; "relaxed" takes those of its two corners
        and its middle, which bounds nothing.
      ordering: of relaxed logits: the "exact" minimum and maximum, or the "official" code's two swaps.
      regulariser: hold the "mid" weights of old tasks, or the lower, middle and upper ones, "all"; None: "all" with
        nesting and "mid" without.
      warm_start: whether the embedding of a task starts as that of the task before it.
      input, label, classes: columns of the batch, as in `objectives.classification`.

    Raises:
      ValueError: for a number out of its range, an unknown option, or nesting with trained radii or gamma = 0.
    """

    hidden: tuple[int, ...] = (100,)
    normalisation: Literal["once", "official"] = "official"
    gamma: float = 1.0
    kappa: float = 0.5
    nesting: Literal["none", "cos"] = "none"
    learnable_radii: bool | None = None
    target: Literal["interval", "relaxed"] = "interval"
    ordering: Literal["exact", "official"] = "exact"
    regulariser: Literal["mid", "all"] | None = None
    warm_start: bool = False
    input: str = "input"
    label: str = "label"
    classes: str = "classes"

    def __post_init__(self):
        super().__post_init__()
        if not self.gamma >= 0:
            raise ValueError(f"gamma must be >= 0; got {self.gamma}")
        if not 0 <= self.kappa <= 1:
            raise ValueError(f"kappa must be in [0, 1]; got {self.kappa}")
        self._one_of("nesting", "none", "cos")
        self._one_of("target", "interval", "relaxed")
        self._one_of("ordering", "exact", "official")
        self._one_of("regulariser", "mid", "all", None)
        if self.nesting == "cos" and (self.learnable_radii or not self.gamma):
            given = "learnable_radii" if self.learnable_radii else "gamma = 0"
            raise ValueError(f"nested boxes have fixed radii, gamma / embed_dim > 0; got {given}")

    @property
    def radii_learn(self) -> bool:
        """Whether radii are trained."""
        return self.nesting == "none" if self.learnable_radii is None else self.learnable_radii

    @property
    def regularises_all(self) -> bool:
        """Whether the regulariser holds the lower and upper weights too."""
        return self.nesting == "cos" if self.regulariser is None else self.regulariser == "all"


class HyperIntervalParams(NamedTuple):
    """The hypernetwork, embeddings `[T, d]` of the tasks and of chunks (or None), and logits of the radii, `[T, d]`."""

    network: Mlp
    embeddings: jax.Array
    chunks: jax.Array | None
    radius_logits: jax.Array


class HyperIntervalState(NamedTuple):
    """What HyperInterval carries.

    Attributes:
      task: the task whose weights the model has, int32 scalar.
      begun: number of tasks whose training has begun, int32 scalar.
      step, steps: those done of this task, and those that it takes, int32 scalars.
      old: lower, middle and upper weights of all tasks before this one began, `[T, 3, P]`, or the parameters to
        recompute them from.
      residual: of each task, how far a bound of its weights may have moved since the task ended (maximum norm, summed
        over the tasks since), `[T]`. With 0 the guarantee of `at_universal` is exact.
      candidate: the state of the optimiser that looks ahead.
      given: a box of embeddings to use for that of the task, and whether to, bool scalar.
    """

    task: jax.Array
    begun: jax.Array
    step: jax.Array
    steps: jax.Array
    old: Any
    residual: jax.Array
    candidate: PyTree
    given: tuple[CentredBox, jax.Array]

    def for_task(self, number: jax.Array) -> "HyperIntervalState":
        """The state with the weights of this task, and with the full gamma."""
        return self._replace(task=number, step=self.steps, given=(self.given[0], jnp.zeros((), bool)))


@checked()
def hyper_interval(config: HyperIntervalConfig) -> Transform:
    """Trains boxes of weights, all of which solve their task in the worst case, and holds those of old tasks in place.

    Each task has a box of embeddings (`task_boxes`); the hypernetwork maps it to a box of weights (`propagate`), whose
    middle the model of a forward pass has. With logits z of the middle, and for each record the worst logits over the
    box, `ẑ_j` = the lower bound for its label's j, else the upper, the loss of task t is

        kappa CE(z) + (1 - kappa) CE(ẑ) + beta R,  R = 1/t^2 sum_{j<t} |theta_j - theta*_j|^2  (`output_regulariser`),

    in place of the losses of the objective, `objectives.classification` of the same columns, which gives z. Kappa
    falls from 1, and gamma grows from 0, in the first half of every task (`schedules`). The old weights `theta*` are
    with the full gamma. The model needs `model(inputs, key=key) -> logits [N, C]`; its bound is `interval.bound`, for
    inputs of any sign.

    Give a task's steps in `Task.steps`; with 0, gamma and kappa are constant. `at_task` and
    `task_predictor` of hypernetworks evaluate older tasks, with the full gamma; `at_universal` makes one model for all.

    Args:
      config: see there.

    Raises:
      ValueError: as `hypernetwork`; when traced, if the batch lacks labels.

    References:
      Krukowski et al. 2024, arXiv 2405.15444, and github.com/gmum/HyperInterval, which the equations follow.
    """

    def init(key: jax.Array, model: PyTree) -> Variables:
        logits = jnp.full((config.tasks, config.embed_dim), 1 / config.embed_dim, jnp.float32)
        network, embeddings, chunks = hyper.init_network(config, key, model)
        params = HyperIntervalParams(network, embeddings, chunks, logits)
        zero, middle = jnp.zeros((), jnp.int32), jnp.zeros(config.embed_dim)
        state = HyperIntervalState(
            task=zero,
            begun=zero,
            step=zero,
            steps=zero,
            old=old(params, model),
            residual=jnp.zeros(config.tasks),
            candidate=config.lookahead.init(params) if config.lookahead else (),
            given=(CentredBox(middle, middle), jnp.zeros((), bool)),
        )
        return Variables(params, state)

    old = functools.partial(_old, config)

    def begin_task(task: Task, context: Context, params: HyperIntervalParams, state: HyperIntervalState):
        hyper.check_number(config, task.number)
        if config.warm_start and task.number > 0:
            start = lambda rows: rows.at[task.number].set(rows[task.number - 1])
            params = params._replace(embeddings=start(params.embeddings), radius_logits=start(params.radius_logits))
        state = state._replace(
            task=jnp.asarray(task.number, jnp.int32),
            begun=jnp.maximum(state.begun, task.number + 1),
            step=jnp.zeros((), jnp.int32),
            steps=jnp.asarray(task.steps, jnp.int32),
            old=jax.jit(old)(params, context.stored),
            candidate=config.lookahead.init(params) if config.lookahead else (),
            given=(state.given[0], jnp.zeros((), bool)),
        )
        return context.trained._replace(params=params), state

    def model(model: PyTree, params: HyperIntervalParams, state: HyperIntervalState) -> PyTree:
        return hyper.put(config, model, _present_weights(config, params, state, model).centre)

    def updates(updates: Trained, context: Context, params, state: HyperIntervalState) -> Trained:
        updates = hyper.only_task(updates, state.task, ("embeddings", "radius_logits"))
        if config.radii_learn:
            return updates
        fixed = updates.params._replace(radius_logits=jnp.zeros_like(updates.params.radius_logits))
        return updates._replace(params=fixed)

    def after_step(context: Context, params, state: HyperIntervalState) -> HyperIntervalState:
        candidate = hyper.next_candidate(config, context, state.candidate)
        return state._replace(step=state.step + 1, candidate=candidate)

    def end_task(task: Task, context: Context, params: HyperIntervalParams, state: HyperIntervalState):
        moved = _moved(config, params, state.old, context.stored)
        residual = state.residual + jnp.where(jnp.arange(config.tasks) < task.number, moved, 0)
        return context.trained, state._replace(residual=residual.at[task.number].set(0))

    return Transform(
        init=init,
        trains=nothing,
        begin_task=begin_task,
        model=model,
        loss=functools.partial(_loss, config),
        auxiliary_loss=functools.partial(_regulariser, config),
        gradients=lambda grads, context, params, state: hyper.computed_once(grads, state.task),
        updates=updates,
        after_step=after_step,
        end_task=end_task,
    )


def _loss(
    config: HyperIntervalConfig,
    losses: jax.Array,
    context: Context,
    params: HyperIntervalParams,
    state: HyperIntervalState,
) -> jax.Array:
    """The losses that take the place of the objective's, which are those of the middle."""
    batch, stored = context.batch, context.stored
    if config.label not in batch:
        raise ValueError(f"the batch has no {config.label}; it has {', '.join(sorted(batch))}")
    kappa, _ = schedules(config, state.step, state.steps)
    labels, classes = batch[config.label], batch.get(config.classes)
    middle = output_of(context, "logits", "hyper_interval")
    weights = _present_weights(config, params, state, stored)
    lower, mid, upper = _interval_logits(config, context.model, stored, weights, batch, context.objective_key, middle)
    return interval_cross_entropy(lower, mid, upper, labels, kappa, classes)


@functools.partial(jax.jit, static_argnums=0)
def schedules(config: HyperIntervalConfig, step: jax.Array, steps: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Kappa and gamma in step i of the n that a task takes, h = n // 2.

    For i < h: `max(1 - 5e-5 i, kappa)` and `gamma i / (h - 1)`; then `kappa` and `gamma`.
    """
    half = steps // 2
    ramp = step.astype(jnp.float32) / jnp.maximum(half - 1, 1)
    early = step < half
    kappa = jnp.where(early, jnp.maximum(1 - 5e-5 * step, config.kappa), config.kappa)
    return kappa, jnp.where(early, ramp, 1) * config.gamma


@functools.partial(jax.jit, static_argnums=0)
def task_boxes(config: HyperIntervalConfig, params: HyperIntervalParams, gamma: jax.Array | float) -> CentredBox:
    """The boxes of embeddings, `[..., d]` for embeddings `[..., d]`.

    Without nesting: centre `e`, radius `gamma softmax(r)`, which sums to gamma. Nested: centre `gamma / 2d cos(e)` and
    radius `gamma / d`, so that gamma moves the centre too.
    """
    if config.nesting == "cos":
        radius = jnp.full_like(params.embeddings, 1) * gamma / config.embed_dim
        return CentredBox(0.5 * radius * jnp.cos(params.embeddings), radius)
    return CentredBox(params.embeddings, gamma * jax.nn.softmax(params.radius_logits))


@functools.partial(jax.jit, static_argnums=0)
def weight_boxes(
    config: HyperIntervalConfig, params: HyperIntervalParams, box: CentredBox, model: PyTree
) -> CentredBox:
    """The boxes of weights, `[..., P]`, that the hypernetwork makes of boxes of embeddings, `[..., d]`."""
    no_radius = None if params.chunks is None else jnp.zeros_like(params.chunks)
    inputs = CentredBox(hyper.with_chunks(box.centre, params.chunks), hyper.with_chunks(box.radius, no_radius))
    total = hyper.count(config, model)
    made = propagate(params.network, *(x.reshape(-1, x.shape[-1]) for x in inputs))
    flat = lambda x: config.scale * x.reshape(*box.centre.shape[:-1], -1)[..., :total]
    return CentredBox(*map(flat, made))


def _old(config: HyperIntervalConfig, params: HyperIntervalParams, model: PyTree):
    """`HyperIntervalState.old`."""
    return params if config.targets == "recompute" else _all_weights(config, params, model)


def _all_weights(config: HyperIntervalConfig, params: HyperIntervalParams, model: PyTree) -> jax.Array:
    """Lower, middle and upper weights of all tasks with the full gamma, `[T, 3, P]`."""
    box = weight_boxes(config, params, task_boxes(config, params, config.gamma), model)
    return jnp.stack([box.lo, box.centre, box.hi], axis=-2)


@functools.partial(jax.jit, static_argnums=0)  # once for all tasks
def _moved(config: HyperIntervalConfig, params: HyperIntervalParams, old: Any, model: PyTree) -> jax.Array:
    """How far the bounds and middles of every task's weights are from the old ones, maximum norm, `[T]`."""
    before = _all_weights(config, old, model) if config.targets == "recompute" else old
    return jnp.abs(_all_weights(config, params, model) - before).max(axis=(1, 2))


def _regulariser(
    config: HyperIntervalConfig, context: Context, params: HyperIntervalParams, state: HyperIntervalState
) -> jax.Array:
    """beta R, between the weights of the old tasks now and before this task."""
    params = hyper.frozen_embeddings(hyper.ahead(config, context, params, state.candidate))
    params = params._replace(radius_logits=jax.lax.stop_gradient(params.radius_logits))
    stored = context.stored

    def held(params: HyperIntervalParams) -> jax.Array:
        if config.regularises_all:
            return _all_weights(config, params, stored)
        # The middles, `[T, P]`, do not need the last layer's radii, half of the work.
        return weight_boxes(config, params, task_boxes(config, params, config.gamma), stored).centre

    if config.targets == "recompute":
        before = held(state.old)
    else:
        before = state.old if config.regularises_all else state.old[:, 1]
    return config.beta * hyper.output_regulariser(config, held(params), jax.lax.stop_gradient(before), state.task)


def _present_weights(
    config: HyperIntervalConfig, params: HyperIntervalParams, state: HyperIntervalState, model: PyTree
) -> CentredBox:
    """The box of weights, `[P]`, of the present task and gamma, or of the box of embeddings that is given."""
    _, gamma = schedules(config, state.step, state.steps)
    row = params._replace(embeddings=params.embeddings[state.task], radius_logits=params.radius_logits[state.task])
    given, use = state.given
    box = jax.tree.map(lambda a, b: jnp.where(use, a, b), given, task_boxes(config, row, gamma))
    return weight_boxes(config, params, box, model)


def propagate(network: Mlp, centre: jax.Array, radius: jax.Array) -> CentredBox:
    """The box `[..., P]` around what a ReLU network makes of a box `[..., d]`.

    Layer by layer `m <- m W + b` and `r <- r |W|`, and, but for the last, `[m - r, m + r]` through the ReLU: the new
    centre is the middle of that, not the ReLU of the old one.
    """
    for number, layer in enumerate(network.layers, 1):
        centre, radius = layer(centre), radius @ jnp.abs(layer.kernel)
        if number < len(network.layers):
            lower, upper = jax.nn.relu(centre - radius), jax.nn.relu(centre + radius)
            centre, radius = (lower + upper) / 2, (upper - lower) / 2
    return CentredBox(centre, radius)


@jax.jit
def interval_cross_entropy(
    lower: jax.Array,
    middle: jax.Array,
    upper: jax.Array,
    labels: jax.Array,
    kappa: jax.Array | float,
    classes: jax.Array | None = None,
) -> jax.Array:
    """`kappa CE(middle) + (1 - kappa) CE(worst case)` of logits `[N, C]`, f32 `[N]`."""
    worst = _cross_entropy(worst_case_logits(lower, upper, labels), labels, classes)
    return kappa * _cross_entropy(middle, labels, classes) + (1 - kappa) * worst


def _cross_entropy(logits: jax.Array, labels: jax.Array, classes: jax.Array | None) -> jax.Array:
    return class_cross_entropy(competing(logits, classes), labels)


def _interval_logits(config, model, stored, weights: CentredBox, batch, key, middle) -> tuple[jax.Array, ...]:
    """Lower, middle and upper logits of the applied model with weights in the box (relaxed: at its two ends)."""
    logits = lambda theta: hyper.put(config, model, theta, stored)(batch[config.input], key=key)
    if config.target == "relaxed":
        return order_relaxed(logits(weights.lo), middle, logits(weights.hi), config.ordering)
    low, high = bound(logits)((weights.lo,), (weights.hi,))
    return jnp.minimum(low, middle), middle, jnp.maximum(high, middle)  # rounding may put the middle outside


def order_relaxed(a: jax.Array, b: jax.Array, c: jax.Array, ordering: str) -> tuple[jax.Array, ...]:
    """Lower, middle and upper of three logits: "exact", or by the "official" two swaps: of (2, 3, 1), (2, 1, 3)."""
    if ordering == "exact":
        return jnp.minimum(jnp.minimum(a, c), b), b, jnp.maximum(jnp.maximum(a, c), b)
    a, b = jnp.minimum(a, b), jnp.maximum(a, b)
    return a, jnp.minimum(b, c), jnp.maximum(b, c)


# Evaluation.


def boxes_of(config: HyperIntervalConfig, state: PyTree, tasks: Sequence[int] | None = None) -> CentredBox:
    """The boxes of embeddings, `[tasks, d]`, of tasks that have begun, by default all of those.

    Raises:
      ValueError: for a task that has not begun, or no tasks.
    """
    begun = int(find_state(state, HyperIntervalState).begun)
    tasks = range(begun) if tasks is None else tasks
    if not len(tasks):
        raise ValueError("tasks must not be empty; no task has begun" if not begun else "tasks must not be empty")
    for number in tasks:
        hyper.check_begun(begun, number)
    return _rows(task_boxes(config, _params(state), config.gamma), jnp.asarray(tasks))


@jax.jit
def _rows(box: CentredBox, tasks: jax.Array) -> CentredBox:
    return jax.tree.map(lambda x: x[tasks], box)


@jax.jit
def intersect_boxes(centres: jax.Array, radii: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Ends `[D]` of the intersection of boxes `[T, D]`; where it is empty, the middle of the gap twice."""
    lower, upper = jnp.max(centres - radii, axis=0), jnp.min(centres + radii, axis=0)
    middle = (lower + upper) / 2
    return jnp.where(lower <= upper, lower, middle), jnp.where(lower <= upper, upper, middle)


def universal_box(
    config: HyperIntervalConfig,
    state: PyTree,
    tasks: Sequence[int] | None = None,
    radius: Literal["official", "intersection", "point"] = "official",
) -> CentredBox:
    """The box of embeddings, `[d]`, in the middle of the intersection of the tasks' boxes.

    Args:
      config: that of the method.
      state: the train state.
      tasks: those whose boxes intersect; by default all that have begun.
      radius: "official": `gamma / d`, which may reach out of the intersection. "intersection": the intersection's own.
        "point": 0; its one weight vector lies in the weight boxes of all the tasks, if their intersection is not empty.

    Raises:
      ValueError: as `boxes_of`, or for another radius.
    """
    lower, upper = intersect_boxes(*boxes_of(config, state, tasks))
    radii = {
        "official": jnp.full_like(lower, config.gamma / config.embed_dim),
        "intersection": (upper - lower) / 2,
        "point": jnp.zeros_like(lower),
    }
    if radius not in radii:
        raise ValueError(f"radius must be one of {sorted(radii)}; got {radius!r}")
    return CentredBox((lower + upper) / 2, radii[radius])


def at_box(state: PyTree, box: CentredBox) -> PyTree:
    """The train state whose applied model has the middle weights of this box of embeddings, `[d]`."""
    find_state(state, HyperIntervalState)
    is_state = lambda node: isinstance(node, HyperIntervalState)
    change = lambda node: node._replace(given=(box, jnp.ones((), bool))) if is_state(node) else node
    return jax.tree.map(change, state, is_leaf=is_state)


def at_universal(
    config: HyperIntervalConfig,
    state: PyTree,
    tasks: Sequence[int] | None = None,
    radius: Literal["official", "intersection", "point"] = "official",
) -> PyTree:
    """The train state whose applied model is the one for all the tasks: `at_box` of their `universal_box`.

    If the hypernetwork still maps the boxes of past tasks to the same boxes of weights (`residual` 0), then every
    embedding in the intersection makes weights in all of them, whose loss on task t is at most the worst case of t.
    That holds for "intersection" and "point", with any residual up to the loss that so small a step of weights makes.
    """
    return at_box(state, universal_box(config, state, tasks, radius))


def generated_weights(config: HyperIntervalConfig, state: PyTree, tasks: Sequence[int] | None = None) -> CentredBox:
    """The boxes of weights, `[tasks, P]`, of tasks that have begun; to compare with those of a later state."""
    return weight_boxes(config, _params(state), boxes_of(config, state, tasks), state.model)


def make_interval_logits(config: HyperIntervalConfig, transform: Transform) -> Callable:
    """Makes `(train_state, inputs) -> logits [3, N, C]`, lower, middle and upper, of the state's weight box, jitted.

    Args:
      config: that of the method; its `target` says how the logits are bounded.
      transform: the method, or a chain with it.
    """

    @jax.jit
    def logits(state, inputs):
        model = transform.model(state.model, state.method_params, state.method_state)
        found = find_state(state.method_state, HyperIntervalState)
        weights = _present_weights(config, _params(state), found, state.model)
        middle = model(inputs)
        return jnp.stack(_interval_logits(config, model, state.model, weights, {config.input: inputs}, None, middle))

    return logits


@functools.partial(jax.jit, static_argnames="weighted")
def infer_task_by_entropy(
    logits: jax.Array, weighted: bool = False, classes: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """For records whose task is unknown: the task whose softmax has the least entropy, and its most probable class.

    Args:
      logits: of every task, lower, middle and upper, `[T, N, 3, C]`.
      weighted: whether the entropy's terms are divided by `0.001 + upper - lower`.
      classes: those of each task, bool `[T, C]`; None for all.

    Returns:
      Tasks and classes, int32 `[N]`.

    References:
      `entropy.py` of github.com/gmum/HyperInterval; von Oswald et al. 2020, HNET+ENT.
    """
    lower, middle, upper = jnp.moveaxis(logits, 2, 0)
    middle = competing(middle, None if classes is None else classes[:, None])
    log_p = jax.nn.log_softmax(middle)
    terms = -jnp.where(jnp.isfinite(log_p), jnp.exp(log_p) * log_p, 0)
    if weighted:
        terms /= 0.001 + jnp.abs(upper - lower)
    tasks = jnp.argmin(terms.sum(axis=-1), axis=0)
    found = jnp.argmax(middle, axis=-1)
    return tasks, jnp.take_along_axis(found, tasks[None], axis=0)[0]


def _params(state: PyTree) -> HyperIntervalParams:
    return find_state(state.method_params, HyperIntervalParams)
