"""Gradients of single records, squared or in absolute value: what the importance of weights is estimated by."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxemb.transforms.base import Context, Task
from jaxemb.trees import PyTree, Where, chosen, replaced

Objective = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
Arrays = dict[str, jax.Array]
# (objective, model, batch) -> values [N, K] of each record, and their weights [N, K]
Values = Callable[[Objective, PyTree, PyTree], tuple[jax.Array, jax.Array]]
# (objective, model, batch, key) -> batch
Prepare = Callable[[Objective, PyTree, PyTree, jax.Array], PyTree]

_TOGETHER = 8  # records whose gradients are in memory at a time


def importance(
    values: Values,
    of_gradient: Callable[[jax.Array], jax.Array],
    where: Where,
    *,
    independent: bool,
    prepare: Prepare = lambda objective, model, batch, key: batch,
) -> Callable[[Task, Context], Arrays]:
    """The function `(task, context) -> mean_n sum_k w_nk h(d v_nk / d theta)` over the task's N records.

    The gradients are those of single records (that of a batch is their mean, and its square is something else), with
    respect to the model that the forward pass uses, without dropout.

    Args:
      values: v and w.
      of_gradient: h, such as `jnp.square`.
      where: which arrays of the model theta is.
      independent: whether a record's values depend on that record alone. Its gradient then comes from a batch of that
        record, N records cost N passes of one; otherwise N passes of a batch.
      prepare: changes every batch first.

    Raises:
      ValueError: when called, if the task has no data, or the records are said to be independent and are not.
    """

    def total(objective: Objective, model: PyTree, batch: PyTree) -> Arrays:
        """The sum over the records of the batch."""
        theta = chosen(model, where)
        put = lambda theta: replaced(model, where, lambda path, leaf: theta[path])
        v, pull, weights = jax.vjp(lambda theta: values(objective, put(theta), batch), theta, has_aux=True)

        def add(total: Arrays, place: jax.Array):
            (gradient,) = pull((jnp.arange(v.size) == place).astype(v.dtype).reshape(v.shape))
            weight = weights.reshape(-1)[place]
            plus = lambda t, g: t + jnp.where(weight > 0, weight * of_gradient(g), 0)
            return jax.tree.map(plus, total, gradient), None

        return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, theta), jnp.arange(v.size))[0]

    def over_records(objective: Objective, model: PyTree, batch: PyTree, key: jax.Array):
        batch = prepare(objective, model, batch, key)
        together, _ = values(objective, model, batch)
        n = len(together)
        if not independent:
            return total(objective, model, batch), n, together, together
        rows = _rows(batch, n)
        size = math.gcd(n, _TOGETHER)

        def some(sums: Arrays, rows: PyTree):
            new = jax.vmap(lambda row: total(objective, model, row))(rows)
            alone = jax.vmap(lambda row: values(objective, model, row)[0][0])(rows)
            return jax.tree.map(lambda s, x: s + x.sum(axis=0), sums, new), alone

        zeros = jax.tree.map(jnp.zeros_like, chosen(model, where))
        chunks = jax.tree.map(lambda x: x.reshape(n // size, size, *x.shape[1:]), rows)
        sums, alone = jax.lax.scan(some, zeros, chunks)
        return sums, n, together, alone.reshape(together.shape)

    compiled = jax.jit(over_records, static_argnums=0)  # once per transform, not once per task

    def mean(task: Task, context: Context) -> Arrays:
        if task.batches is None:
            raise ValueError("task.batches must give the task's data, which the importance of weights is taken from")
        model = context.apply(context.trained)
        sums: Any = None
        records = 0
        for number, batch in enumerate(task.batches()):
            key = jax.random.fold_in(context.key, number)
            new, n, together, alone = compiled(context.objective, model, batch, key)
            if number == 0 and not np.allclose(together, alone, rtol=1e-2, atol=1e-3):
                raise ValueError(
                    "independent must be False for an objective whose values of a record depend on others, "
                    "or whose records are no rows of the batch"
                )
            sums = new if sums is None else jax.tree.map(jnp.add, sums, new)
            records += int(n)
        if not records:
            raise ValueError("task.batches must give at least one batch; got none")
        return jax.tree.map(lambda x: x / records, sums)

    return mean


def _rows(batch: PyTree, n: int) -> PyTree:
    """The batch as n batches of one record, stacked: arrays `[n, 1, ...]`; what is no column of records is repeated."""
    if isinstance(batch, dict) and np.ndim(batch.get("classes", 0)) == 1:  # one set for all, even if C = n
        batch = batch | {"classes": jnp.broadcast_to(batch["classes"], (n, len(batch["classes"])))}

    def one(x):
        x = jnp.asarray(x)
        return x[:, None] if x.ndim and x.shape[0] == n else jnp.broadcast_to(x, (n, *x.shape))

    return jax.tree.map(one, batch)
