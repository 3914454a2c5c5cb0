"""The memory of a train step, read off its compiled program before it runs."""

from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jaxemb import parallel
from jaxemb.checks import checked
from jaxemb.train.state import TrainState
from jaxemb.train.step import TrainStep
from jaxemb.trees import PyTree


class StepMemory(NamedTuple):
    """Bytes that a step takes on each device, as XLA lays them out.

    Attributes:
      arguments: the train state and the batch.
      temporaries: what the step holds beside them at the most, with a new state that does not take the old one's place.
    """

    arguments: int
    temporaries: int

    @property
    def total(self) -> int:
        return self.arguments + self.temporaries

    def __str__(self) -> str:
        parts = (size_of(self.total), size_of(self.arguments), size_of(self.temporaries))
        return "a step takes {} on each device: state and batch {}, temporaries {}".format(*parts)

    @classmethod
    def of(cls, program: jax.stages.Compiled) -> "StepMemory | None":
        """That of a compiled step; None where the platform's compiler does not say."""
        sizes: Any = program.memory_analysis()
        if sizes is None:
            return None
        new = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
        return cls(sizes.argument_size_in_bytes, sizes.temp_size_in_bytes + new)


@checked()
def step_memory(step: TrainStep, state: TrainState, batch: PyTree, *, mesh: Mesh | None = None) -> StepMemory | None:
    """What a step takes, compiled and not run; of state and batch shapes are enough.

        start = lambda: init_state(jax.random.key(0), embedder.model, optimizer, transform)
        print(step_memory(make_train_step(objective, optimizer, transform), jax.eval_shape(start), batch))

    Where another program is larger for a while, such as the one that makes the state, the process needs that; compilers
    and what else the host's memory holds come on top.

    Args:
      step: see `make_train_step`.
      state, batch: on a mesh where they lie, or shapes with shardings.
      mesh: the one in force in every step.

    Returns:
      None where the platform's compiler does not say.
    """
    with parallel.in_force(mesh):
        return StepMemory.of(jax.jit(step, donate_argnums=0).lower(state, batch).compile())


def size_of(nbytes: float) -> str:
    """Bytes in words."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if nbytes >= factor:
            return f"{nbytes / factor:.2f} {unit}"
    return f"{nbytes:.0f} B"
