"""Models that are no sentence embedders, as `fit` wants them and as a file."""

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxemb.checkpoints.tensors import CheckpointError, read_tensors, write_tensors
from jaxemb.trees import PyTree, by_path, map_with_path

_OF_OTHERS = ("config.json", "modules.json")  # what the directories of encoders and embedding models are known by


@dataclasses.dataclass(frozen=True)
class Parameters:
    """Any tree of arrays, to be trained by `jaxemb.train.fit` and saved as `model.safetensors`, each array by its path.

    run = Run(embedder=lambda: Parameters(classifier), ...)
    classifier = Parameters(classifier).load("runs/mine/model").model
    """

    model: PyTree

    def replace(self, **changes: Any) -> "Parameters":
        """A copy with another `model`."""
        return dataclasses.replace(self, **changes)

    def save(self, path: str | Path) -> None:
        """Writes `model.safetensors` into the directory `path`, which is made if absent.

        Raises:
          FileExistsError: if the directory holds another kind of model, of which this would be half.
        """
        if other := next((name for name in _OF_OTHERS if (Path(path) / name).exists()), None):
            raise FileExistsError(f"{path} holds another kind of model ({other}); give another path")
        write_tensors(path, {name: np.asarray(leaf) for name, leaf in by_path(self.model).items()})

    def load(self, path: str | Path) -> "Parameters":
        """The arrays that `save` wrote, in a tree of the structure of `model`.

        Raises:
          CheckpointError: if the file is absent or damaged, or an array is missing, left over, or of another shape or
            type; all are named.
        """
        stored, like = read_tensors(path), by_path(self.model)
        problems = [f"missing: {name}" for name in like if name not in stored]
        problems += [f"not part of the model: {name}" for name in stored if name not in like]
        for name in like.keys() & stored.keys():
            expected, got = ((a.dtype, tuple(a.shape)) for a in (like[name], stored[name]))
            if got != expected:
                problems.append(f"{got[0]}{list(got[1])}, expected {expected[0]}{list(expected[1])}: {name}")
        if problems:
            raise CheckpointError(f"{path}: the arrays are not those of the model:\n  " + "\n  ".join(problems))
        return Parameters(map_with_path(lambda name, _: jnp.asarray(stored[name]), self.model))
