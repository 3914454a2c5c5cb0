"""Training methods as composable values: see `jaxemb.transforms.base`."""

from jaxemb.transforms.adapted import Adapted
from jaxemb.transforms.agem import agem
from jaxemb.transforms.base import Carried, Context, Task, Trained, Transform, chain, find_state, identity
from jaxemb.transforms.ema import EmaState, ema, ema_model
from jaxemb.transforms.ewc import ewc
from jaxemb.transforms.frozen import frozen
from jaxemb.transforms.gpm import GpmState, gpm
from jaxemb.transforms.hyper_interval import (
    HyperIntervalConfig,
    HyperIntervalParams,
    HyperIntervalState,
    hyper_interval,
)
from jaxemb.transforms.hypernetwork import (
    HypernetworkConfig,
    HypernetworkParams,
    HypernetworkState,
    at_task,
    hypernetwork,
    task_predictor,
)
from jaxemb.transforms.icarl import IcarlState, herding, icarl
from jaxemb.transforms.intercontinet import InterContiNetConfig, InterContiNetState, intercontinet
from jaxemb.transforms.lora import Adapter, lora, merge_lora
from jaxemb.transforms.lwf import LwfState, lwf
from jaxemb.transforms.mas import mas
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
from jaxemb.transforms.prd import PrdState, Prototypes, prd, prototype_prediction
from jaxemb.transforms.progressive import WithAlpha, progressive_learning
from jaxemb.transforms.progressive_separate import EntryState, progressive_separate_training
from jaxemb.transforms.prompts import PromptedTransformer, prompts
from jaxemb.transforms.quadratic import Anchored, l2
from jaxemb.transforms.replay import AceState, Reservoir, der, der_plus_plus, er_ace, experience_replay
from jaxemb.transforms.running_statistics import running_statistics
from jaxemb.transforms.si import SynapticState, si
from jaxemb.transforms.slda import SldaState, slda_init, slda_logits, slda_update
from jaxemb.transforms.temperature import WithTemperature, trained_temperature

__all__ = [
    "AceState",
    "Adapted",
    "Adapter",
    "Anchored",
    "Carried",
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
    "NMCState",
    "PrdState",
    "PromptedTransformer",
    "Prototypes",
    "Reservoir",
    "SldaState",
    "SynapticState",
    "Task",
    "TaskModels",
    "Trained",
    "Transform",
    "WithAlpha",
    "WithTemperature",
    "agem",
    "at_task",
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
    "merge_lora",
    "nmc",
    "nmc_head",
    "nmc_init",
    "nmc_logits",
    "nmc_means",
    "nmc_merge",
    "nmc_predict",
    "nmc_prequential",
    "nmc_update",
    "prd",
    "progressive_learning",
    "progressive_separate_training",
    "prompts",
    "prototype_prediction",
    "running_statistics",
    "si",
    "slda_init",
    "slda_logits",
    "slda_update",
    "task_predictor",
    "trained_temperature",
]
