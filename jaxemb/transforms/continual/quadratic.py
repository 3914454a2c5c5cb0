"""Quadratic penalties, which hold the weights near those of earlier tasks (L2; also what EWC, SI and MAS add)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxemb.checks import checked
from jaxemb.transforms.base import Context, Task, Transform, Variables
from jaxemb.trees import PyTree, Where, chosen


class Anchored(NamedTuple):
    """The penalty `sum_k importance_k (theta_k - anchor_k)^2 + constant`; arrays by path.

    Before the end of the first task the importance is 0.
    """

    importance: dict[str, jax.Array]
    anchor: dict[str, jax.Array]
    constant: jax.Array

    @classmethod
    def init(cls, theta: dict[str, jax.Array]) -> "Anchored":
        """No penalty yet."""
        return cls({path: jnp.zeros_like(x) for path, x in theta.items()}, theta, jnp.zeros(()))

    def penalty(self, theta: dict[str, jax.Array]) -> jax.Array:
        """Its value at `theta`, f32 scalar; weights that `theta` lacks have not moved."""
        terms = (jnp.sum(self.importance[path] * jnp.square(x - self.anchor[path])) for path, x in theta.items())
        return sum(terms, self.constant)

    @jax.jit
    def moved(self, importance: dict[str, jax.Array], theta: dict[str, jax.Array], gamma: float = 1.0) -> "Anchored":
        """One penalty, at `theta`, of importance `gamma` times the old plus the new."""
        together = {path: gamma * old + importance[path] for path, old in self.importance.items()}
        return Anchored(together, theta, jnp.zeros(()))

    @jax.jit
    def plus(self, importance: dict[str, jax.Array], theta: dict[str, jax.Array]) -> "Anchored":
        """The sum with one more penalty: again one, at the mean of their anchors that their importances weight."""
        # F a^2 + G b^2 with a = theta - A, b = theta - B is (F + G) (theta - M)^2 + F G / (F + G) (A - B)^2.
        share = {
            path: jnp.where(new > 0, new / jnp.where(new > 0, self.importance[path] + new, 1), 0)
            for path, new in importance.items()
        }
        away = {path: x - self.anchor[path] for path, x in theta.items()}
        apart = (jnp.sum(s * self.importance[path] * jnp.square(away[path])) for path, s in share.items())
        return Anchored(
            {path: old + importance[path] for path, old in self.importance.items()},
            {path: x + share[path] * away[path] for path, x in self.anchor.items()},
            sum(apart, self.constant),
        )


@checked()
def l2(weight: float, *, where: Where = "") -> Transform:
    """Adds `weight * |theta - theta*|^2`, theta* being the weights at the end of the last task; nothing in the first.

    Theta is the model that the forward pass uses: in a chain, stand after the transforms that change it.

    Args:
      weight: >= 0.
      where: which arrays of the model are held; a regular expression or a function of the path.

    Raises:
      ValueError: for a negative weight or, in `init`, if `where` chooses no array.
    """
    check_weight(weight)

    def move(task: Task, context: Context, state: Anchored, theta: dict[str, jax.Array]) -> Anchored:
        return state.moved({path: jnp.ones_like(x) for path, x in theta.items()}, theta, gamma=0.0)

    return anchored(weight, where, move)


def anchored(
    weight: float, where: Where, move: Callable[[Task, Context, Anchored, dict[str, jax.Array]], Anchored]
) -> Transform:
    """Adds `weight` times a quadratic penalty, which `move(task, context, penalty, theta)` renews as a task ends.

    Theta are the arrays that `where` chooses of the model that the forward pass uses.
    """

    def init(key: jax.Array, model: PyTree) -> Variables:
        return Variables(state=Anchored.init(chosen(model, where)))

    def auxiliary_loss(context: Context, params: PyTree, state: Anchored) -> jax.Array:
        return weight * state.penalty(chosen(context.model, where))

    def end_task(task: Task, context: Context, params: PyTree, state: Anchored):
        theta = chosen(context.apply(context.trained), where)
        return context.trained, move(task, context, state, theta)

    return Transform(init=init, auxiliary_loss=auxiliary_loss, end_task=end_task)


def check_weight(weight: float) -> None:
    """Raises ValueError for a negative weight."""
    if not weight >= 0:
        raise ValueError(f"weight must be >= 0; got {weight}")
