"""HyperInterval: a hypernetwork maps boxes of task embeddings to boxes of weights, which bounds forgetting."""

from jaxemb.transforms.continual.hyper_interval.bounds import (
    broken_bounds,
    make_interval_logits,
    worst_case_accuracy,
)
from jaxemb.transforms.continual.hyper_interval.boxes import propagate, schedules, task_boxes, weight_boxes
from jaxemb.transforms.continual.hyper_interval.config import (
    HyperIntervalConfig,
    HyperIntervalParams,
    HyperIntervalState,
)
from jaxemb.transforms.continual.hyper_interval.losses import (
    interval_cross_entropy,
    order_relaxed,
)
from jaxemb.transforms.continual.hyper_interval.promises import PromiseReport, promise_report
from jaxemb.transforms.continual.hyper_interval.task_inference import infer_task_by_entropy
from jaxemb.transforms.continual.hyper_interval.transform import hyper_interval
from jaxemb.transforms.continual.hyper_interval.universal import (
    at_box,
    at_universal,
    boxes_of,
    generated_weights,
    intersect_boxes,
    universal_box,
)

__all__ = [
    "HyperIntervalConfig",
    "HyperIntervalParams",
    "HyperIntervalState",
    "PromiseReport",
    "at_box",
    "at_universal",
    "boxes_of",
    "broken_bounds",
    "generated_weights",
    "hyper_interval",
    "infer_task_by_entropy",
    "intersect_boxes",
    "interval_cross_entropy",
    "make_interval_logits",
    "order_relaxed",
    "promise_report",
    "propagate",
    "schedules",
    "task_boxes",
    "universal_box",
    "weight_boxes",
    "worst_case_accuracy",
]
