"""Elastic weight consolidation."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxemb.checks import checked
from jaxemb.transforms.base import Context, Task, Transform
from jaxemb.transforms.continual.per_record import Objective, importance
from jaxemb.transforms.continual.quadratic import Anchored, anchored, check_weight
from jaxemb.trees import PyTree, Where

Fisher = Literal["empirical", "sampled", "exact"]


@checked()
def ewc(
    weight: float,
    *,
    mode: Literal["separate", "online"] = "separate",
    gamma: float = 1.0,
    fisher: Fisher = "empirical",
    half: bool = True,
    where: Where = "",
    independent: bool = True,
    label: str = "label",
) -> Transform:
    """Holds weights that earlier tasks depend on near their values then, by the diagonal of the Fisher information.

    With theta*_s the weights at the end of task s and F_s its Fisher information,

        separate  `(weight / 2) sum_{s < t} sum_k F_sk (theta_k - theta*_sk)^2`
        online    `(weight / 2) sum_k F_k (theta_k - theta*_k)^2`,  `F <- gamma F + F_s` at the end of task s,
                  theta* the weights at the end of the last task

    is added to the loss (nothing in the first task). The state has the size of twice the weights in both: a sum of
    quadratics is a quadratic. F is the mean over the task's records of squared gradients of `l = -log p(y | x)`, the
    objective's losses, each of one record and without dropout:

        empirical  y is the record's label; any objective has this one, that of contrastive losses included
        sampled    y is drawn from p(y | x)
        exact      the mean over y ~ p(y | x): `sum_y p(y | x) (dl / d theta)^2`; a backward pass per class

    Gradient descent with learning rate r diverges unless `r weight F < 2` (twice that without the half).

    Theta is the model that the forward pass uses: in a chain, stand after the transforms that change it.

    Args:
      weight: lambda, >= 0.
      mode: see above.
      gamma: what the past keeps at each task, in [0, 1]; online only.
      fisher: see above. "sampled" and "exact" are for objectives such as `classification`, of labels in `batch[label]`
        and with the output "logits".
      half: the factor 1/2, which the paper has; Avalanche and Mammoth have none.
      where: which arrays of the model are held; a regular expression or a function of the path.
      independent: False for objectives that compare records with each other and for packed rows: then every record
        costs a backward pass of its batch.
      label: the column that "sampled" and "exact" replace.

    Raises:
      ValueError: for a bad option; in `init`, if `where` chooses no array; in `end_task`, if the task has no data, or
        the records are said to be independent and are not.

    References:
      Kirkpatrick et al. 2017, arXiv 1612.00796, equation 3; online: Schwarz et al. 2018, arXiv 1805.06370, section 3.2;
      kinds of Fisher information: Kunstner et al. 2019, arXiv 1905.12558.
    """
    check_weight(weight)
    if mode not in ("separate", "online"):
        raise ValueError(f"mode must be 'separate' or 'online'; got {mode!r}")
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must be in [0, 1]; got {gamma}")
    if fisher not in ("empirical", "sampled", "exact"):
        raise ValueError(f"fisher must be 'empirical', 'sampled' or 'exact'; got {fisher!r}")

    def losses_of_labels(objective: Objective, model: PyTree, batch: dict[str, Any]) -> jax.Array:
        """`-log p(y | x)` of every record and class, `[N, C]`."""
        shapes = jax.eval_shape(lambda: objective(model, batch, None)[1])
        if label not in batch or "logits" not in shapes:
            raise ValueError(f"fisher={fisher!r} needs the column {label!r} and the objective's output 'logits'")
        every = jnp.arange(shapes["logits"].shape[-1], dtype=jnp.int32)
        one = lambda y: objective(model, {**batch, label: jnp.full_like(batch[label], y)}, None)[0]
        return jax.vmap(one, out_axes=1)(every)

    def values(objective: Objective, model: PyTree, batch: PyTree):
        if fisher == "exact":
            losses = losses_of_labels(objective, model, batch)
            return losses, jax.lax.stop_gradient(jnp.exp(-losses))
        losses, _ = objective(model, batch, None)
        return losses[:, None], jnp.ones_like(losses)[:, None]

    def prepare(objective: Objective, model: PyTree, batch: PyTree, key: jax.Array) -> PyTree:
        if fisher != "sampled":
            return batch
        drawn = jax.random.categorical(key, -losses_of_labels(objective, model, batch))
        return {**batch, label: drawn.astype(jnp.int32)}

    information = importance(values, jnp.square, where, independent=independent, prepare=prepare)

    def move(task: Task, context: Context, state: Anchored, theta: dict[str, jax.Array]) -> Anchored:
        f = information(task, context)
        return state.moved(f, theta, gamma) if mode == "online" else state.plus(f, theta)

    return anchored(weight / 2 if half else weight, where, move)
