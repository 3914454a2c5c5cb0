"""Streams of tasks: what a continual learner meets, one `Experience` after another."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Experience:
    """One task of a stream.

    Attributes:
      name: what tables and plots call it.
      train, test: columns, arrays or pytrees of arrays (`Tokens`) with one row per record: "input", "label", ...
      valid: as `train`, held out of it; None without one.
      classes: the classes in `train`, bool `[C]`, C = classes of the whole stream; None where there are no classes.
    """

    name: str
    train: Mapping[str, Any]
    test: Mapping[str, Any]
    valid: Mapping[str, Any] | None = None
    classes: np.ndarray | None = None
