"""Learning without forgetting: distillation from the model of the last task, on the data of this one."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxemb.checks import checked
from jaxemb.losses.distillation import embed_distill
from jaxemb.nn.similarity import cosine
from jaxemb.transforms.base import Context, Task, Transform, Variables, output_of
from jaxemb.trees import PyTree

Target = Literal["logits", "features", "similarities"]


class LwfState(NamedTuple):
    """The model at the end of the last task, finished tasks (int32), and the classes of each head, bool `[H, C]`."""

    teacher: PyTree
    tasks: jax.Array
    heads: jax.Array


@checked()
def lwf(
    weight: float = 1.0,
    *,
    classes: int | None = None,
    heads: int = 1,
    temperature: float = 2.0,
    target: Target = "logits",
    outputs: str | Sequence[str] | None = None,
) -> Transform:
    """Adds `weight * mean_n d_n` to the loss, the distance of the model's outputs from those of the last task's model.

    Both see the same batch, the teacher without dropout. In the first task nothing is added or computed.

        logits        `sum_h KL(softmax(z* / T) || softmax(z / T))`, over the heads h of classes that earlier tasks had;
                      without the factor T^2 of Hinton et al.
        features      `1 - cos(f*, f)`
        similarities  `KL(softmax_j(s*_ij / T) || softmax_j(s_ij / T))`, where `s_ij` is the cosine of record i of the
                      first column with record j of the last: what embedding models are used for

    The teacher is the model that the forward pass used at the end of the task, with all that other transforms make of
    it.

    Args:
      weight: alpha, >= 0.
      classes: C, all classes of the stream; for logits only, which need it.
      heads: 1 distils the classes of all earlier tasks as one head, for class- and domain-incremental streams; the
        number of tasks, one head per task (tasks of the same number mod heads share one). A task without classes has
        them all.
      temperature: T > 0; that of similarities is on the scale of cosines, such as 0.05.
      target: see above.
      outputs: name of the objective's output, by default the target ("logits" or "features"); for similarities one or
        two names, by default "features".

    Raises:
      ValueError: for a bad option; in the first step, if the objective has no such output or another number of classes.

    References:
      Li and Hoiem 2016, arXiv 1606.09282, equation 2 (in place of its cross-entropy the divergence, which has the same
      gradient, as in Avalanche); features: Hou et al. 2019 (LUCIR), equation 6.
    """
    if not weight >= 0:
        raise ValueError(f"weight must be >= 0; got {weight}")
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0; got {temperature}")
    if target not in ("logits", "features", "similarities"):
        raise ValueError(f"target must be 'logits', 'features' or 'similarities'; got {target!r}")
    if target == "logits" and (classes is None or classes < 2):
        raise ValueError(f"classes must be the number of all classes, at least 2, for logits; got {classes}")
    if heads < 1:
        raise ValueError(f"heads must be at least 1; got {heads}")
    default = "logits" if target == "logits" else "features"
    names = (outputs,) if isinstance(outputs, str) else tuple(outputs or (default,))
    if len(names) > (2 if target == "similarities" else 1):
        raise ValueError(f"outputs must be one name (for similarities one or two); got {names}")

    def distances(student: dict[str, jax.Array], teacher: dict[str, jax.Array], state: LwfState) -> jax.Array:
        """d, `[N]`."""
        if target == "features":
            return embed_distill(student[names[0]], teacher[names[0]])
        if target == "similarities":
            rows = lambda side: cosine(side[names[0]], side[names[-1]]) / temperature
            return _divergence(rows(teacher), rows(student))
        z, old = student[names[0]] / temperature, teacher[names[0]] / temperature
        one = lambda head: _divergence(jnp.where(head, old, -1e30), jnp.where(head, z, -1e30))
        return jnp.sum(jax.vmap(one)(state.heads), axis=0)

    def init(key: jax.Array, model: PyTree) -> Variables:
        return Variables(state=LwfState(model, jnp.int32(0), jnp.zeros((heads, classes or 1), bool)))

    def auxiliary_loss(context: Context, params: PyTree, state: LwfState) -> jax.Array:
        student = {name: output_of(context, name, "lwf") for name in names}
        if target == "logits" and (found := student[names[0]].shape[-1]) != classes:
            raise ValueError(f"classes must be that of output {names[0]!r}, {found}; got {classes}")

        def term(student: dict[str, jax.Array]) -> jax.Array:
            teacher = jax.lax.stop_gradient(context.objective(state.teacher, context.batch, None)[1])
            return jnp.mean(distances(student, teacher, state))

        return weight * jax.lax.cond(state.tasks > 0, term, lambda student: jnp.zeros(()), student)

    def end_task(task: Task, context: Context, params: PyTree, state: LwfState):
        new = np.ones(classes or 1, bool) if task.classes is None or classes is None else np.asarray(task.classes)
        if new.shape != state.heads.shape[1:]:
            raise ValueError(f"task.classes must be [{classes}], as the argument classes says; got {new.shape}")
        head = task.number % heads
        teacher = context.apply(context.trained)
        return context.trained, LwfState(teacher, state.tasks + 1, state.heads.at[head].set(state.heads[head] | new))

    return Transform(init=init, auxiliary_loss=auxiliary_loss, end_task=end_task)


def _divergence(teacher: jax.Array, student: jax.Array) -> jax.Array:
    """`KL(softmax(teacher) || softmax(student))` of the rows, `[N]`."""
    return optax.losses.kl_divergence_with_log_targets(
        jax.nn.log_softmax(student, axis=-1), jax.nn.log_softmax(teacher, axis=-1)
    )
