"""Memory aware synapses."""

import jax
import jax.numpy as jnp

from jaxemb.checks import checked
from jaxemb.transforms.base import Context, Task, Transform
from jaxemb.transforms.continual.per_record import Objective, importance
from jaxemb.transforms.continual.quadratic import Anchored, anchored, check_weight
from jaxemb.trees import PyTree, Where


@checked()
def mas(
    weight: float,
    *,
    gamma: float = 1.0,
    output: str = "logits",
    where: Where = "",
    independent: bool = True,
) -> Transform:
    """Holds weights that the model's outputs depend on near their values at the end of the last task.

        `weight sum_k Omega_k (theta_k - theta*_k)^2`,  `Omega <- gamma Omega + mean_x |d |f(x)|^2 / d theta|`

    is added to the loss (nothing in the first task), Omega being updated at the end of each task. Gradients are those
    of single records, without dropout. Labels count for nothing, but of the logits only those of `batch["classes"]`, if
    there is such a column: the others have learned nothing yet.

    Theta is the model that the forward pass uses: in a chain, stand after the transforms that change it.

    Args:
      weight: lambda, >= 0.
      gamma: what the past keeps at each task, in [0, 1].
      output: the objective's output f, `[N, ...]`; "features" or the embeddings of a column for embedding models.
      where: which arrays of the model are held; a regular expression or a function of the path.
      independent: False for packed rows: then every record costs a backward pass of its batch.

    Raises:
      ValueError: for a bad option; in `init`, if `where` chooses no array; in `end_task`, if the task has no data, the
        objective has no such output, or the records are said to be independent and are not.

    References:
      Aljundi et al. 2018, arXiv 1711.09601, equations 3 and 4.
    """
    check_weight(weight)
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must be in [0, 1]; got {gamma}")

    def values(objective: Objective, model: PyTree, batch: PyTree):
        outputs = objective(model, batch, None)[1]
        if output not in outputs:
            raise ValueError(f"output must be one of the objective's, {', '.join(sorted(outputs))}; got {output!r}")
        f = outputs[output]
        if output == "logits" and "classes" in batch:
            f = jnp.where(batch["classes"], f, 0)
        lengths = jnp.sum(jnp.square(f.reshape(f.shape[0], -1)), axis=1, keepdims=True)
        return lengths, jnp.ones_like(lengths)

    sensitivity = importance(values, jnp.abs, where, independent=independent)

    def move(task: Task, context: Context, state: Anchored, theta: dict[str, jax.Array]) -> Anchored:
        return state.moved(sensitivity(task, context), theta, gamma)

    return anchored(weight, where, move)
