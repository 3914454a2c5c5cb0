"""Streams of tasks: what a continual learner meets, one `Experience` after another.

The builders take columns, as a data set has them, and deal them out to T tasks, on the host, deterministically.
Three scenarios (van de Ven and Tolias 2019, arXiv 1904.07734) differ in what a test tells the learner:

  task     the task is known, its classes compete         `split_by_class`, or any stream through `separate_heads`
  class    all classes seen so far compete                `split_by_class`, `blurry`
  domain   every task has the same classes                `permuted`, `rotated`, `from_domains`
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from scipy import ndimage

from jaxemb.checks import check_types, checked, described, having_keys, size

Columns = Mapping[str, Any]
COLLECTION = "collection"
_labels, _inputs = having_keys("label"), having_keys("input", "label")
"""Where the `test` of a task of embeddings has what it is scored on."""


@dataclasses.dataclass(frozen=True)
class Experience:
    """One task of a stream.

    Attributes:
      name: what tables and plots call it.
      train, test: columns, arrays or pytrees of arrays (`Tokens`) with one row per record: "input", "label", ...; a
        retrieval task has its collection under "collection" in `test`, see `embedding_stream`.
      valid: as `train`, held out of it; None without one.
      classes: the classes in `train`, bool `[C]`, C = classes of the whole stream; None where there are no classes.

    Raises:
      TypeError: if columns are no mapping.
      ValueError: if labels of a column set are no classes of the task.
    """

    name: str
    train: Columns
    test: Columns
    valid: Columns | None = None
    classes: np.ndarray | None = None

    def __post_init__(self) -> None:
        check_types(self)
        if self.classes is None:
            return
        if self.classes.ndim != 1 or self.classes.dtype != bool:
            raise ValueError(f"classes of task {self.name!r} must be bool [C]; got {described(self.classes)}")
        for split in ("train", "valid", "test"):
            labels = np.unique((getattr(self, split) or {}).get("label", np.zeros(0, np.int32)))
            known = (labels >= 0) & (labels < len(self.classes))
            known[known] = self.classes[labels[known]]
            if not known.all():
                raise ValueError(
                    f"{split} labels of task {self.name!r} must be among its classes "
                    f"{np.flatnonzero(self.classes).tolist()}; got {labels[~known].tolist()}"
                )


@checked(train=_labels, test=_labels, valid=_labels)
def split_by_class(
    train: Columns,
    test: Columns,
    tasks: int | Sequence[Sequence[int]],
    *,
    valid: Columns | None = None,
    order: Sequence[int] | None = None,
    first: int | None = None,
) -> list[Experience]:
    """Every task has classes of its own: Split MNIST is `split_by_class(train, test, 5)`.

    Args:
      train, test, valid: columns with "label", int `[N]`, classes from 0 to C-1; labels keep their values.
      tasks: T, the number of tasks, of equally many classes; or the classes of each.
      order: the classes in order of appearance, a permutation of 0..C-1; None is that order itself.
      first: number of classes in the first task, where that is larger (50 + 10 x 5 has 50); the others share the rest.

    Raises:
      ValueError: if there are fewer than 2 tasks, the classes do not divide evenly, `order` is no permutation, tasks
        have a class in common, or a test label is of no training class.
    """
    classes = 1 + int(np.max(train["label"]))
    groups = _groups(classes, tasks, order, first) if isinstance(tasks, int) else [list(group) for group in tasks]
    _check_tasks(len(groups))
    flat = [c for group in groups for c in group]
    if repeated := sorted({c for c in flat if flat.count(c) > 1}):
        raise ValueError(f"tasks of a class-incremental stream must have no class in common; {repeated} are in several")
    if unseen := sorted({int(c) for c in np.unique(test["label"])} - set(range(classes))):
        raise ValueError(f"test labels must be of classes in train, 0 to {classes - 1}; got {unseen}")

    def one(group: list[int]) -> Experience:
        part = lambda columns: rows(columns, np.isin(columns["label"], group))
        name = f"{group[0]}-{group[-1]}" if len(group) > 1 else f"{group[0]}"
        return Experience(name, part(train), part(test), valid and part(valid), _mask(group, classes))

    return [one(group) for group in groups]


@checked(train=_labels, test=_labels)
def blurry(train: Columns, test: Columns, tasks: int, *, overlap: float, seed: int = 0) -> list[Experience]:
    """As `split_by_class`, but a part of each class's training data comes in the other tasks.

    Of every class the fraction `overlap` of the training rows, drawn at random, is dealt out evenly to the T-1 tasks
    that it does not belong to. The tests stay those of `split_by_class`.

    Raises:
      ValueError: for an overlap outside 0..1, and as `split_by_class`.

    Source: the "blurry" setting of Bang et al. 2021, arXiv 2103.17230, section 3.
    """
    if not 0 <= overlap <= 1:
        raise ValueError(f"overlap must be in 0..1; got {overlap}")
    sharp = split_by_class(train, test, tasks)
    rng = np.random.default_rng(seed)
    labels = np.asarray(train["label"])
    classes = 1 + int(np.max(labels))
    owner = np.zeros(len(labels), np.int64)
    for t, task in enumerate(sharp):
        for c in _present(task):
            mine = rng.permutation(np.flatnonzero(labels == c))
            away = round(overlap * len(mine))
            owner[mine] = t
            owner[mine[:away]] = rng.permutation(np.arange(away) % (tasks - 1))
            owner[mine[:away]] += owner[mine[:away]] >= t

    def one(t: int, task: Experience) -> Experience:
        part = rows(train, owner == t)
        present = np.concatenate([np.unique(part["label"]), _present(task)])
        return dataclasses.replace(task, train=part, classes=_mask(present, classes))

    return [one(t, task) for t, task in enumerate(sharp)]


@checked(train=_inputs, test=_inputs, valid=_inputs, tasks=size)
def permuted(
    train: Columns,
    test: Columns,
    tasks: int,
    *,
    valid: Columns | None = None,
    include_identity: bool = True,
    seed: int = 0,
) -> list[Experience]:
    """Every task permutes all values of an input in a way of its own, the same for train and test.

    Args:
      train, test, valid: columns with "input", `[N, ...]`, and "label", int `[N]`.
      tasks: T.
      include_identity: the first task leaves the inputs as they are.
      seed: of the permutations.

    Raises:
      ValueError: for fewer than 2 tasks, or a test label that no training record has.
    """
    _check_tasks(tasks)
    rng = np.random.default_rng(seed)
    size = int(np.prod(np.shape(train["input"])[1:]))
    orders = [rng.permutation(size) for _ in range(tasks)]
    if include_identity:
        orders[0] = np.arange(size)
    change = lambda order: lambda x: x.reshape(len(x), -1)[:, order].reshape(x.shape)
    names = [f"permutation {t}" for t in range(tasks)]
    return _changed(train, test, valid, names, [change(order) for order in orders])


@checked(train=_inputs, test=_inputs, valid=_inputs, tasks=size)
def rotated(
    train: Columns,
    test: Columns,
    tasks: int,
    *,
    valid: Columns | None = None,
    angles: Sequence[float] | None = None,
    between: tuple[float, float] = (0.0, 180.0),
    seed: int = 0,
) -> list[Experience]:
    """Every task turns the images by an angle of its own, anticlockwise, with linear interpolation and zeros outside.

    Args:
      train, test, valid: columns with "input", `[N, H, W]` or `[N, H, W, channels]`, and "label", int `[N]`.
      tasks: T.
      angles: degrees, one per task; None draws them.
      between: from where they are drawn, uniformly; Avalanche has (-180, 180).
      seed: of the angles.

    Raises:
      ValueError: for fewer than 2 tasks, another number of angles, inputs of another rank, or a test label that no
        training record has.
    """
    _check_tasks(tasks)
    if angles is None:
        angles = np.random.default_rng(seed).uniform(*between, size=tasks).tolist()
    if len(angles) != tasks:
        raise ValueError(f"angles must be {tasks}, one per task; got {len(angles)}")
    if np.ndim(train["input"]) not in (3, 4):
        raise ValueError(f"input must be [N, H, W] or [N, H, W, channels]; got {np.shape(train['input'])}")
    turn = lambda angle: lambda x: ndimage.rotate(x, angle, axes=(2, 1), reshape=False, order=1)
    return _changed(train, test, valid, [f"{angle:.0f}°" for angle in angles], [turn(angle) for angle in angles])


@checked(classes=size)
def from_domains(domains: Mapping[str, tuple[Columns, Columns]], *, classes: int | None = None) -> list[Experience]:
    """Every domain is a task, in the order given.

    Args:
      domains: training and test columns by name.
      classes: C of the label space that they share; None takes it from the training labels, and there are none if a
        domain has no "label".

    Raises:
      ValueError: for fewer than 2 domains, or a domain whose test has a class that its training data lacks.
    """
    _check_tasks(len(domains), "domains")
    if classes is None and all("label" in train for train, _ in domains.values()):
        classes = 1 + max(int(np.max(train["label"])) for train, _ in domains.values())

    def one(name: str, train: Columns, test: Columns) -> Experience:
        seen = None if classes is None else _mask(np.unique(train["label"]), classes)
        return Experience(name, train, test, classes=seen)

    return [one(name, *columns) for name, columns in domains.items()]


@checked()
def embedding_stream(domains: Mapping[str, tuple[Columns, Any]]) -> list[Experience]:
    """Every domain is a task: training columns for an objective of embeddings, and a collection that tests them.

    Args:
      domains: by name, the training columns and a `RetrievalSet` or `StsSet` of `jaxemb.evaluate`, which becomes
        `test[COLLECTION]`, that is "collection".

    Raises:
      ValueError: for fewer than 2 domains.
    """
    _check_tasks(len(domains), "domains")
    return [Experience(name, train, {COLLECTION: collection}) for name, (train, collection) in domains.items()]


@checked()
def separate_heads(stream: Sequence[Experience]) -> list[Experience]:
    """The stream with classes of their own for every task: label y of task t becomes `t C + y`, of T C in all.

    That is how a domain-incremental stream is learnt task by task: Permuted MNIST with ten logits per task.

    Raises:
      ValueError: if a task has no classes.
    """
    if not stream:
        raise ValueError("stream must have tasks; got none")
    for task in stream:
        if task.classes is None:
            raise ValueError(f"task {task.name!r} has no classes")
    size = len(np.asarray(stream[0].classes))

    def one(t: int, task: Experience) -> Experience:
        moved = lambda columns: columns and {**columns, "label": np.asarray(columns["label"], np.int32) + t * size}
        classes = _mask(_present(task) + t * size, size * len(stream))
        return Experience(task.name, moved(task.train), moved(task.test), moved(task.valid), classes)

    return [one(t, task) for t, task in enumerate(stream)]


@checked()
def joint(stream: Sequence[Experience], *, name: str = "joint") -> Experience:
    """All tasks as one: its training data are the upper bound of what a continual learner can reach.

    Collections of an `embedding_stream` do not become one; score the tasks themselves, with `mean_over(stream, ...)`.

    Raises:
      ValueError: if the tasks have different columns.
    """
    if len(names := {frozenset(task.train) for task in stream}) != 1:
        raise ValueError(f"stream: tasks must have the same columns; got {sorted(map(sorted, names))}")

    def union(split: str) -> Columns | None:
        parts = [getattr(task, split) for task in stream]
        if any(part is None for part in parts):
            return None
        columns = [{name: column for name, column in part.items() if name != COLLECTION} for part in parts]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *columns)

    train, test = union("train"), union("test")
    assert train is not None and test is not None
    classes = None if stream[0].classes is None else np.any([np.asarray(task.classes) for task in stream], axis=0)
    return Experience(name, train, test, union("valid"), classes)


def rows(columns: Columns, which: np.ndarray) -> dict[str, Any]:
    """The rows of every column that the mask or the numbers `which` select."""
    return {name: jax.tree.map(lambda leaf: np.asarray(leaf)[which], column) for name, column in columns.items()}


def count(columns: Columns) -> int:
    """The number of rows.

    Raises:
      ValueError: if there are none, or the columns have different numbers.
    """
    shapes = {name: [np.shape(leaf)[:1] for leaf in jax.tree.leaves(column)] for name, column in columns.items()}
    sizes = {size for column in shapes.values() for size in column}
    if len(sizes) != 1 or sizes <= {(), (0,)}:
        raise ValueError(f"columns must be arrays with one number of rows, at least 1; got {shapes}")
    return sizes.pop()[0]


def _changed(train, test, valid, names: list[str], changes: list[Callable[[np.ndarray], np.ndarray]]):
    """A domain-incremental stream: the same records, their inputs changed."""
    classes = _mask(np.unique(train["label"]), 1 + int(np.max(train["label"])))

    def one(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Experience:
        new = lambda columns: columns and {**columns, "input": change(np.asarray(columns["input"]))}
        return Experience(name, new(train), new(test), new(valid), classes)

    return [one(name, change) for name, change in zip(names, changes, strict=True)]


def _groups(classes: int, tasks: int, order: Sequence[int] | None, first: int | None) -> list[list[int]]:
    """The classes of each task."""
    _check_tasks(tasks)
    order = list(range(classes)) if order is None else [int(c) for c in order]
    if sorted(order) != list(range(classes)):
        raise ValueError(f"order must be a permutation of the {classes} classes; got {order}")
    start, others = (0, tasks) if first is None else (first, tasks - 1)
    each, left = divmod(classes - start, others)
    if left or each < 1 or (first is not None and first < 1):
        what = f"{classes} classes" if first is None else f"{classes} classes less first={first}"
        raise ValueError(f"{what} do not divide evenly into {others} tasks")
    bounds = [0] * (first is not None) + [start + each * i for i in range(others + 1)]
    return [order[a:b] for a, b in itertools.pairwise(bounds)]


def _present(task: Experience) -> np.ndarray:
    return np.flatnonzero(np.asarray(task.classes))


def _mask(members: Sequence[int] | np.ndarray, size: int) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[np.asarray(members)] = True
    return mask


def _check_tasks(tasks: int, name: str = "tasks") -> None:
    if tasks < 2:
        raise ValueError(f"{name}: a stream must have at least 2 tasks; got {tasks}")
