"""What Fisher and RegMean merging want to know of each model's data, gathered batch by batch."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxemb.checks import arrays, checked
from jaxemb.nn import Linear
from jaxemb.objectives import Objective
from jaxemb.objectives.classification import competing
from jaxemb.trees import PyTree, by_path


@checked(model=arrays)
def collect_fisher(
    objective: Objective, model: PyTree, batches: Iterable[PyTree], key: jax.Array | None = None
) -> PyTree:
    """The diagonal Fisher information: the mean over examples of the squared gradient of each one's loss, f32.

    The Fisher information of a classifier is that of labels drawn from the model, `sampled_labels(objective)`; with
    labels of the data it is the "empirical" one. Of embeddings it is that of a contrastive loss: each of its losses
    depends on the whole batch, which is why all examples of a batch go through the model for each of them. A batch of N
    examples takes N backward passes through N examples: where losses are independent, make batches small.

    Args:
      objective: `(model, batch, key) -> (losses [N], outputs)`.
      model: all of it floating-point.
      batches: batches of one shape, at least one.
      key: for what the objective draws at random, with a number of its own for every batch; None for no dropout.

    Raises:
      ValueError: if there are no batches.
    """

    @jax.jit
    def add(total, model, batch, key):
        losses, pullback = jax.vjp(lambda model: objective(model, batch, key)[0], model)

        def square(total, row):
            (gradient,) = pullback(row)
            return jax.tree.map(lambda t, g: t + jnp.square(g.astype(t.dtype)), total, gradient), None

        return jax.lax.scan(square, total, jnp.eye(losses.shape[0], dtype=losses.dtype))[0], losses.shape[0]

    total = jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), jnp.promote_types(x.dtype, jnp.float32)), model)
    count = 0
    for number, batch in enumerate(batches):
        arrays(f"batches[{number}]", batch)
        total, examples = add(total, model, batch, None if key is None else jax.random.fold_in(key, number))
        count += int(examples)
    if not count:
        raise ValueError("batches must be at least one; got 0")
    return jax.tree.map(lambda x: x / count, total)


@checked()
def sampled_labels(objective: Objective, classes: str = "classes") -> Objective:
    """`-log p(y | x)` with the label y drawn from the model's own distribution: what the Fisher information is of.

    Args:
      objective: one with the output "logits" `[N, C]`, such as `classification()`.
      classes: the batch's column, if it has one, of the classes that compete.

    Returns:
      An `Objective` that needs a key.
    """

    def sampled(model: Any, batch: dict[str, Any], key: jax.Array | None):
        if key is None:
            raise ValueError("sampled_labels needs a key to draw labels; got None")
        _, outputs = objective(model, batch, None)
        logits = competing(outputs["logits"], batch.get(classes))
        labels = jax.random.categorical(key, jax.lax.stop_gradient(logits))
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
        return -log_p[:, 0], outputs

    return sampled


@checked(model=arrays)
def collect_grams(forward: Callable[[Any, Any], Any], model: PyTree, batches: Iterable[PyTree]) -> dict[str, jax.Array]:
    """`G = X^T X` of the inputs of every `Linear` of the model, by the path of its kernel.

    Of a layer `[in, out]` it is `[in, in]`, of a stack of L layers `[L, in, in]`; the rows of X are everything that the
    layer reads, tokens of padding too. It works inside scans and remat, as the sums are made by the backward pass: each
    layer's input goes through an identity whose "gradient" with respect to an argument beside it is `X^T X`.

    Args:
      forward: `(model, batch) -> outputs`, such as the objective's forward pass.
      model: a model with `jaxemb.nn.Linear` layers.
      batches: batches, at least one.

    Raises:
      ValueError: if there are no batches, or the model has no linear layer.
    """
    is_linear = lambda node: isinstance(node, Linear)
    nodes, structure = by_path(model, is_linear), jax.tree.structure(model, is_linear)
    paths = {i: f"{path}.kernel".lstrip(".") for i, (path, node) in enumerate(nodes.items()) if is_linear(node)}
    if not paths:
        raise ValueError("model must have a Linear layer; it has none")

    @jax.jit
    def add(total, leaves, batch):
        def outputs(grams):
            tapped = [
                _Tapped(leaf.kernel, leaf.bias, gram=grams[paths[i]]) if i in paths else leaf
                for i, leaf in enumerate(leaves)
            ]
            made = jax.tree.leaves(forward(jax.tree.unflatten(structure, tapped), batch))
            return sum(jnp.sum(x) for x in made if jnp.issubdtype(x.dtype, jnp.floating))

        return jax.tree.map(jnp.add, total, jax.grad(outputs)(total))

    leaves = list(nodes.values())
    shapes = {path: leaves[i].kernel.shape for i, path in paths.items()}
    total = zeros = {path: jnp.zeros((*shape[:-2], shape[-2], shape[-2])) for path, shape in shapes.items()}
    for number, batch in enumerate(batches):
        arrays(f"batches[{number}]", batch)
        total = add(total, leaves, batch)
    if total is zeros:
        raise ValueError("batches must be at least one; got 0")
    return total


@nnx.dataclass
class _Tapped(Linear):
    """A linear layer with the place where its input's Gram matrix comes out as a gradient."""

    gram: jax.Array = nnx.data(kw_only=True)

    def __call__(self, x: jax.Array) -> jax.Array:
        return super().__call__(_tap(x, self.gram))


@jax.custom_vjp
def _tap(x: jax.Array, gram: jax.Array) -> jax.Array:
    return x


def _tap_backward(x, gradient):
    rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    return gradient, rows.T @ rows


_tap.defvjp(lambda x, gram: (x, x), _tap_backward)
