"""The train step: objective + optimiser + transform = one pure function `(state, batch) -> (state, metrics)`."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import optax

from jaxemb.objectives import Objective
from jaxemb.train.state import TrainState
from jaxemb.transforms import Context, Trained, Transform, identity
from jaxemb.trees import PyTree

TrainStep = Callable[[TrainState, PyTree], tuple[TrainState, dict[str, jax.Array]]]


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    transform: Transform | None = None,
    *,
    accumulate: int = 1,
) -> TrainStep:
    """The pure train step; compile it with `jax.jit(step, donate_argnums=0)`.

    It minimises `mean_n objective(transform.model(model), batch, key)_n + transform.loss(...)`.

    With `accumulate` = A > 1 every array of the batch has a leading axis A of micro-batches, which are run one after
    another: the gradient is the mean of theirs, so a loss that treats records one by one trains as on the batch of
    all of them. (A contrastive loss sees only the negatives of its own micro-batch.)

    A loss or gradient that is not finite leaves the state as it was, but for `finite`, which turns False and makes
    every later step do nothing: the host may look at the metrics late and still stops at the exact state.

    Args:
      objective: `(model, batch, key) -> (losses [N], outputs)`.
      optimizer: of `Trained(model, params)`; clipping and schedules are part of it.
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
        apply = lambda trained: transform.model(trained.model, trained.params, state.method_state)
        key = jax.random.fold_in(state.key, state.step)
        context = Context(state.step, key, objective, apply, state.trained, batch)

        def total_loss(trained: Trained, batch: PyTree, key: jax.Array):
            model = apply(trained)
            losses, outputs = objective(model, batch, key)
            chex.assert_rank(losses, 1)
            seen = context._replace(trained=trained, batch=batch, key=key, model=model, outputs=outputs)
            return jnp.mean(losses) + transform.loss(seen, trained.params, state.method_state), outputs

        value_and_grad = jax.value_and_grad(total_loss, has_aux=True)
        if accumulate == 1:
            (loss, outputs), grads = value_and_grad(state.trained, batch, key)
        else:
            loss, outputs, grads = _accumulated(value_and_grad, state.trained, batch, key, accumulate)

        context = context._replace(outputs=outputs)
        hooked = transform.gradients(grads, context, state.method_params, state.method_state)
        grad_norm = optax.tree.norm(hooked)
        finite = state.finite & jnp.isfinite(loss) & jnp.isfinite(grad_norm)

        updates, opt_state = optimizer.update(hooked, state.opt_state, state.trained)
        context = context._replace(gradients=grads)
        updates = transform.updates(updates, context, state.method_params, state.method_state)
        # What a step changes everywhere is selected, array by array. A transform's state may be a large buffer of which
        # a step writes a few rows: a branch writes them in place, while a selection would read and write all of it.
        kept = lambda new, old: jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, old)
        trained = kept(optax.apply_updates(state.trained, updates), state.trained)
        context = context._replace(trained=trained, updates=updates)
        method_state = jax.lax.cond(
            finite,
            lambda: transform.after_step(context, trained.params, state.method_state),
            lambda: state.method_state,
        )
        next_state = TrainState(
            step=state.step + finite,
            model=trained.model,
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

    zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, trained))
    total, outputs = jax.lax.scan(micro_step, zeros, (batch, jax.random.split(key, count)))
    loss, grads = jax.tree.map(lambda x: x / count, total)
    return loss, outputs, grads
