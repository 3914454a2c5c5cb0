"""Training methods as composable values: see `jaxemb.transforms.base`."""

from jaxemb.transforms.base import Carried, Context, Task, Trained, Transform, chain, find_state, identity
from jaxemb.transforms.ema import EmaState, ema, ema_model
from jaxemb.transforms.memory import Memory, cross_batch_memory
from jaxemb.transforms.progressive import WithAlpha, progressive_learning
from jaxemb.transforms.running_statistics import running_statistics
from jaxemb.transforms.temperature import WithTemperature, trained_temperature

__all__ = [
    "Carried",
    "Context",
    "EmaState",
    "Memory",
    "Task",
    "Trained",
    "Transform",
    "WithAlpha",
    "WithTemperature",
    "chain",
    "cross_batch_memory",
    "ema",
    "ema_model",
    "find_state",
    "identity",
    "progressive_learning",
    "running_statistics",
    "trained_temperature",
]
