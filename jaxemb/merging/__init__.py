"""Combining models that were trained apart from one start: pure functions on trees of parameters.

A model is any pytree of arrays. Task vectors (`task_vector`) are what training added to the start; the merges put
them together. Models from different starts have no common task vectors, and their average is no model.
"""

from jaxemb.merging.conflict import Interference, gradient_conflict, interference_report
from jaxemb.merging.methods import (
    dare,
    merge_average,
    merge_fisher,
    merge_regmean,
    merge_slerp,
    merge_task_arithmetic,
    merge_ties,
)
from jaxemb.merging.self_positioning import SelfPositionHistory, SelfPositioning, SelfPositionResult, self_position
from jaxemb.merging.slerp import merge_slerp_vectors
from jaxemb.merging.statistics import collect_fisher, collect_grams, sampled_labels
from jaxemb.merging.trees import (
    apply_task_vectors,
    layer_groups,
    models_of,
    stacked_layers,
    task_vector,
    tensor_groups,
)

__all__ = [
    "Interference",
    "SelfPositionHistory",
    "SelfPositionResult",
    "SelfPositioning",
    "apply_task_vectors",
    "collect_fisher",
    "collect_grams",
    "dare",
    "gradient_conflict",
    "interference_report",
    "layer_groups",
    "merge_average",
    "merge_fisher",
    "merge_regmean",
    "merge_slerp",
    "merge_slerp_vectors",
    "merge_task_arithmetic",
    "merge_ties",
    "models_of",
    "sampled_labels",
    "self_position",
    "stacked_layers",
    "task_vector",
    "tensor_groups",
]
