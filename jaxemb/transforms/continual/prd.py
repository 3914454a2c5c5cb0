"""Prototype-Sample Relation Distillation: prototypes that keep evolving, and no stored data."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxemb.checks import checked, non_negative
from jaxemb.losses.prototypes import prototype_logits, prototype_pull, relation_distillation
from jaxemb.transforms.base import Context, Task, Trained, Transform, Variables, find_state, output_of
from jaxemb.trees import PyTree


class Prototypes(NamedTuple):
    """One vector for each class, f32 `[C, D]`."""

    vectors: jax.Array


class PrdState(NamedTuple):
    """The model and the prototypes as they were after the previous task, and the task of each class, -1 before it.

    Attributes:
      model: the teacher.
      prototypes: `[C, D]`, the teacher's.
      groups: int32 `[C]`.
      number: that of the current task, int32 scalar.
    """

    model: PyTree
    prototypes: jax.Array
    groups: jax.Array
    number: jax.Array


@checked()
def prd(
    classes: int,
    dim: int,
    *,
    pull: float = 2.0,
    distill: float = 4.0,
    learning_rate: float | optax.Schedule = 0.01,
    temperature: float = 1.0,
    relation_axis: Literal["class", "sample"] = "class",
    normalize: bool = False,
    teacher_norm: Literal["batch", "running"] = "batch",
    features: str = "features",
    label: str = "label",
) -> Transform:
    """Trains a prototype for every class and distils how samples relate to those of earlier tasks.

    Added to the objective, with means over the batch, f and p the features and prototypes, f* and p* the same after
    the previous task:

        pull * mean prototype_pull(f, p, labels) + distill * mean relation_distillation(f, p, f*, p*, earlier tasks)

    Whatever the objective is, the encoder gets its gradient and that of the relations; the prototypes of the task get
    that of the pull, those of earlier tasks that of the relations, those of later tasks none. With
    `objectives.supervised_contrastive(temperature=0.1, base_temperature=0.07)` this is the published method; alone,
    with any objective that returns features and a batch with labels, it is a regulariser. Without it
    (`distill = 0`) prototypes are only learnt.

    The prototypes are trained by plain SGD, whatever the optimiser of the model: momentum would move those of
    earlier tasks where nothing pulls them. Predict by `prototype_prediction`.

    Args:
      classes: C, of the whole stream. A task must say which are its classes.
      dim: D of the features.
      pull: alpha, >= 0.
      distill: beta, >= 0.
      learning_rate: of the prototypes, >= 0, or a schedule of the step.
      temperature, relation_axis, normalize: as in `losses.relation_distillation`.
      teacher_norm: what the teacher's batch norm uses: "batch", the statistics of the new data, as in the released
        code, which leaves the teacher in training mode (so its dropout, if it has any, drops); or its "running" ones.
      features: the objective's output, `[N, D]`.
      label: the objective's output or else the batch's column of labels, int `[N]`.

    Raises:
      ValueError: for sizes below 1 or numbers out of range; at the start of a task, if it has no classes, or for
        another number of them; in the first step, if the features are missing or have another D.

    References:
      Asadi et al. 2023, arXiv 2303.14771; code: github.com/naderAsadi/Probing-Continual-Learning, method "repe".
    """
    _check(classes, dim, pull, distill, temperature, relation_axis, teacher_norm)
    if not callable(learning_rate):
        non_negative("learning_rate", learning_rate)

    def init(key: jax.Array, model: PyTree) -> Variables:
        bound = dim**-0.5
        vectors = jax.random.uniform(key, (classes, dim), minval=-bound, maxval=bound)
        unseen = jnp.full(classes, -1, jnp.int32)
        return Variables(Prototypes(vectors), PrdState(model, vectors, unseen, jnp.zeros((), jnp.int32)))

    def begin_task(task: Task, context: Context, params: Prototypes, state: PrdState):
        if task.classes is None or np.shape(task.classes) != (classes,):
            got = "none" if task.classes is None else f"shape {np.shape(task.classes)}"
            raise ValueError(f"prd needs the classes of task {task.number}, bool [{classes}]; got {got}")
        groups = jnp.where(jnp.asarray(task.classes), task.number, state.groups)
        return context.trained, state._replace(groups=groups, number=jnp.asarray(task.number, jnp.int32))

    def auxiliary_loss(context: Context, params: Prototypes, state: PrdState) -> jax.Array:
        new, labels = _outputs(context, features, label, dim)
        pulled = jnp.mean(prototype_pull(new, params.vectors, labels))
        if distill == 0:
            return pull * pulled
        earlier = jnp.where(state.groups < state.number, state.groups, -1)
        key = context.key if teacher_norm == "batch" else None
        teacher = lambda: context.objective(state.model, context.batch, key)[1][features]
        still = jax.lax.stop_gradient(new)
        old = jax.lax.cond(state.number > 0, teacher, lambda: still)  # no forward pass in the first task
        kept = relation_distillation(
            new,
            params.vectors,
            old,
            state.prototypes,
            earlier,
            temperature=temperature,
            relation_axis=relation_axis,
            normalize=normalize,
        )
        return pull * pulled + distill * jnp.mean(kept)

    def updates(updates: Trained, context: Context, params: Prototypes, state: PrdState) -> Trained:
        assert context.gradients is not None
        rate = learning_rate(context.step) if callable(learning_rate) else learning_rate
        return updates._replace(params=jax.tree.map(lambda g: -rate * g, context.gradients.params))

    def end_task(task: Task, context: Context, params: Prototypes, state: PrdState):
        model = context.apply(context.trained)
        return context.trained, state._replace(model=model, prototypes=params.vectors)

    return Transform(
        init=init, begin_task=begin_task, auxiliary_loss=auxiliary_loss, updates=updates, end_task=end_task
    )


def _check(classes, dim, pull, distill, temperature, relation_axis, teacher_norm) -> None:
    for name, size in {"classes": classes, "dim": dim}.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1; got {size}")
    for name, value in {"pull": pull, "distill": distill}.items():
        if value < 0:
            raise ValueError(f"{name} must be >= 0; got {value}")
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0; got {temperature}")
    if relation_axis not in ("class", "sample"):
        raise ValueError(f"relation_axis must be 'class' or 'sample'; got {relation_axis!r}")
    if teacher_norm not in ("batch", "running"):
        raise ValueError(f"teacher_norm must be 'batch' or 'running'; got {teacher_norm!r}")


@checked()
def prototype_prediction(transform: Transform):
    """`(state, inputs, number) -> logits [N, C]`, cosines to the prototypes, for `continual.accuracy`.

    Args:
      transform: that of the train state; it contains one `prd`.
    """

    def predict(state, inputs, number) -> jax.Array:
        model = transform.model(state.model, state.method_params, state.method_state)
        return prototype_logits(model.features(inputs), find_state(state.method_params, Prototypes).vectors)

    return predict


def _outputs(context: Context, features: str, label: str, dim: int) -> tuple[jax.Array, jax.Array]:
    """The features `[N, D]` and labels `[N]` of the batch."""
    found = output_of(context, features, "prd", dim)
    source = context.outputs if label in context.outputs else context.batch
    if label not in source:
        raise ValueError(f"prd needs labels; neither the objective's outputs nor the batch have {label!r}")
    return found, source[label]
