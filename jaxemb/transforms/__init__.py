"""Training methods as composable values: see `jaxemb.transforms.base`."""

from jaxemb.transforms.agem import agem
from jaxemb.transforms.base import Carried, Context, Task, Trained, Transform, chain, find_state, identity
from jaxemb.transforms.ema import EmaState, ema, ema_model
from jaxemb.transforms.memory import Memory, cross_batch_memory
from jaxemb.transforms.merging import MergeState, TaskModels, merge_after_task
from jaxemb.transforms.nmc import (
    NMCHeadState,
    NMCState,
    nmc,
    nmc_head,
    nmc_init,
    nmc_logits,
    nmc_means,
    nmc_merge,
    nmc_predict,
    nmc_prequential,
    nmc_update,
)
from jaxemb.transforms.progressive import WithAlpha, progressive_learning
from jaxemb.transforms.replay import AceState, Reservoir, der, der_plus_plus, er_ace, experience_replay
from jaxemb.transforms.running_statistics import running_statistics
from jaxemb.transforms.temperature import WithTemperature, trained_temperature

__all__ = [
    "AceState",
    "Carried",
    "Context",
    "EmaState",
    "Memory",
    "MergeState",
    "NMCHeadState",
    "NMCState",
    "Reservoir",
    "Task",
    "TaskModels",
    "Trained",
    "Transform",
    "WithAlpha",
    "WithTemperature",
    "agem",
    "chain",
    "cross_batch_memory",
    "der",
    "der_plus_plus",
    "ema",
    "ema_model",
    "er_ace",
    "experience_replay",
    "find_state",
    "identity",
    "merge_after_task",
    "nmc",
    "nmc_head",
    "nmc_init",
    "nmc_logits",
    "nmc_means",
    "nmc_merge",
    "nmc_predict",
    "nmc_prequential",
    "nmc_update",
    "progressive_learning",
    "running_statistics",
    "trained_temperature",
]
