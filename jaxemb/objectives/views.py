"""SupCon on several views of a record, behind a projection head."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxemb.checks import checked
from jaxemb.losses import supcon
from jaxemb.objectives.classification import forward
from jaxemb.objectives.columns import Objective


@checked()
def supervised_contrastive(
    views: Sequence[str] = ("input", "view"),
    label: str = "label",
    *,
    temperature: float = 0.1,
    base_temperature: float | None = None,
) -> Objective:
    """`losses.supcon` of `head(features(x))`, all views of a record and all records of its label being positives.

    The model has `features(inputs, key=key)` and a `head`, here the projection that only this loss sees:
    `Classifier(encoder, Mlp.init(key, [512, 512, 128], final_activation=False))`.

    Args:
      views: V columns of inputs, such as two augmentations of an image; they go through the model as one batch.
      label: the column of labels, int `[N]`.
      temperature: > 0.
      base_temperature: the loss is multiplied by `temperature / base_temperature`, 0.07 in the authors' code; None
        leaves it as it is.

    Returns:
      An `Objective` with V N losses. Its outputs, view after view: the encoder's "features" `[V N, D]`, the projected
      "embeddings" `[V N, P]`, the "label" `[V N]`, and with batch norm in training the batch's "statistics".

    Raises:
      ValueError: for no view, or a temperature that is not positive; when called, if the batch lacks a column, or there
        is one input in all.

    References:
      Khosla et al. 2020, arXiv 2004.11362, equation 2.
    """
    if not views:
        raise ValueError("views must be one or more columns; got none")
    for name, value in {"temperature": temperature, "base_temperature": base_temperature}.items():
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be > 0; got {value}")
    scale = 1.0 if base_temperature is None else temperature / base_temperature

    def objective(model: Any, batch: dict[str, Any], key: jax.Array | None):
        if missing := [name for name in (*views, label) if name not in batch]:
            raise ValueError(f"the batch has no {', '.join(missing)}; it has {', '.join(sorted(batch))}")
        inputs = jax.tree.map(lambda *x: jnp.concatenate(x), *(batch[name] for name in views))
        features, statistics = forward(model, inputs, key)
        labels = jnp.tile(batch[label], len(views))
        if labels.shape != features.shape[:1]:
            raise ValueError(f"labels must be one for each of {features.shape[0]} inputs; got shape {labels.shape}")
        if len(labels) < 2:
            raise ValueError("one view of one record has no positive; give more records or views")
        embeddings = model.head(features)
        losses = scale * supcon(embeddings, labels, temperature=temperature)
        outputs = {"features": features, "embeddings": embeddings, "label": labels}
        return losses, outputs | ({"statistics": statistics} if statistics else {})

    return objective
