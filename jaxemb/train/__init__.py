"""Training: a `Run` says what and `fit` does it; `train` does it in memory; `make_train_step` is the step alone."""

from jaxemb.train.accumulation import stack_batches
from jaxemb.train.checkpoints import Checkpoints, DamagedCheckpointError, UnwrittenCheckpointError
from jaxemb.train.directory import RunLostError
from jaxemb.train.logging import RunLog, read_metrics
from jaxemb.train.loop import Result, fit
from jaxemb.train.memory import StepMemory, step_memory
from jaxemb.train.optimizers import adamw, decayed
from jaxemb.train.run import Run, RunTask, load_run
from jaxemb.train.runner import NonFiniteError, Runner, train
from jaxemb.train.state import TrainState, apply_transform, begin_task, end_task, init_state, trainable
from jaxemb.train.step import make_train_step

__all__ = [
    "Checkpoints",
    "DamagedCheckpointError",
    "NonFiniteError",
    "Result",
    "Run",
    "RunLog",
    "RunLostError",
    "RunTask",
    "Runner",
    "StepMemory",
    "TrainState",
    "UnwrittenCheckpointError",
    "adamw",
    "apply_transform",
    "begin_task",
    "decayed",
    "end_task",
    "fit",
    "init_state",
    "load_run",
    "make_train_step",
    "read_metrics",
    "stack_batches",
    "step_memory",
    "train",
    "trainable",
]
