"""Synaptic intelligence."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxemb.checks import checked
from jaxemb.transforms.base import Context, Task, Transform, Variables
from jaxemb.transforms.continual.quadratic import Anchored, check_weight
from jaxemb.trees import PyTree, Where, by_path, chosen, selects


class SynapticState(NamedTuple):
    """The penalty, and omega: what each weight has contributed to the fall of the loss in this task, by path."""

    held: Anchored
    path_integral: dict[str, jax.Array]


@checked()
def si(
    weight: float,
    *,
    xi: float = 0.1,
    half: bool = False,
    limit: float | None = None,
    where: Where = "",
) -> Transform:
    """Holds weights that have lowered the losses of earlier tasks near their values at the end of the last one.

        penalty       `weight sum_k Omega_k (theta_k - theta*_k)^2`
        at each step  `omega_k <- omega_k - g_k (theta_k^new - theta_k^old)`
        end of task   `Omega_k <- Omega_k + max(omega_k, 0) / ((theta_k - theta*_k)^2 + xi)`, omega <- 0,
                      theta* <- theta

    Here g is the gradient of the loss without this penalty. The step has one gradient, of everything that is minimised;
    that of the penalty is `2 weight Omega (theta - theta*)`, and g is what remains: no second backward pass. (The terms
    of other transforms count as the task's loss. Under gradient accumulation g is the gradient of all micro-batches.)

    Theta is the model as it is stored and trained, since the path is that of the optimiser: weights that another
    transform trains and adds, such as those of `lora`, are not held; those that nothing trains have no path.

    Args:
      weight: c, >= 0.
      xi: > 0, bounds Omega where weights hardly moved.
      half: whether the penalty has a factor 1/2, as Avalanche's.
      limit: largest Omega, as Avalanche's 1e-3; None for none.
      where: which arrays of the model are held; a regular expression or a function of the path.

    Raises:
      ValueError: for a bad option or, in `init`, if `where` chooses no array.

    References:
      Zenke et al. 2017, arXiv 1703.04200, equations 3 to 5.
    """
    check_weight(weight)
    if not xi > 0:
        raise ValueError(f"xi must be > 0; got {xi}")
    if limit is not None and not limit > 0:
        raise ValueError(f"limit must be > 0; got {limit}")
    scale = weight / 2 if half else weight

    def moving(model: PyTree) -> dict[str, jax.Array]:
        picks = selects(where)
        return {path: leaf for path, leaf in by_path(model).items() if picks(path)}

    def init(key: jax.Array, model: PyTree) -> Variables:
        theta = chosen(model, where)
        return Variables(state=SynapticState(Anchored.init(theta), jax.tree.map(jnp.zeros_like, theta)))

    def auxiliary_loss(context: Context, params: PyTree, state: SynapticState) -> jax.Array:
        return scale * state.held.penalty(moving(context.trained.model))

    def after_step(context: Context, params: PyTree, state: SynapticState) -> SynapticState:
        assert context.gradients is not None and context.updates is not None
        gradients, updates = moving(context.gradients.model), moving(context.updates.model)
        new, held = moving(context.trained.model), state.held

        def contribution(path: str) -> jax.Array:
            before = new[path] - updates[path]
            own = 2 * scale * held.importance[path] * (before - held.anchor[path])
            return -(gradients[path] - own) * updates[path]

        moved = {path: state.path_integral[path] + contribution(path) for path in new}
        return state._replace(path_integral=state.path_integral | moved)

    def end_task(task: Task, context: Context, params: PyTree, state: SynapticState):
        theta = chosen(context.stored, where)
        importance = {
            path: jnp.maximum(omega, 0) / (jnp.square(theta[path] - state.held.anchor[path]) + xi)
            for path, omega in state.path_integral.items()
        }
        held = state.held.moved(importance, theta)
        if limit is not None:
            held = held._replace(importance={path: jnp.minimum(x, limit) for path, x in held.importance.items()})
        return context.trained, SynapticState(held, jax.tree.map(jnp.zeros_like, theta))

    return Transform(init=init, auxiliary_loss=auxiliary_loss, after_step=after_step, end_task=end_task)
