"""Evaluators for `run_stream`: `(state, experience, number, seen) -> score`."""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxemb.continual.loop import Evaluate
from jaxemb.continual.streams import Columns, Experience, count, rows
from jaxemb.train import TrainState, express
from jaxemb.transforms import Transform, identity

PyTree = Any
Predict = Callable[[TrainState, PyTree, jax.Array], jax.Array]


def accuracy(
    predict: Predict | None = None,
    scenario: Literal["task", "class", "domain"] = "class",
    *,
    transform: Transform | None = None,
    input: str = "input",
    batch_size: int = 1000,
) -> Evaluate:
    """The fraction of test records whose label has the largest logit among those that compete.

    The scenario says which compete: in "task" the classes of the experience, in "class" all classes seen so far, in
    "domain" all. The first of equal logits counts.

    Args:
      predict: `(state, inputs, number) -> logits [N, C]`, traced once for all tasks (number is an int32 scalar);
        None is the model as trained, `express(transform, state)(inputs)`.
      scenario: see above.
      transform: that of the run, if `predict` is None.
      input: the column of inputs; the labels are in "label".
      batch_size: largest number of records at once.

    Raises:
      ValueError: for another scenario; when called, if an experience has no classes and the scenario needs them.
    """
    if scenario not in ("task", "class", "domain"):
        raise ValueError(f"scenario must be 'task', 'class' or 'domain'; got {scenario!r}")
    logits = predict or _expressed(transform)

    @jax.jit
    def hits(state, inputs, labels, number, compete):
        scores = logits(state, inputs, number)
        if compete is not None:
            scores = jnp.where(compete, scores, -jnp.inf)
        return jnp.sum(jnp.argmax(scores, axis=-1) == labels)

    def evaluate(state: TrainState, experience: Experience, number: int, seen: np.ndarray | None) -> float:
        compete = {"task": experience.classes, "class": seen, "domain": None}[scenario]
        if compete is None and scenario != "domain":
            raise ValueError(f"task {experience.name!r} has no classes; the scenario {scenario!r} needs them")
        found = 0
        # Rows added to the last batch have no label, so they are never hit.
        for batch in _batches({"input": experience.test[input], "label": experience.test["label"]}, batch_size):
            found += int(hits(state, batch["input"], batch["label"], np.int32(number), compete))
        return found / count(experience.test)

    return evaluate


def _expressed(transform: Transform | None) -> Predict:
    used = identity() if transform is None else transform
    return lambda state, inputs, number: express(used, state)(inputs)


def _batches(columns: Columns, batch_size: int) -> Iterator[dict[str, Any]]:
    """The rows in order; the last batch is filled up with the first rows, whose "label" then is -1.

    Batches are of a power of two, so that few programs serve data of any size.
    """
    total = count(columns)
    size = min(batch_size, 1 << (total - 1).bit_length())
    for start in range(0, total, size):
        which = np.arange(start, start + size)
        batch = rows(columns, np.where(which < total, which, 0))
        if "label" in batch:
            batch["label"] = np.where(which < total, batch["label"], -1)
        yield batch
