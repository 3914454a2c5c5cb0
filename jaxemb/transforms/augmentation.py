"""Augmentation: inputs that are changed at random, in every step anew."""

from collections.abc import Callable

import jax

from jaxemb.checks import checked
from jaxemb.transforms.base import Context, Transform
from jaxemb.trees import PyTree


@checked()
def augmentation(augment: Callable[[jax.Array, PyTree], PyTree]) -> Transform:
    """Gives the objective `augment(key, batch)` in place of every batch.

        noise = lambda key, x: x + 0.1 * jax.random.normal(key, x.shape)
        augmentation(lambda key, batch: {**batch, "input": noise(key, batch["input"])})

    What a method keeps of the data are the inputs as they came, which are augmented anew when they are replayed. What
    it looks at between tasks is not augmented, as dropout is off there.

    Args:
      augment: `(key, batch) -> batch`, traced.

    Raises:
      TypeError: unless augment is a function.
    """
    if not callable(augment):
        raise TypeError(f"augment must be a function of a key and a batch; got {augment!r}")

    def batch(batch: PyTree, context: Context, params: PyTree, state: PyTree) -> PyTree:
        return batch if context.key is None else augment(context.key, batch)

    return Transform(batch=batch)
