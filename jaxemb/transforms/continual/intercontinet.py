"""InterContiNet: every task contracts the interval of each weight, so that later weights solve earlier tasks too."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxemb.checks import check_types, checked
from jaxemb.encoders.convolutional import Statistics
from jaxemb.interval import bound, worst_case_logits
from jaxemb.nn.classes import class_cross_entropy
from jaxemb.objectives.classification import competing
from jaxemb.transforms.base import Context, Task, Trained, Transform, Variables, nothing, output_of
from jaxemb.trees import PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class InterContiNetConfig:
    """How intervals contract.

    Attributes:
      max_radius: radius of every weight's interval before the first task; > 0.
      contraction_steps: the last steps of a task, in which its interval shrinks.
      threshold: shrink only while the worst-case accuracy is below so much of the plain accuracy, in [0, 1].
      scale_init: logit of the part of the radius that is kept, at the beginning of every task.
      normalize_shift: divide the shifts' logits by the radii.
      window: batches whose accuracies are averaged.
      input, label, classes: columns of the batch, as in `objectives.classification`.

    Raises:
      ValueError: for a number out of its range.
    """

    max_radius: float = 1.0
    contraction_steps: int = 100
    threshold: float = 0.9
    scale_init: float = 5.0
    normalize_shift: bool = True
    window: int = 10
    input: str = "input"
    label: str = "label"
    classes: str = "classes"

    def __post_init__(self):
        check_types(self)
        if not self.max_radius > 0:
            raise ValueError(f"max_radius must be > 0; got {self.max_radius}")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must be in [0, 1]; got {self.threshold}")
        if self.contraction_steps < 0:
            raise ValueError(f"contraction_steps must be >= 0; got {self.contraction_steps}")
        if self.window < 1:
            raise ValueError(f"window must be at least 1; got {self.window}")


class InterContiNetParams(NamedTuple):
    """Logits of the shift and of the scale of every weight's interval, trees like the model."""

    shift: PyTree
    scale: PyTree


class InterContiNetState(NamedTuple):
    """What InterContiNet carries.

    Attributes:
      radius: of every weight's interval, around the stored model, a tree like it.
      step, steps: those done of this task, and those that it takes, int32 scalars.
      plain, worst: accuracies of the last batches, the newest first, `[window]`; NaN before.
    """

    radius: PyTree
    step: jax.Array
    steps: jax.Array
    plain: jax.Array
    worst: jax.Array


@checked()
def intercontinet(config: InterContiNetConfig) -> Transform:
    """Trains the interval of every weight within the interval that the tasks before have left.

    A weight's interval has centre w, the stored model, and radius R. Within it lies the interval

        centre w + s R,  s = tanh(shift / R);  radius sigmoid(scale) (1 - |s|) R,

    whose centre the model of a forward pass has. In a task's first phase, shifts are trained on the objective,
    `objectives.classification`; in the second, the last `contraction_steps`, scales are trained on the cross-entropy of
    the worst logits over the interval, bounded by `interval.bound`, while its accuracy is too low. At the end of the
    task the new interval takes the place of the old one. So every weight stays in the intervals of all the tasks, whose
    worst cases bound their losses; accuracy is given up instead.

    Args:
      config: see there.

    Raises:
      ValueError: from `init` for a model with running statistics; from `begin_task` if the task has not more steps than
        `contraction_steps`.

    References:
      Wołczyk et al. 2022, ICML; github.com/gmum/InterContiNet. There a phase is of epochs, with SGD for the shifts.
    """

    def init(key: jax.Array, model: PyTree) -> Variables:
        if any(isinstance(n, Statistics) for n in jax.tree.leaves(model, is_leaf=lambda n: isinstance(n, Statistics))):
            raise ValueError("intercontinet has no intervals for running statistics, which the model has")
        full = lambda value: jax.tree.map(lambda leaf: jnp.full(leaf.shape, value, leaf.dtype), model)
        zero, unknown = jnp.zeros((), jnp.int32), jnp.full(config.window, jnp.nan, jnp.float32)
        params = InterContiNetParams(full(0.0), full(config.scale_init))
        return Variables(params, InterContiNetState(full(config.max_radius), zero, zero, unknown, unknown))

    def begin_task(task: Task, context: Context, params: InterContiNetParams, state: InterContiNetState):
        if task.steps <= (least := config.contraction_steps):
            raise ValueError(f"a task must have more than contraction_steps = {least} steps; got {task.steps}")
        unknown = jnp.full(config.window, jnp.nan, jnp.float32)
        steps = jnp.asarray(task.steps, jnp.int32)
        return context.trained, state._replace(step=jnp.zeros((), jnp.int32), steps=steps, plain=unknown, worst=unknown)

    shifted, kept = functools.partial(_shifted, config), functools.partial(_kept, config)

    def model(model: PyTree, params: InterContiNetParams, state: InterContiNetState) -> PyTree:
        return jax.tree.map(shifted, model, params.shift, state.radius)

    def contracting(state: InterContiNetState) -> jax.Array:
        return state.step >= state.steps - config.contraction_steps

    def worst_logits(batch: PyTree, key: jax.Array | None, model: PyTree, params: InterContiNetParams, state):
        return _worst_logits(config, batch, key, model, jax.tree.map(kept, params.shift, params.scale, state.radius))

    def loss(losses: jax.Array, context: Context, params: InterContiNetParams, state: InterContiNetState) -> jax.Array:
        output_of(context, "logits", "intercontinet")
        batch, key = context.batch, context.objective_key
        entropies = lambda z: class_cross_entropy(z, batch[config.label])
        worst = lambda: entropies(worst_logits(batch, key, context.model, params, state))
        return jax.lax.cond(contracting(state), worst, lambda: losses)

    def updates(updates: Trained, context: Context, params, state: InterContiNetState) -> Trained:
        second = contracting(state)
        # Unknown accuracies, at the beginning of the second phase, are low ones.
        enough = jnp.nanmean(state.worst) >= config.threshold * jnp.nanmean(state.plain)
        only = lambda flag, tree: jax.tree.map(lambda u: jnp.where(flag, u, 0), tree)
        new = InterContiNetParams(only(~second, updates.params.shift), only(second & ~enough, updates.params.scale))
        return updates._replace(params=new)

    def after_step(context: Context, params: InterContiNetParams, state: InterContiNetState) -> InterContiNetState:
        def accuracies(batch: PyTree, logits: jax.Array, model: PyTree) -> tuple[jax.Array, jax.Array]:
            right = lambda z: jnp.mean((jnp.argmax(z, axis=-1) == batch[config.label]).astype(jnp.float32))
            worst = right(worst_logits(batch, context.objective_key, model, params, state))
            return right(competing(logits, batch.get(config.classes))), worst

        def measured():
            of_batch = functools.partial(accuracies, model=context.apply(context.trained))
            found = (jax.vmap(of_batch) if context.stacked else of_batch)(context.batch, context.outputs["logits"])
            push = lambda values, new: jnp.concatenate([jnp.mean(new)[None], values[:-1]])
            return push(state.plain, found[0]), push(state.worst, found[1])

        plain, worst = jax.lax.cond(contracting(state), measured, lambda: (state.plain, state.worst))
        return state._replace(step=state.step + 1, plain=plain, worst=worst)

    def end_task(task: Task, context: Context, params: InterContiNetParams, state: InterContiNetState):
        stored = jax.tree.map(shifted, context.stored, params.shift, state.radius)
        radius = jax.tree.map(kept, params.shift, params.scale, state.radius)
        fresh = init(context.key, stored).params
        return context.trained._replace(model=stored, params=fresh), state._replace(radius=radius)

    return Transform(
        init=init,
        trains=nothing,
        begin_task=begin_task,
        model=model,
        loss=loss,
        updates=updates,
        after_step=after_step,
        end_task=end_task,
    )


def _worst_logits(config: InterContiNetConfig, batch: PyTree, key: jax.Array | None, model: PyTree, radius: PyTree):
    """The worst logits of the classes that compete, over the interval around the model, `[N, C]`."""
    lower, upper = jax.tree.map(jnp.subtract, model, radius), jax.tree.map(jnp.add, model, radius)
    logits = lambda model: model(batch[config.input], key=key)
    labels, classes = batch[config.label], batch.get(config.classes)
    return competing(worst_case_logits(*bound(logits)((lower,), (upper,)), labels), classes)


def _shifted(config: InterContiNetConfig, stored: jax.Array, shift: jax.Array, radius: jax.Array) -> jax.Array:
    """The new centre."""
    return jax.lax.stop_gradient(stored) + _share(config, shift, radius) * radius


def _kept(config: InterContiNetConfig, shift: jax.Array, scale: jax.Array, radius: jax.Array) -> jax.Array:
    """The new radius."""
    return jax.nn.sigmoid(scale) * (1 - jnp.abs(_share(config, shift, radius))) * radius


def _share(config: InterContiNetConfig, shift: jax.Array, radius: jax.Array) -> jax.Array:
    """Where in the old interval the new centre lies, in (-1, 1)."""
    return jnp.tanh(shift / jnp.maximum(radius, 1e-8) if config.normalize_shift else shift)
