"""Training methods as composable values: see `jaxemb.transforms.base`."""

from jaxemb.transforms.adapters.adapted import Adapted
from jaxemb.transforms.adapters.lora import lora
from jaxemb.transforms.adapters.prompts import PromptedTransformer, prompts
from jaxemb.transforms.augmentation import augmentation
from jaxemb.transforms.averaging.ema import EmaState, ema, ema_model
from jaxemb.transforms.base import (
    Context,
    Task,
    Trained,
    Transform,
    Variables,
    chain,
    find_state,
    identity,
    trained_arrays,
)
from jaxemb.transforms.continual.agem import agem
from jaxemb.transforms.continual.ewc import ewc
from jaxemb.transforms.continual.gpm import GpmState, gpm
from jaxemb.transforms.continual.hyper_interval import (
    HyperIntervalConfig,
    HyperIntervalParams,
    HyperIntervalState,
    PromiseReport,
    at_universal,
    broken_bounds,
    hyper_interval,
    promise_report,
    worst_case_accuracy,
)
from jaxemb.transforms.continual.hypernetwork import (
    HypernetworkConfig,
    HypernetworkParams,
    HypernetworkState,
    at_task,
    hypernetwork,
    task_predictor,
)
from jaxemb.transforms.continual.icarl import IcarlState, herding, icarl
from jaxemb.transforms.continual.intercontinet import InterContiNetConfig, InterContiNetState, intercontinet
from jaxemb.transforms.continual.lwf import LwfState, lwf
from jaxemb.transforms.continual.mas import mas
from jaxemb.transforms.continual.merging import MergeState, TaskModels, merge_after_task
from jaxemb.transforms.continual.nmc import NMCHeadState, nmc, nmc_head
from jaxemb.transforms.continual.prd import PrdState, Prototypes, prd, prototype_prediction
from jaxemb.transforms.continual.quadratic import Anchored, l2
from jaxemb.transforms.continual.replay import AceState, Reservoir, der, der_plus_plus, er_ace, experience_replay
from jaxemb.transforms.continual.si import SynapticState, si
from jaxemb.transforms.frozen import frozen
from jaxemb.transforms.memory import Memory, cross_batch_memory
from jaxemb.transforms.progressive import progressive_learning
from jaxemb.transforms.progressive_separate import EntryState, progressive_separate_training
from jaxemb.transforms.running_statistics import running_statistics
from jaxemb.transforms.temperature import trained_temperature

__all__ = [
    "AceState",
    "Adapted",
    "Anchored",
    "Context",
    "EmaState",
    "EntryState",
    "GpmState",
    "HyperIntervalConfig",
    "HyperIntervalParams",
    "HyperIntervalState",
    "HypernetworkConfig",
    "HypernetworkParams",
    "HypernetworkState",
    "IcarlState",
    "InterContiNetConfig",
    "InterContiNetState",
    "LwfState",
    "Memory",
    "MergeState",
    "NMCHeadState",
    "PrdState",
    "PromiseReport",
    "PromptedTransformer",
    "Prototypes",
    "Reservoir",
    "SynapticState",
    "Task",
    "TaskModels",
    "Trained",
    "Transform",
    "Variables",
    "agem",
    "at_task",
    "at_universal",
    "augmentation",
    "broken_bounds",
    "chain",
    "cross_batch_memory",
    "der",
    "der_plus_plus",
    "ema",
    "ema_model",
    "er_ace",
    "ewc",
    "experience_replay",
    "find_state",
    "frozen",
    "gpm",
    "herding",
    "hyper_interval",
    "hypernetwork",
    "icarl",
    "identity",
    "intercontinet",
    "l2",
    "lora",
    "lwf",
    "mas",
    "merge_after_task",
    "nmc",
    "nmc_head",
    "prd",
    "progressive_learning",
    "progressive_separate_training",
    "promise_report",
    "prompts",
    "prototype_prediction",
    "running_statistics",
    "si",
    "task_predictor",
    "trained_arrays",
    "trained_temperature",
    "worst_case_accuracy",
]
