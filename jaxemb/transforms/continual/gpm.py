"""Gradient projection memory: later tasks change a linear layer only for inputs that earlier tasks do not have."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxemb.checks import checked
from jaxemb.nn import Linear
from jaxemb.objectives.chunks import in_one_piece
from jaxemb.transforms.base import Context, Task, Trained, Transform, Variables
from jaxemb.trees import PyTree, map_with_path


class GpmState(NamedTuple):
    """By path of a linear layer, orthonormal columns that span its inputs so far, padded with zeros, f32 `[D, D]`."""

    bases: dict[str, jax.Array]


@checked()
def gpm(
    threshold: float = 0.97,
    *,
    samples: int = 300,
    where: Callable[[str], bool] = lambda path: True,
    on: Literal["gradients", "updates"] = "gradients",
) -> Transform:
    """Projects the gradient of every linear layer away from the inputs that earlier tasks gave it: `g <- g - U Uᵀ g`.

    At the end of a task, with the layer's inputs R as columns and `R' = R - U Uᵀ R`, the first left singular vectors of
    R' are added to U, as many as it takes that U and they hold the fraction `threshold` of `|R|²`. A bias is the weight
    of one more input that is always 1. What the layer makes of inputs in the span of U then stays as it is, under plain
    gradient descent; for an optimiser with momentum or adaptive rates project `on="updates"`.

    Layers of the model as it is stored count, those outside of a `scan` (a stacked transformer's layers are not such;
    freeze them or train other parameters); all else is trained as without it. The first task is plain training.

    Args:
      threshold: in (0, 1]; the paper raises it from 0.95 by a little with every task.
      samples: records of the task whose inputs are looked at.
      where: which of the layers, by dotted path such as "encoder.layers.0" or "head".
      on: see above.

    Raises:
      ValueError: for a threshold outside (0, 1], fewer than one sample, another `on`; at the beginning if the model has
        no such layer; in the first step if of a layer only the kernel or the bias is trained; at the end of a task if
        the loop has no data to give.

    Source: Saha et al. 2021, arXiv 2103.09762, section 4.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be in (0, 1]; got {threshold}")
    if samples < 1:
        raise ValueError(f"samples must be at least 1; got {samples}")
    if on not in ("gradients", "updates"):
        raise ValueError(f"on must be 'gradients' or 'updates'; got {on!r}")

    def init(key: jax.Array, model: PyTree) -> Variables:
        layers = {path: layer for path, layer in linear_layers(model).items() if where(path)}
        if not layers:
            raise ValueError("gpm projects linear layers; the model has none that `where` selects")
        sizes = {path: layer.kernel.shape[0] + (layer.bias is not None) for path, layer in layers.items()}
        return Variables(state=GpmState({path: jnp.zeros((size, size)) for path, size in sizes.items()}))

    def project(trained: Trained, context: Context, params: PyTree, state: GpmState) -> Trained:
        away = lambda path, layer: _away(path, layer, state.bases[path]) if path in state.bases else layer
        return trained._replace(model=map_linear(away, trained.model))

    @functools.partial(jax.jit, static_argnums=(0, 1))  # once, not once per task
    def inputs(objective: Callable, paths: tuple[str, ...], model: PyTree, batch: PyTree):
        """What comes to the linear layers of these paths, `[N, D]` each, and the number of records."""
        found: dict[str, list[jax.Array]] = {path: [] for path in paths}
        watch = lambda path, layer: _Watched(layer, found[path]) if path in found else layer
        with in_one_piece():
            losses, _ = objective(map_linear(watch, model), batch, None)
        return {path: jnp.concatenate(rows) for path, rows in found.items() if rows}, len(losses)

    def end_task(task: Task, context: Context, params: PyTree, state: GpmState) -> tuple[Trained, GpmState]:
        if task.batches is None:
            raise ValueError("gpm looks at inputs at the end of a task; the loop gives it no data of the task")

        model, parts, left = context.apply(context.trained), [], samples
        for batch in task.batches():
            rows, records = jax.device_get(inputs(context.objective, tuple(state.bases), model, batch))
            parts.append(rows)
            left -= int(records)
            if left <= 0:
                break
        bases = {}
        for path, basis in state.bases.items():
            rows = np.concatenate([part[path] for part in parts if path in part] or [np.zeros((0, basis.shape[0]))])
            bases[path] = jnp.asarray(extended_basis(np.asarray(basis), rows, threshold))
        return context.trained, GpmState(bases)

    if on == "gradients":
        return Transform(init=init, gradients=project, end_task=end_task)
    return Transform(init=init, updates=project, end_task=end_task)


def extended_basis(basis: np.ndarray, inputs: np.ndarray, threshold: float) -> np.ndarray:
    """The basis with the fewest more directions that hold the fraction `threshold` of the inputs' squared length.

    Args:
      basis: orthonormal columns, then columns of zeros, `[D, D]`.
      inputs: `[N, D]`.
      threshold: in (0, 1].

    Returns:
      f32 `[D, D]`, as `basis`.
    """
    U, R = np.asarray(basis, np.float64), np.asarray(inputs, np.float64).T
    used = int(np.count_nonzero(np.any(U != 0, axis=0)))
    total = np.square(R).sum()
    rest = R - U @ (U.T @ R)
    left, values, _ = np.linalg.svd(rest, full_matrices=False)
    # held[k]: what U and k more directions hold. 1e-9 of the total is rounding.
    held = total - np.square(rest).sum() + np.concatenate([[0.0], np.cumsum(np.square(values))])
    more = min(int(np.argmax(held >= (threshold - 1e-9) * total)), len(U) - used)
    U = U.copy()
    U[:, used : used + more] = left[:, :more]
    return U.astype(np.float32)


def linear_layers(model: PyTree) -> dict[str, Linear]:
    """The linear layers of a model by dotted path, but not those that are stacked."""
    found: dict[str, Linear] = {}

    def note(path: str, layer: Linear) -> Linear:
        found[path] = layer
        return layer

    map_linear(note, model)
    return found


def map_linear(function: Callable[[str, Linear], object], model: PyTree) -> PyTree:
    """The model with every linear layer, but stacked ones, replaced by `function(path, layer)`."""
    is_layer = lambda node: isinstance(node, Linear)

    def is_one(node: Any) -> bool:
        weights = jax.tree.leaves(node) if is_layer(node) else []
        return bool(weights) and (node.kernel is None or node.kernel.ndim == 2)

    return map_with_path(lambda path, node: function(path, node) if is_one(node) else node, model, is_leaf=is_layer)


class _Watched:
    """A linear layer that notes the inputs it is called with, `[N, D]`, with a 1 for the bias."""

    def __init__(self, layer: Linear, rows: list[jax.Array]):
        self.layer, self.rows = layer, rows

    @property
    def kernel(self) -> jax.Array:
        return self.layer.kernel

    @property
    def bias(self) -> jax.Array | None:
        return self.layer.bias

    def __call__(self, x: jax.Array) -> jax.Array:
        rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
        if self.layer.bias is not None:
            rows = jnp.concatenate([rows, jnp.ones((len(rows), 1))], axis=1)
        self.rows.append(rows)
        return self.layer(x)


def _away(path: str, gradient: Linear, basis: jax.Array) -> Linear:
    bias = gradient.bias
    if gradient.kernel is None or len(basis) != len(gradient.kernel) + (bias is not None):
        raise ValueError(
            f"gpm projects kernel and bias together, and of {path!r} one is frozen; freeze both or neither"
        )
    g = gradient.kernel if bias is None else jnp.concatenate([gradient.kernel, bias[None]])
    g = g - jnp.matmul(basis, jnp.matmul(basis.T, g, precision="highest"), precision="highest")
    return Linear(g, None) if bias is None else Linear(g[:-1], g[-1])
