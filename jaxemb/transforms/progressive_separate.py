"""Progressive separate training: targets come from the stage before, weights from the start (DefSent+).

transform = progressive_separate_training(make, (V, D))
for stage in range(3):
    state = begin_task(transform, objective, state, Task(stage))
    state = dataclasses.replace(state, opt_state=optimizer.init(trainable(transform, state)))
    ...  # steps
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxemb.checks import checked
from jaxemb.transforms.base import Context, Task, Trained, Transform, Variables, with_column
from jaxemb.trees import PyTree


class EntryState(NamedTuple):
    """State of `progressive_separate_training`.

    Attributes:
      entries: embeddings of the dictionary's entries, f32 `[V, D]`; 0 before the first stage.
      original: the model as it was at first.
    """

    entries: jax.Array
    original: PyTree


@checked()
def progressive_separate_training(
    make_entries: Callable[[int, PyTree], np.ndarray | jax.Array], shape: tuple[int, int], *, column: str = "entries"
) -> Transform:
    """Trains a model in stages, which are tasks, towards what it makes of targets itself; see `definition_to_entry`.

    A stage starts with the embeddings of entries that the model of the stage before gives, the first one with those of
    the original model; the objective finds them as a column of the batch. Then the model becomes the original one
    again: only the targets progress. The optimiser's state is the loop's to reset. Stands first in a chain; parameters
    of other transforms are not reset.

    Args:
      make_entries: `(stage, model) -> [V, D]`, stages counted from 0: `pretraining.entry_embeddings`, and what makes
        them isotropic in the stages where that is wanted.
      shape: (V, D).
      column: name of the entries in the batch, f32 `[V, D]`.

    Returns:
      The transform; its state is an `EntryState`.

    Raises:
      ValueError: if `make_entries` gives another shape, or what is not finite.

    References:
      Liu 2024, https://arxiv.org/abs/2405.16153 (PST).
    """

    def init(key: jax.Array, model: PyTree) -> Variables:
        return Variables(state=EntryState(jnp.zeros(shape), model))

    def begin_task(task: Task, context: Context, params: PyTree, state: EntryState) -> tuple[Trained, EntryState]:
        entries = np.asarray(make_entries(task.number, context.apply(context.trained)), np.float32)
        if entries.shape != tuple(shape) or not np.isfinite(entries).all():
            raise ValueError(f"make_entries must give finite entries of shape {tuple(shape)}; got {entries.shape}")
        return context.trained._replace(model=state.original), state._replace(entries=jnp.asarray(entries))

    def batch(batch: PyTree, context: Context, params: PyTree, state: EntryState) -> PyTree:
        return with_column(batch, column, state.entries, "progressive_separate_training")

    return Transform(init=init, begin_task=begin_task, batch=batch)
