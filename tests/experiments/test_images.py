"""The readers agree with what the data say of themselves, the augmentations with what defines them."""

import colorsys

import jax
import numpy as np
import pytest

from experiments.lib import images

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).uniform(size=(64, 8, 8, 3)).astype(np.float32)


def run(augmentation, inputs=IMAGES):
    return np.asarray(jax.jit(augmentation)(KEY, inputs))


def check(columns, count, shape, classes):
    assert columns["input"].shape == (count, *shape) and columns["input"].dtype == np.float32
    assert columns["input"].min() == 0 and columns["input"].max() == 1
    assert columns["label"].dtype == np.int32 and set(columns["label"]) == set(range(classes))
    assert len(set(columns["id"])) == count


def test_digits_are_split_by_class_and_seed():
    pytest.importorskip("sklearn")
    train, test = images.digits()
    check(train, 1347, (8, 8, 1), 10)
    check(test, 450, (8, 8, 1), 10)
    assert np.ptp(np.bincount(test["label"])) <= 3
    assert not np.array_equal(images.digits(seed=1)[1]["label"], test["label"])
    few, _ = images.digits(5)
    np.testing.assert_array_equal(np.bincount(few["label"]), [5] * 10)
    np.testing.assert_array_equal(few["input"], train["input"][few["id"]])


@pytest.mark.slow
@pytest.mark.usefixtures("data_dir")
def test_the_sets_are_complete():
    for read, shape, classes, counts in (
        (images.mnist, (28, 28, 1), 10, (60000, 10000)),
        (images.fashion_mnist, (28, 28, 1), 10, (60000, 10000)),
        (images.cifar10, (32, 32, 3), 10, (50000, 10000)),
        (images.gtsrb32, (32, 32, 3), 43, (8600, 1720)),
    ):
        for columns, count in zip(read(), counts, strict=True):
            check(columns, count, shape, classes)


def test_a_crop_is_a_place_of_the_padded_image_and_all_places_come():
    made = run(images.crop(1, fill=-1.0))
    padded = np.pad(IMAGES, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-1)
    found = set()
    for image, wide in zip(made, padded, strict=True):
        (place,) = [(i, j) for i in range(3) for j in range(3) if np.array_equal(wide[i : i + 8, j : j + 8], image)]
        found.add(place)
    assert len(found) == 9


def test_shift_wraps_and_flip_mirrors_half():
    shifted = run(images.shift(1))
    rolls = [np.roll(IMAGES, (i, j), (1, 2)) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    matches = np.array([(r == shifted).all((1, 2, 3)) for r in rolls])
    assert (matches.sum(0) == 1).all() and matches.any(1).all()
    flipped = run(images.flip())
    mirrored = (flipped == IMAGES[:, :, ::-1]).all((1, 2, 3))
    assert 16 < mirrored.sum() < 48 and (flipped[~mirrored] == IMAGES[~mirrored]).all()


def test_colours():
    grey = run(images.grey(1.0))
    luma = [colorsys.rgb_to_yiq(*pixel)[0] for pixel in IMAGES[0, 0]]  # Python's weights are rounded to two digits
    np.testing.assert_allclose(grey[0, 0], np.repeat(luma, 3).reshape(-1, 3), atol=5e-3)
    np.testing.assert_array_equal(run(images.grey(0.0)), IMAGES)

    dark = run(images.colour_jitter(0.4, 0, 0, probability=1.0), 0.5 * IMAGES)  # too dark for the clip
    ratio = (dark / (0.5 * IMAGES)).reshape(64, -1)
    np.testing.assert_allclose(ratio, np.repeat(ratio[:, :1], ratio.shape[1], 1), rtol=1e-4)
    assert 0.6 <= ratio.min() < 0.8 and 1.2 < ratio.max() <= 1.4
    inner = 0.4 + 0.2 * IMAGES
    contrast = run(images.colour_jitter(0, 0.4, 0, probability=1.0), inner)
    weights = np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose((contrast @ weights).mean((1, 2)), (inner @ weights).mean((1, 2)), rtol=1e-4)
    saturated = run(images.colour_jitter(0, 0, 0.4, probability=1.0), inner)
    np.testing.assert_allclose(saturated @ weights, inner @ weights, rtol=1e-4)
    jittered = run(images.colour_jitter())
    assert jittered.min() >= 0 and jittered.max() <= 1
    assert 2 < (jittered == IMAGES).all((1, 2, 3)).sum() < 26  # a fifth is left alone


def test_two_views_differ_and_are_traced():
    augment = images.augmented(images.shift(1), images.noise(0.1), columns={"input": "input", "view": "input"})
    made = jax.jit(augment)(KEY, {"input": IMAGES, "label": np.arange(64)})
    assert set(made) == {"input", "view", "label"}
    assert not np.allclose(made["input"], made["view"])
