"""The train step: objective + optimiser + transform = one pure function `(state, batch) -> (state, metrics)`."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import optax

from jaxemb.checks import checked
from jaxemb.objectives import Objective
from jaxemb.train.state import TrainState, contexts
from jaxemb.transforms import Trained, Transform, identity, trained_arrays
from jaxemb.transforms.base import call_hook
from jaxemb.trees import PyTree, partition

TrainStep = Callable[[TrainState, PyTree], tuple[TrainState, dict[str, jax.Array]]]


@checked()
def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    transform: Transform | None = None,
    *,
    accumulate: int = 1,
) -> TrainStep:
    """The pure train step; compile it with `jax.jit(step, donate_argnums=0)`.

    It minimises `mean(loss(objective(model, batch, key))) + auxiliary_loss`, all but the objective being hooks of the
    transform, with respect to what that trains; of all else no gradient is computed.

    With `accumulate` = A > 1 every array of the batch has a leading axis A of micro-batches, which are run one after
    another: the gradient is the mean of theirs, so a loss that treats records one by one trains as on the batch of
    all of them. (A contrastive loss sees only the negatives of its own micro-batch.)

    A loss or gradient that is not finite leaves the state as it was, but for `finite`, which turns False and makes
    every later step do nothing: the host may look at the metrics late and still stops at the exact state.

    Args:
      objective: `(model, batch, key) -> (losses [N], outputs)`.
      optimizer: of `trainable(transform, state)`; clipping and schedules are part of it.
      transform: the training method; None is `identity()`.
      accumulate: number of micro-batches per step.

    Returns:
      `(state, batch) -> (state, metrics)`; metrics are f32 scalars `loss` (of the whole minimised function),
      `grad_norm` (global, of what the optimiser is given, so before clipping), `learning_rate` if the optimiser
      exposes it through `optax.inject_hyperparams`, and `finite` (bool).

    Raises:
      ValueError: if `accumulate` is below 1.
    """
    transform = identity() if transform is None else transform
    if accumulate < 1:
        raise ValueError(f"accumulate must be at least 1; got {accumulate}")

    def step(state: TrainState, batch: PyTree) -> tuple[TrainState, dict[str, jax.Array]]:
        mask = trained_arrays(transform, state.model)
        model, frozen = partition(state.model, mask)
        now, old = Trained(model, state.method_params), state.method_state
        context_of = contexts(transform, objective, state, frozen)
        key = jax.random.fold_in(state.key, state.step)

        def total_loss(trained: Trained, raw_batch: PyTree, key: jax.Array):
            context = context_of(trained, key, raw_batch=raw_batch)
            batch = context.prepare(raw_batch, trained, key)
            context = context._replace(batch=batch, model=context.apply(trained))
            losses, outputs = _checked(objective(context.model, batch, key))
            context = context._replace(outputs=outputs)
            losses = call_hook(transform, "loss", losses, context, trained.params, old)
            term = call_hook(transform, "auxiliary_loss", context, trained.params, old)
            return jnp.mean(losses) + term, (outputs, batch)

        value_and_grad = jax.value_and_grad(total_loss, has_aux=True)
        if accumulate == 1:
            (loss, (outputs, prepared)), grads = value_and_grad(now, batch, key)
        else:
            loss, (outputs, prepared), grads = _accumulated(value_and_grad, now, batch, key, accumulate)

        context = context_of(now, key, raw_batch=batch, batch=prepared, outputs=outputs, stacked=accumulate > 1)
        hooked = call_hook(transform, "gradients", grads, context, now.params, old)
        grad_norm = optax.tree.norm(hooked)
        finite = state.finite & jnp.isfinite(loss) & jnp.isfinite(grad_norm)

        updates, opt_state = optimizer.update(hooked, state.opt_state, now)
        context = context._replace(gradients=grads)
        updates = call_hook(transform, "updates", updates, context, now.params, old)
        # What a step changes everywhere is selected, array by array. A transform's state may be a large buffer of which
        # a step writes a few rows: a branch writes them in place, while a selection would read and write all of it.
        kept = lambda new, before: jax.tree.map(lambda x, y: jnp.where(finite, x, y), new, before)
        whole = _moved(Trained(context.stored, now.params), updates, finite)
        trained = whole._replace(model=partition(whole.model, mask)[0])
        context = context._replace(trained=trained, stored=whole.model, updates=updates)
        after = lambda: call_hook(transform, "after_step", context, trained.params, old)
        method_state = jax.lax.cond(finite, after, lambda: old)
        next_state = TrainState(
            step=state.step + finite,
            model=whole.model,
            method_params=trained.params,
            method_state=method_state,
            opt_state=kept(opt_state, state.opt_state),
            key=state.key,
            finite=finite,
        )
        metrics = {"loss": loss, "grad_norm": grad_norm, "finite": finite}
        if (rate := _learning_rate(opt_state)) is not None:
            metrics["learning_rate"] = rate
        return next_state, metrics

    return step


def _checked(given: tuple[jax.Array, PyTree]) -> tuple[jax.Array, PyTree]:
    """What the objective gives."""
    if not (isinstance(given, tuple) and len(given) == 2):
        raise ValueError(f"the objective must give a pair, (losses [N], outputs); got {type(given).__name__}")
    if jnp.ndim(given[0]) != 1:
        hint = ": leave the mean to the train step" if jnp.ndim(given[0]) == 0 else ""
        shape = jnp.shape(given[0])
        raise ValueError(f"the objective must give one value per record, [N]; got an array of shape {shape}{hint}")
    return given


def _moved(trained: Trained, updates: Trained, finite: jax.Array) -> Trained:
    """The sum, if it is finite; an array without an update stays as it is."""
    move = lambda x, u: x if u is None else jnp.where(finite, (x + u).astype(x.dtype), x)
    return jax.tree.map(move, trained, updates, is_leaf=lambda x: x is None)


def _learning_rate(opt_state: PyTree) -> jax.Array | None:
    """The one that the optimiser exposes, if it is one."""
    found = optax.tree.get_all_with_path(opt_state, "hyperparams")
    rates = [values["learning_rate"] for _, values in found if "learning_rate" in values]
    return rates[0] if len(rates) == 1 else None


def _accumulated(value_and_grad, trained: Trained, batch: PyTree, key: jax.Array, count: int):
    """The mean loss and gradient over micro-batches, and their outputs stacked."""
    for leaf in jax.tree.leaves(batch):
        chex.assert_axis_dimension(leaf, 0, count)

    def micro_step(total, inputs):
        (loss, outputs), grads = value_and_grad(trained, *inputs)
        return jax.tree.map(jnp.add, total, (loss, grads)), outputs

    # In at least f32: the sum of many gradients in bf16 would stop growing.
    wide = lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32))
    zeros = (jnp.zeros(()), jax.tree.map(wide, trained))
    total, outputs = jax.lax.scan(micro_step, zeros, (batch, jax.random.split(key, count)))
    loss, grads = jax.tree.map(lambda x: x / count, total)
    return loss, outputs, jax.tree.map(lambda g, x: g.astype(x.dtype), grads, trained)
