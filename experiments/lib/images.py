"""Image sets as columns of arrays, and augmentations as functions of a key and images."""

import gzip
import io
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lib import datasets
from jaxemb.files import replaced_file

Columns = dict[str, np.ndarray]
Augmentation = Callable[[jax.Array, jax.Array], jax.Array]
"""`(key, images [N, H, W, C]) -> images`."""


def mnist(per_class: int | None = None) -> tuple[Columns, Columns]:
    """MNIST, training and test set: "input" f32 `[N, 28, 28, 1]` in [0, 1], "label" int32, "id" int32.

    Args:
      per_class: the first so many training images of each class; None for all. So it is in the other sets too.
    """
    return _idx("mnist", per_class)


def fashion_mnist(per_class: int | None = None) -> tuple[Columns, Columns]:
    """Fashion-MNIST, as `mnist`."""
    return _idx("fashion_mnist", per_class)


def cifar10(per_class: int | None = None) -> tuple[Columns, Columns]:
    """CIFAR-10 from JPEG files, as `mnist`, images `[32, 32, 3]`. Once decoded it is kept under `runs/experiments`."""
    path = datasets.REPOSITORY / "runs" / "experiments" / "cifar10.npz"
    if not path.exists():
        with np.load(datasets.data_dir() / "cifar10" / "cifar10_jpeg.npz") as stored:
            arrays = {}
            for split in ("train", "test"):
                arrays[f"{split}_images"] = _decoded(stored[f"{split}_jpeg"], stored[f"{split}_offsets"])
                arrays[f"{split}_labels"] = stored[f"{split}_labels"]
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced_file(path) as fresh, open(fresh, "wb") as file:
            np.savez(file, **arrays)
    with np.load(path) as stored:
        return _columns(stored["train_images"], stored["train_labels"], per_class), _columns(
            stored["test_images"], stored["test_labels"]
        )


def gtsrb32(per_class: int | None = None) -> tuple[Columns, Columns]:
    """German traffic signs, 43 classes of 200 training and 40 test images, as `mnist`, images `[32, 32, 3]`."""
    with np.load(datasets.data_dir() / "gtsrb32" / "gtsrb32.npz") as stored:
        return _columns(stored["train_images"], stored["train_labels"], per_class), _columns(
            stored["test_images"], stored["test_labels"]
        )


def digits(per_class: int | None = None, *, seed: int = 0) -> tuple[Columns, Columns]:
    """scikit-learn's digits, as `mnist`, images `[8, 8, 1]`; of every class a random quarter, by `seed`, is for tests.

    Raises:
      ImportError: without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError("the digits come with scikit-learn: pip install scikit-learn") from error
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images.reshape(-1, 8, 8), labels, test_size=0.25, stratify=labels, random_state=seed)
    return _columns(split[0], split[2], per_class, scale=16), _columns(split[1], split[3], scale=16)


def augmented(*augmentations: Augmentation, columns: Mapping[str, str] | None = None):
    """`(key, batch) -> batch`, traced, with the augmentations of its images one after another.

    Args:
      augmentations: what is done, in this order.
      columns: where the result goes, and what it is made of: {"input": "input", "view": "input"} makes two views of a
        record; None for {"input": "input"}.
    """
    columns = {"input": "input"} if columns is None else columns

    def augment(key: jax.Array, batch: Mapping[str, Any]) -> dict[str, Any]:
        made = {}
        for number, (to, source) in enumerate(columns.items()):
            images = batch[source]
            for part, augmentation in enumerate(augmentations):
                part_key = jax.random.fold_in(jax.random.fold_in(key, number), part)
                images = augmentation(part_key, images)
            made[to] = images
        return {**batch, **made}

    return augment


def crop(pixels: int, fill: float = 0.0) -> Augmentation:
    """Adds `pixels` of value `fill` on all sides and cuts out a random place of the size before."""

    def augmentation(key: jax.Array, images: jax.Array) -> jax.Array:
        padded = jnp.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)), constant_values=fill)
        offsets = jax.random.randint(key, (len(images), 2), 0, 2 * pixels + 1)
        cut = lambda image, offset: jax.lax.dynamic_slice(image, (*offset, 0), images.shape[1:])
        return jax.vmap(cut)(padded, offsets)

    return augmentation


def shift(pixels: int) -> Augmentation:
    """Moves every image by up to `pixels` along each axis; what leaves on one side comes in on the other."""

    def augmentation(key: jax.Array, images: jax.Array) -> jax.Array:
        offsets = jax.random.randint(key, (len(images), 2), -pixels, pixels + 1)
        return jax.vmap(lambda image, offset: jnp.roll(image, offset, (0, 1)))(images, offsets)

    return augmentation


def noise(deviation: float) -> Augmentation:
    """Adds normal noise."""
    return lambda key, images: images + deviation * jax.random.normal(key, images.shape, images.dtype)


def flip() -> Augmentation:
    """Mirrors half of the images left to right."""
    return lambda key, images: jnp.where(_some(key, images, 0.5), images[:, :, ::-1], images)


def colour_jitter(
    brightness: float = 0.4, contrast: float = 0.4, saturation: float = 0.4, *, probability: float = 0.8
) -> Augmentation:
    """Blends images in [0, 1] with black, with their mean grey and with their grey, in this order.

    The weight of the image is uniform in `1 ± strength`, so the result is clipped to [0, 1] after each. PyTorch's
    ColorJitter draws the order as well.
    """

    def augmentation(key: jax.Array, images: jax.Array) -> jax.Array:
        key_some, *keys = jax.random.split(key, 4)
        strengths = (brightness, contrast, saturation)
        others = (jnp.zeros_like, lambda x: _grey(x).mean((1, 2, 3), keepdims=True), _grey)
        jittered = images
        for part_key, strength, other in zip(keys, strengths, others, strict=True):
            weight = jax.random.uniform(part_key, (len(images), 1, 1, 1), minval=1 - strength, maxval=1 + strength)
            jittered = jnp.clip(weight * jittered + (1 - weight) * other(jittered), 0, 1)
        return jnp.where(_some(key_some, images, probability), jittered, images)

    return augmentation


def grey(probability: float = 0.2) -> Augmentation:
    """Takes the colour from some of the images."""
    return lambda key, images: jnp.where(_some(key, images, probability), _grey(images), images)


def _some(key: jax.Array, images: jax.Array, probability: float) -> jax.Array:
    return jax.random.bernoulli(key, probability, (len(images), 1, 1, 1))


def _grey(images: jax.Array) -> jax.Array:
    """The luma of ITU-R 601, `[N, H, W, 1]`."""
    return images @ jnp.array([[0.299], [0.587], [0.114]], images.dtype)


def _idx(name: str, per_class: int | None) -> tuple[Columns, Columns]:
    def read(file: str) -> np.ndarray:
        with gzip.open(datasets.data_dir() / name / f"{file}-ubyte.gz") as stream:
            data = stream.read()
        rank = data[3]
        shape = np.frombuffer(data, ">i4", rank, 4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)

    train, test = ((read(f"{split}-images-idx3"), read(f"{split}-labels-idx1")) for split in ("train", "t10k"))
    return _columns(*train, per_class), _columns(*test)


def _columns(images: np.ndarray, labels: np.ndarray, per_class: int | None = None, scale: float = 255) -> Columns:
    kept = np.arange(len(labels))
    if per_class is not None:
        kept = np.sort(np.concatenate([np.flatnonzero(labels == c)[:per_class] for c in np.unique(labels)]))
    inputs = images[kept].astype(np.float32) / np.float32(scale)
    return {
        "input": inputs[..., None] if inputs.ndim == 3 else inputs,
        "label": labels[kept].astype(np.int32),
        "id": kept.astype(np.int32),
    }


def _decoded(jpeg: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The images, uint8 `[N, H, W, 3]`, of files that are joined."""
    from PIL import Image

    files = map(bytes, np.split(jpeg, offsets[1:-1]))
    return np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])
