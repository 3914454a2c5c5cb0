"""Training methods as composable values: see `jaxemb.transforms.base`."""

from jaxemb.transforms.base import Carried, Context, Trained, Transform, chain, identity
from jaxemb.transforms.ema import EmaState, ema, ema_model

__all__ = ["Carried", "Context", "EmaState", "Trained", "Transform", "chain", "ema", "ema_model", "identity"]
