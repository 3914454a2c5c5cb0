"""Task-conditioned hypernetworks: a network that makes the model's weights from the embedding of a task."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxemb.checks import check_types, checked
from jaxemb.encoders.convolutional import Statistics
from jaxemb.encoders.mlp import Mlp
from jaxemb.transforms.base import Context, Task, Trained, Transform, Variables, nothing
from jaxemb.trees import PyTree, Where, chosen, map_with_path


@dataclasses.dataclass(frozen=True, kw_only=True)
class HypernetworkConfig:
    """What a hypernetwork is and how it remembers.

    Attributes:
      tasks: T, tasks of the whole stream.
      embed_dim: d, size of a task's embedding.
      hidden: sizes of the hypernetwork's hidden layers.
      beta: weight of the output regulariser; >= 0.
      where: which arrays of the model are generated: a regular expression that is searched for in the path
        ("encoder.layers.0.kernel"), or a function of it; by default all. The others stay as they are, and the running
        statistics of batch norm are never generated.
      residual: whether the generated weights are added to the stored ones, as for a model that is trained already.
      scale: factor of what the hypernetwork returns; a small one lets a trained model start near itself.
      chunk: weights that the hypernetwork makes at a time, each time with another chunk embedding; None for all.
      chunk_dim: size of a chunk's embedding.
      normalisation: divides the sum over the t old tasks by t ("once") or, as HyperInterval's code, t^2 ("official").
      reduction: over the weights; with the published "sum", beta depends on their number P.
      targets: keep the old outputs, floats `[T, P]`, or "recompute" them from the old hypernetwork in every step.
      lookahead: an optimiser whose step on the task's loss alone is made, and held constant, before the regulariser is
        evaluated (von Oswald et al., equation 2); the memory and time of another gradient. None for none.

    Raises:
      ValueError: for a number out of its range, or an unknown option.
    """

    tasks: int
    embed_dim: int = 24
    hidden: tuple[int, ...] = (100, 100)
    beta: float = 0.01
    where: Where = ""
    residual: bool = False
    scale: float = 1.0
    chunk: int | None = None
    chunk_dim: int = 8
    normalisation: Literal["once", "official"] = "once"
    reduction: Literal["sum", "mean"] = "sum"
    targets: Literal["store", "recompute"] = "store"
    lookahead: optax.GradientTransformation | None = None

    def __post_init__(self):
        check_types(self)
        positive = {"tasks": self.tasks, "embed_dim": self.embed_dim, "chunk": self.chunk, "chunk_dim": self.chunk_dim}
        for name, value in positive.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        if min(self.hidden, default=1) < 1:
            raise ValueError(f"hidden must be sizes of at least 1; got {self.hidden}")
        if not self.beta >= 0:
            raise ValueError(f"beta must be >= 0; got {self.beta}")
        self._one_of("normalisation", "once", "official")
        self._one_of("reduction", "sum", "mean")
        self._one_of("targets", "store", "recompute")

    def _one_of(self, name: str, *options: str | None) -> None:
        if (value := getattr(self, name)) not in options:
            raise ValueError(f"{name} must be one of {options}; got {value!r}")


class HypernetworkParams(NamedTuple):
    """The hypernetwork, the tasks' embeddings `[T, d]`, and the chunks' `[K, chunk_dim]`, if there are chunks."""

    network: Mlp
    embeddings: jax.Array
    chunks: jax.Array | None


class HypernetworkState(NamedTuple):
    """What a hypernetwork carries.

    Attributes:
      task: the task whose weights the model has, int32 scalar.
      begun: number of tasks whose training has begun, int32 scalar.
      old: the weights of all tasks before this one began, `[T, P]`, or the parameters to recompute them from.
      candidate: the state of the optimiser that looks ahead.
    """

    task: jax.Array
    begun: jax.Array
    old: Any
    candidate: PyTree

    def for_task(self, number: jax.Array) -> "HypernetworkState":
        """The state with the weights of this task."""
        return self._replace(task=number)


@checked()
def hypernetwork(config: HypernetworkConfig) -> Transform:
    """The model's weights are `theta_t = scale H(e_t)`: one hypernetwork H and an embedding of each task.

    The model of a forward pass has the weights of the current task. Training task t moves H and `e_t`; that the weights
    of older tasks stay is asked for by

        beta R,  R = 1/t sum_{j<t} |theta_j - theta*_j|^2,

    theta* the weights before the task began. Embeddings of other tasks do not move at all: their *updates* are zero,
    whatever the optimiser. Nor does anything of the model that is not generated.

    `at_task` and `task_predictor` evaluate older tasks. A new optimiser for every task is the loop's business.

    Args:
      config: see there.

    Raises:
      ValueError: from `init` if no path matches; from `begin_task` for a task that is not below `config.tasks`.

    References:
      von Oswald, Henning, Grewe and Sacramento 2020, arXiv 1906.00695; the hypernetwork is initialised as PyTorch's
      linear layers are, and the embeddings are standard normal.
    """

    def init(key: jax.Array, model: PyTree) -> Variables:
        params = HypernetworkParams(*init_network(config, key, model))
        number = jnp.zeros((), jnp.int32)
        candidate = config.lookahead.init(params) if config.lookahead else ()
        return Variables(params, HypernetworkState(number, number, old(params, model), candidate))

    def old(params: HypernetworkParams, model: PyTree):
        return params if config.targets == "recompute" else outputs(params, model)

    def outputs(params: HypernetworkParams, model: PyTree) -> jax.Array:
        return generate(config, params.network, params.chunks, params.embeddings, count(config, model))

    def begin_task(task: Task, context: Context, params: HypernetworkParams, state: HypernetworkState):
        check_number(config, task.number)
        state = HypernetworkState(
            task=jnp.asarray(task.number, jnp.int32),
            begun=jnp.maximum(state.begun, task.number + 1),
            old=jax.jit(old)(params, context.stored),
            candidate=config.lookahead.init(params) if config.lookahead else (),
        )
        return context.trained, state

    def model(model: PyTree, params: HypernetworkParams, state: HypernetworkState) -> PyTree:
        return put(config, model, outputs(params._replace(embeddings=params.embeddings[state.task]), model))

    def auxiliary_loss(context: Context, params: HypernetworkParams, state: HypernetworkState) -> jax.Array:
        params = ahead(config, context, params, state.candidate)
        now = outputs(frozen_embeddings(params), context.stored)
        before = outputs(state.old, context.stored) if config.targets == "recompute" else state.old
        return config.beta * output_regulariser(config, now, jax.lax.stop_gradient(before), state.task)

    def gradients(grads: Trained, context: Context, params, state: HypernetworkState) -> Trained:
        return computed_once(grads, state.task)

    def updates(updates: Trained, context: Context, params, state: HypernetworkState) -> Trained:
        return only_task(updates, state.task, ("embeddings",))

    def after_step(context: Context, params, state: HypernetworkState) -> HypernetworkState:
        return state._replace(candidate=next_candidate(config, context, state.candidate))

    return Transform(
        init=init,
        trains=nothing,
        begin_task=begin_task,
        model=model,
        auxiliary_loss=auxiliary_loss,
        gradients=gradients,
        updates=updates,
        after_step=after_step,
    )


@checked()
def at_task(state: PyTree, number: int) -> PyTree:
    """The train state whose applied model has the weights of a task that has begun, as they are when it is trained.

    Raises:
      ValueError: if the task has not begun, or the state has no hypernetwork, or several.
    """
    check_begun(_find(state).begun, number)
    return _for_task(state, jnp.asarray(number, jnp.int32))


@checked()
def task_predictor(transform: Transform) -> Callable[[Any, PyTree, jax.Array | int], jax.Array]:
    """Makes the `predict` of `continual.accuracy` for known tasks: `(train_state, inputs, number) -> outputs`.

    Args:
      transform: a hypernetwork, or a chain with one. A task that has not begun is predicted as the newest one is.
    """

    def predict(state, inputs, number):
        number = jnp.clip(number, 0, jnp.maximum(_find(state).begun - 1, 0)).astype(jnp.int32)
        state = _for_task(state, number)
        return transform.model(state.model, state.method_params, state.method_state)(inputs)

    return predict


def _for_task(state: PyTree, number: jax.Array) -> PyTree:
    return jax.tree.map(lambda node: node.for_task(number) if _has_tasks(node) else node, state, is_leaf=_has_tasks)


def _find(state: PyTree) -> Any:
    found = [node for node in jax.tree.leaves(state, is_leaf=_has_tasks) if _has_tasks(node)]
    if len(found) != 1:
        raise ValueError(f"the state must contain exactly one hypernetwork; found {len(found)}")
    return found[0]


def _has_tasks(node: Any) -> bool:
    return hasattr(node, "for_task")


# What hypernetworks of all kinds share.


def init_network(config: HypernetworkConfig, key: jax.Array, model: PyTree):
    """A new network, the embeddings `[T, d]` of tasks, and those of chunks, `[K, chunk_dim]` or None."""
    key_network, key_tasks, key_chunks = jax.random.split(key, 3)
    total, chunks, inputs = count(config, model), None, config.embed_dim
    if config.chunk is not None:
        chunks = jax.random.normal(key_chunks, (-(-total // config.chunk), config.chunk_dim))
        inputs += config.chunk_dim
    network = Mlp.init(key_network, (inputs, *config.hidden, config.chunk or total), final_activation=False)
    return network, jax.random.normal(key_tasks, (config.tasks, config.embed_dim)), chunks


@functools.partial(jax.jit, static_argnames=("config", "total"))
def generate(config: HypernetworkConfig, network: Mlp, chunks, embeddings: jax.Array, total: int) -> jax.Array:
    """`scale H(e)`, `[..., P]` for embeddings `[..., d]`."""
    inputs = with_chunks(embeddings, chunks)
    made = network(inputs.reshape(-1, inputs.shape[-1]))
    return config.scale * made.reshape(*embeddings.shape[:-1], -1)[..., :total]


def with_chunks(embeddings: jax.Array, chunks: jax.Array | None) -> jax.Array:
    """Inputs of the network: embeddings `[..., d]`, or, with chunks, `[..., K, chunk_dim + d]`."""
    if chunks is None:
        return embeddings
    shape = (*embeddings.shape[:-1], *chunks.shape)
    tasks = jnp.broadcast_to(embeddings[..., None, :], (*shape[:-1], embeddings.shape[-1]))
    return jnp.concatenate([jnp.broadcast_to(chunks, shape), tasks], axis=-1)


def count(config: HypernetworkConfig, model: PyTree) -> int:
    """P, the number of weights that are generated."""
    return sum(leaf.size for leaf, generated in _leaves(config, model) if generated)


def put(config: HypernetworkConfig, model: PyTree, weights: jax.Array, stored: PyTree | None = None) -> PyTree:
    """The model with these weights `[P]`; of the others no gradient is taken.

    Args:
      config: says which weights.
      model: the model.
      weights: what is generated.
      stored: the model whose weights `weights` are added to if `config.residual`; None for `model`.
    """
    leaves, at = [], 0
    base = _leaves(config, model if stored is None else stored)
    for (leaf, generated), (old, _) in zip(_leaves(config, model), base, strict=True):
        if not generated:
            leaves.append(jax.lax.stop_gradient(leaf))
            continue
        new = weights[at : at + leaf.size].reshape(leaf.shape).astype(leaf.dtype)
        leaves.append(new + jax.lax.stop_gradient(old) if config.residual else new)
        at += leaf.size
    return jax.tree.unflatten(jax.tree.structure(model), leaves)


def _leaves(config: HypernetworkConfig, model: PyTree) -> list[tuple[jax.Array, bool]]:
    """The model's arrays, and which of them are generated."""
    picked = chosen(model, config.where)
    is_statistics = lambda node: isinstance(node, Statistics)

    def flags(name, node):
        generated = name in picked and not is_statistics(node)
        return jax.tree.map(lambda leaf: generated and jnp.issubdtype(leaf.dtype, jnp.floating), node)

    generated = map_with_path(flags, model, is_leaf=is_statistics)
    return list(zip(jax.tree.leaves(model), jax.tree.leaves(generated), strict=True))


@functools.partial(jax.jit, static_argnames="config")
def output_regulariser(config: HypernetworkConfig, now: jax.Array, before: jax.Array, task: jax.Array) -> jax.Array:
    """R: the mean over old tasks of the squared distances between `now` and `before`, `[T, ..., P]`; 0 for task 0.

    With a middle axis, as of the bounds and the middle of an interval, it is the mean over that axis too.
    """
    squares = jnp.sum(jnp.square(now - before), axis=-1).reshape(len(now), -1).mean(axis=1)
    total = jnp.sum(squares, where=jnp.arange(len(now)) < task)
    number = jnp.maximum(task, 1)
    power = 1 if config.normalisation == "once" else 2
    return total / number**power / (now.shape[-1] if config.reduction == "mean" else 1)


def frozen_embeddings(params):
    """The parameters, through whose task embeddings no gradient goes."""
    return params._replace(embeddings=jax.lax.stop_gradient(params.embeddings))


def ahead(config: HypernetworkConfig, context: Context, params, candidate: PyTree):
    """The parameters after the look-ahead step on the task's loss; the step is a constant."""
    if config.lookahead is None:
        return params

    def task_loss(params):
        model = context.apply(context.trained._replace(params=params))
        return jnp.mean(context.objective(model, context.batch, context.objective_key)[0])

    step, _ = config.lookahead.update(jax.grad(task_loss)(params), candidate, params)
    return jax.tree.map(lambda p, u: p + jax.lax.stop_gradient(u), params, step)


def next_candidate(config: HypernetworkConfig, context: Context, candidate: PyTree) -> PyTree:
    """The state of the look-ahead's optimiser once it has seen this step's gradient."""
    if config.lookahead is None or context.gradients is None:
        return candidate
    return config.lookahead.update(context.gradients.params, candidate, context.trained.params)[1]


def only_task(updates: Trained, task: jax.Array, fields: tuple[str, ...]) -> Trained:
    """The updates, in whose params only this task's row of the fields moves."""
    only = lambda rows: jnp.where((jnp.arange(len(rows)) == task)[:, None], rows, 0)
    params = updates.params._replace(**{name: only(getattr(updates.params, name)) for name in fields})
    return updates._replace(params=params)


def computed_once(grads: Trained, task: jax.Array) -> Trained:
    """The gradients, made before anything reads them.

    The gradient of the last layer, as large as the hypernetwork, is a sum of outer products, which XLA on a CPU would
    otherwise fuse into, and so repeat in, each of the optimiser's loops: half as much time again for a whole step. An
    optimisation barrier does not prevent that, a branch does; the other one is never taken.
    """
    return jax.lax.cond(task >= 0, lambda g: g, lambda g: jax.tree.map(jnp.zeros_like, g), grads)


def check_number(config: HypernetworkConfig, number: int) -> None:
    """Raises ValueError unless the stream has this task."""
    if not 0 <= number < config.tasks:
        raise ValueError(f"number must be in [0, {config.tasks}), the hypernetwork's tasks; got {number}")


def check_begun(begun: jax.Array | int, number: int) -> None:
    """Raises ValueError unless the task has begun."""
    if not 0 <= number < int(begun):
        raise ValueError(f"number must be that of a task that has begun, of {int(begun)}; got {number}")
