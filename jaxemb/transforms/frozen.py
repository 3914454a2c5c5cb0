"""Weights that do not move."""

import re

from jaxemb.checks import checked
from jaxemb.transforms.base import Transform, nothing
from jaxemb.trees import PyTree, Where, chosen, map_with_path, selects


@checked()
def frozen(where: Where) -> Transform:
    """Keeps the stored model's arrays that `where` chooses as they are, to the bit.

    They have no gradient, so that they count neither for clipping nor in the optimiser's moments, and no step moves
    them, wherever in a chain this stands: neither weight decay nor another transform. (What replaces the model between
    tasks, as `merge_after_task` does, still replaces all of it.) They may be bfloat16, or integers. Parameters of other
    transforms are not touched.

        frozen(r"^encoder")                                     # trains the head alone
        frozen(lambda path: not path.endswith("bias"))          # BitFit

    Args:
      where: a regular expression that is searched for in an array's path within the model, such as
        "encoder.layers.attention.query.kernel", or a function of that path.

    Raises:
      ValueError: when training starts, if it chooses no array.
    """

    def trains(model: PyTree) -> PyTree:
        picks = selects(where)
        chosen(model, where)
        return map_with_path(lambda path, _: not picks(path), model)

    return Transform(trains=trains)


def trains_only(pattern: str | None):
    """`Transform.trains` of a method that freezes the model, but for the arrays whose paths the pattern is found in.

    Raises:
      ValueError: when called, if it is found in none; None is for no arrays.
    """

    def trains(model: PyTree) -> PyTree:
        if pattern is None:
            return nothing(model)
        chosen(model, pattern)
        return map_with_path(lambda path, _: re.search(pattern, path) is not None, model)

    return trains
