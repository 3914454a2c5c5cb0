"""The objective of classifiers: cross-entropy over the classes that compete."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxemb.checks import at_least, checked, shapes
from jaxemb.nn.classes import class_cross_entropy
from jaxemb.objectives.chunks import in_chunks
from jaxemb.objectives.columns import Objective


@checked(chunk=at_least(1))
def classification(
    input: str = "input", label: str = "label", classes: str = "classes", *, chunk: int | None = None
) -> Objective:
    """`-log softmax(logits)[label]` of a model with `features(inputs, key=key)` and a `head`, such as `Classifier`.

    Args:
      input: the batch's column of inputs.
      label: its column of labels, int `[N]`.
      classes: its column, if it has one, of the classes that compete, bool `[C]` or `[N, C]`: the softmax is over them
        alone, as when the task is known (its classes) or when classes arrive over time (those seen so far).
      chunk: inputs that go through the model at a time, so that memory does not grow with the batch (see `in_chunks`);
        None for all of them at once.

    Returns:
      An `Objective`. Its outputs are the encoder's "features" `[N, D]` and the "logits" `[N, C]` of all classes, and
      with batch norm in training the batch's "statistics" (see `transforms.running_statistics`).

    Raises:
      ValueError: for a chunk below 1; when called, if the batch lacks inputs or labels, the shapes do not fit, or there
        are chunks and batch norm.
    """

    encode = forward if chunk is None else _in_chunks(chunk)

    def objective(model: Any, batch: dict[str, Any], key: jax.Array | None):
        if missing := [name for name in (input, label) if name not in batch]:
            raise ValueError(f"the batch has no {', '.join(missing)}; it has {', '.join(sorted(batch))}")
        features, statistics = encode(model, batch[input], key)
        logits = model.head(features)
        labels, compete = batch[label], batch.get(classes)
        if labels.shape != logits.shape[:1]:
            raise ValueError(f"labels must be one for each of {logits.shape[0]} inputs; got shape {labels.shape}")
        if compete is not None and compete.shape not in (logits.shape, logits.shape[1:]):
            raise ValueError(f"classes must be [C] or [N, C] for logits {logits.shape}; got shape {compete.shape}")
        losses = class_cross_entropy(competing(logits, compete), labels)
        outputs = {"features": features, "logits": logits}
        return losses, outputs | ({"statistics": statistics} if statistics else {})

    return objective


def forward(model: Any, inputs: Any, key: jax.Array | None) -> tuple[jax.Array, Any]:
    """The model's features, and the statistics of its batch norms if it has them and trains; else ()."""
    if hasattr(model, "forward"):
        return model.forward(inputs, key=key)
    return model.features(inputs, key=key), ()


def _in_chunks(chunk: int):
    def features_of(model: Any, inputs: Any, key: jax.Array | None) -> jax.Array:
        features, statistics = forward(model, inputs, key)
        if statistics:
            raise ValueError(
                f"chunk must be None with batch norm, whose statistics are of the whole batch; got {chunk}"
            )
        return features

    encode = in_chunks(features_of, chunk)
    return lambda model, inputs, key: (encode(model, inputs, key), ())


@checked(shapes(logits="N C", classes="C | N C"))
def competing(logits: jax.Array, classes: jax.Array | np.ndarray | None) -> jax.Array:
    """The logits `[N, C]`, with -inf for what is not in `classes` (bool `[C]` or `[N, C]`; None for all classes)."""
    return logits if classes is None else jnp.where(classes, logits, -jnp.inf)
