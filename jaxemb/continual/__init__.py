"""Continual learning: streams of tasks, the loop over them, and the measures of what is kept and forgotten."""

from jaxemb.continual import metrics, plots
from jaxemb.continual.evaluators import (
    Predict,
    accuracy,
    embedding_score,
    index_compatibility,
    mean_over,
    probe,
)
from jaxemb.continual.loop import Evaluate, StreamResult, run_stream
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
    "Evaluate",
    "Experience",
    "Predict",
    "StreamResult",
    "accuracy",
    "blurry",
    "embedding_score",
    "embedding_stream",
    "from_domains",
    "index_compatibility",
    "joint",
    "mean_over",
    "metrics",
    "permuted",
    "plots",
    "probe",
    "rotated",
    "run_stream",
    "separate_heads",
    "split_by_class",
]
