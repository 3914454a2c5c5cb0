"""Prototypes, one trained vector per class: pulled to their class, and their relation to samples distilled.

The parts of Prototype-Sample Relation Distillation (Asadi et al. 2023, arXiv 2303.14771) beside SupCon.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxemb.checks import checked, shapes
from jaxemb.losses.program import one_program
from jaxemb.nn.classes import check_labels, rows_of
from jaxemb.nn.similarity import cosine, unit


def _check_lengths(name: str, prototypes) -> None:
    if np.ndim(prototypes) != 2 or not np.size(prototypes):
        raise ValueError(f"{name} must be [C, D], not empty; got {np.shape(prototypes)}")
    zero = np.flatnonzero(~np.any(np.asarray(prototypes), axis=1))
    if zero.size:
        raise ValueError(f"{name} must not be zero vectors; that of class {zero[0]} is")


@checked(shapes(features="N D", prototypes="C D", labels="N"), prototypes=_check_lengths)
def prototype_pull(features: jax.Array, prototypes: jax.Array, labels: jax.Array) -> jax.Array:
    """`loss_i = 1 - cos(sg(f_i), p_{y_i})`: trains the prototypes alone, and nothing pushes them apart.

    Args:
      features: f, `[N, D]`; no gradient flows to them.
      prototypes: p, `[C, D]`.
      labels: y, int `[N]`, in 0..C-1.

    Returns:
      f32 `[N]`, in [0, 2].

    Raises:
      ValueError: for shapes that do not fit; outside of traced code for prototypes of length 0, and for labels out of
        range, which have NaN there.

    References:
      Asadi et al. 2023, arXiv 2303.14771, the prototype loss as in the released code (`losses`, method "repe").
    """
    check_labels(labels, len(prototypes))
    return _pull(features, prototypes, labels)


@one_program()
def _pull(features, prototypes, labels):
    own = rows_of(unit(prototypes), labels)
    return 1 - jnp.sum(jax.lax.stop_gradient(unit(features)) * own, axis=-1)


@checked(
    shapes(features="N D", prototypes="C D", old_features="N D", old_prototypes="C D", groups="C"),
    prototypes=_check_lengths,
    old_prototypes=_check_lengths,
)
def relation_distillation(
    features: jax.Array,
    prototypes: jax.Array,
    old_features: jax.Array,
    old_prototypes: jax.Array,
    groups: jax.Array | np.ndarray,
    *,
    temperature: float = 1.0,
    relation_axis: Literal["class", "sample"] = "class",
    normalize: bool = False,
) -> jax.Array:
    """Keeps how new samples relate to old prototypes as it was under the old model, task by task.

    With scores `a_ic = f_i . p_c / (|p_c| temperature)`, `a*` the same of the old features and prototypes, and G_s the
    classes of task s:

      class    `loss_i = sum_s KL(softmax_{c in G_s}(a*_ic) || softmax_{c in G_s}(a_ic))`
      sample   `mean_i loss_i = sum_s mean_{c in G_s} KL(softmax_i(a*_ic) || softmax_i(a_ic))`, i over all N samples

    The length of the features counts: it says how sharp the distribution is.

    Args:
      features, prototypes: f `[N, D]` and p `[C, D]`; both get gradients.
      old_features, old_prototypes: the same of the old model; they get none.
      groups: the task s of every class, int `[C]`, in 0..C-1; -1 for classes that are not distilled.
      temperature: > 0; the loss is not multiplied by its square.
      relation_axis: "class" is the released code, "sample" the paper's text.
      normalize: divide features by their lengths too, which makes scores cosines.

    Returns:
      f32 `[N]`.

    Raises:
      ValueError: for shapes that do not fit, another axis, a temperature <= 0, or one sample where relations are over
        samples; outside of traced code for groups out of range and prototypes of length 0.

    References:
      Asadi et al. 2023, arXiv 2303.14771, the relation distillation loss.
    """
    classes = len(prototypes)
    if not isinstance(groups, jax.core.Tracer):
        numbers = np.asarray(groups)
        if numbers.dtype.kind not in "iu" or not np.all((numbers >= -1) & (numbers < classes)):
            raise ValueError(f"groups must be whole numbers in -1..{classes - 1}; got {numbers.tolist()}")
    if relation_axis not in ("class", "sample"):
        raise ValueError(f"relation_axis must be 'class' or 'sample'; got {relation_axis!r}")
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0; got {temperature}")
    if relation_axis == "sample" and len(features) < 2:
        raise ValueError("relations over samples need two samples at least; got 1")
    return _relations(features, prototypes, old_features, old_prototypes, groups, temperature, relation_axis, normalize)


@one_program()
def _relations(features, prototypes, old_features, old_prototypes, groups, temperature, relation_axis, normalize):
    classes = len(prototypes)
    # Rows are classes, so that those of a task are segments; what is not distilled has one of its own.
    groups = jnp.asarray(groups)
    segments = jnp.where(groups < 0, classes, groups)
    scores = lambda f, p: unit(p) @ (unit(f) if normalize else f.astype(jnp.float32)).T / temperature
    over_samples = jax.nn.log_softmax  # the last axis of [C, N]
    log_softmax = over_samples if relation_axis == "sample" else lambda a: _log_softmax_of_segments(a, segments)
    new = log_softmax(scores(features, prototypes))
    old = jax.lax.stop_gradient(log_softmax(scores(old_features, old_prototypes)))
    terms = jnp.where((groups >= 0)[:, None], jnp.exp(old) * (old - new), 0.0)
    if relation_axis == "sample":
        sizes = jax.ops.segment_sum(jnp.ones(classes), segments, classes + 1)[segments]
        terms = terms * (len(features) / sizes[:, None])
    return terms.sum(axis=0)


@one_program(shapes(features="N D", prototypes="C D", classes="C | N C"), prototypes=_check_lengths)
def prototype_logits(
    features: jax.Array, prototypes: jax.Array, classes: jax.Array | np.ndarray | None = None
) -> jax.Array:
    """Cosines of features and prototypes, f32 `[N, C]`; the largest names the class.

    Args:
      features: `[N, D]`.
      prototypes: `[C, D]`.
      classes: those that compete, bool `[C]` or `[N, C]`; the others have -inf. None for all.

    Raises:
      ValueError: for shapes that do not fit.
    """
    if classes is not None and classes.dtype != bool:
        raise ValueError(f"classes must be bool; got {classes.dtype}")
    logits = cosine(features, prototypes)
    return logits if classes is None else jnp.where(classes, logits, -jnp.inf)


def _log_softmax_of_segments(scores: jax.Array, segments: jax.Array) -> jax.Array:
    """Log-softmax of every column of `[C, N]` over the rows of each segment."""
    count = len(scores) + 1
    highest = jax.lax.stop_gradient(jax.ops.segment_max(scores, segments, count))[segments]
    shifted = scores - highest
    return shifted - jnp.log(jax.ops.segment_sum(jnp.exp(shifted), segments, count)[segments])
