"""Continual learning: streams of tasks, the loop over them, and the measures of what is kept and forgotten."""

from jaxemb.continual import metrics
from jaxemb.continual.evaluators import accuracy
from jaxemb.continual.loop import StreamResult, run_stream
from jaxemb.continual.streams import (
    Experience,
    blurry,
    embedding_stream,
    from_domains,
    joint,
    permuted,
    rotated,
    separate_heads,
    split_by_class,
)

__all__ = [
    "Experience",
    "StreamResult",
    "accuracy",
    "blurry",
    "embedding_stream",
    "from_domains",
    "joint",
    "metrics",
    "permuted",
    "rotated",
    "run_stream",
    "separate_heads",
    "split_by_class",
]
