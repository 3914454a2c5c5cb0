"""Weights that do not move."""

import jax.numpy as jnp

from jaxemb.transforms.base import Context, Trained, Transform, Variables
from jaxemb.trees import PyTree, Where, chosen, replaced


def frozen(where: Where) -> Transform:
    """Keeps the model's arrays that `where` chooses as they are, to the bit.

    Their gradients become 0, so that they count neither for clipping nor in the optimiser's moments, and so do their
    updates, which weight decay or momentum would still give them. In a chain, stand after the transforms that change
    gradients or updates. Parameters of other transforms are not touched.

        frozen(r"^encoder")                                     # trains the head alone
        frozen(lambda path: not path.endswith("bias"))          # BitFit

    The optimiser keeps moments for frozen arrays too; where that memory counts, give it `optax.masked`.

    Args:
      where: a regular expression that is searched for in an array's path within the model, such as
        "encoder.layers.attention.query.kernel", or a function of that path.

    Raises:
      ValueError: in `init`, if it chooses no array.
    """

    def init(key, model: PyTree) -> Variables:
        chosen(model, where)
        return Variables()

    def still(tree: Trained, context: Context, params: PyTree, state: PyTree) -> Trained:
        return tree._replace(model=replaced(tree.model, where, lambda path, leaf: jnp.zeros_like(leaf)))

    return Transform(init=init, gradients=still, updates=still)
