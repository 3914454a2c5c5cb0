"""Labels that are numbers of classes. One that is out of range must not be read as another: an index -1 is the last."""

import jax
import jax.numpy as jnp
import numpy as np
import optax


def check_labels(labels: jax.Array | np.ndarray, classes: int, name: str = "labels", *, says: str = "") -> None:
    """Raises a ValueError, but for what is being traced, unless all `labels` are integers in 0..classes - 1.

    It calls them `name`, and `says` from where it knows the classes, such as ", as kernel says".
    """
    if isinstance(labels, jax.core.Tracer):
        return
    values = np.asarray(labels)
    if values.dtype.kind not in "iu":
        raise ValueError(f"{name} must be integers, the numbers of classes; got {values.dtype}")
    outside = values[(values < 0) | (values >= classes)]
    if outside.size:
        raise ValueError(f"{name} must be in 0..{classes - 1}{says}; got {outside.flat[0]}")


def check_shares(name: str, values: jax.Array | np.ndarray) -> None:
    """Raises a ValueError unless all values, such as labels of what is alike (1) and what is not (0), are in 0..1."""
    values = np.asarray(values)
    if (outside := values[~((values >= 0) & (values <= 1))]).size:
        raise ValueError(f"{name} must be in 0..1; got {outside.flat[0]}")


def class_cross_entropy(logits: jax.Array, labels: jax.Array | np.ndarray) -> jax.Array:
    """`-log softmax(logits)_label` of logits `[..., C]` and labels int `[...]`.

    A label outside 0..C-1 has NaN, which stops a training. Raises, outside of traced code, as `check_labels`.
    """
    classes = logits.shape[-1]
    check_labels(labels, classes)
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, _or_beyond(labels, classes))


def one_hot(labels: jax.Array | np.ndarray, classes: int) -> jax.Array:
    """1 at the label, else 0, f32 `[..., C]`, of labels int `[...]`; NaN and errors as of `class_cross_entropy`."""
    check_labels(labels, classes)
    labels = _or_beyond(labels, classes)
    return jnp.where((labels < classes)[..., None], jax.nn.one_hot(labels, classes), jnp.nan)


def rows_of(table: jax.Array, labels: jax.Array | np.ndarray) -> jax.Array:
    """The rows `[..., D]` of a table `[C, D]` that labels int `[...]` number; NaN and errors as there."""
    check_labels(labels, len(table))
    return jnp.asarray(table).at[_or_beyond(labels, len(table))].get(mode="fill", fill_value=jnp.nan)


def _or_beyond(labels: jax.Array | np.ndarray, classes: int) -> jax.Array:
    labels = jnp.asarray(labels)
    return jnp.where(labels < 0, classes, labels)
