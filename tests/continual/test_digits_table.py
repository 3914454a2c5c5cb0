"""Baselines on scikit-learn's digits: the figures of an independent NumPy implementation.

Pixels / 16, 75/25 split, MLP 64-100-100-10, SGD 0.03, batches of 10, 8 epochs per task, 3 seeds; EWC and SI without the
factor 1/2, online Fisher information with gamma 1, xi 0.1. Accuracy, average incremental accuracy, backward transfer.
"""

import jax
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from jaxemb import Classifier
from jaxemb.continual import accuracy, metrics, permuted, run_stream, split_by_class
from jaxemb.encoders import Mlp
from jaxemb.objectives import classification
from jaxemb.transforms import ewc, identity, lwf, si

METHODS = {
    "finetune": identity(),
    "ewc": ewc(15.0, mode="online", half=False),
    "si": si(0.3, xi=0.1),
    "lwf": lwf(1.0, classes=10, temperature=2.0),
}
# acc, aia, bwt; standard deviation of acc
TABLE = {
    ("split", "finetune"): (0.193, 0.450, -0.985, 0.005),
    ("split", "ewc"): (0.192, 0.449, -0.985, 0.005),
    ("split", "si"): (0.192, 0.449, -0.985, 0.005),
    ("split", "lwf"): (0.190, 0.449, -0.986, 0.005),
    ("permuted", "finetune"): (0.465, 0.661, -0.602, 0.017),
    ("permuted", "ewc"): (0.611, 0.760, -0.363, 0.045),
    ("permuted", "si"): (0.586, 0.747, -0.406, 0.040),
    ("permuted", "lwf"): (0.536, 0.722, -0.495, 0.040),
}


def scores(stream, method, seed):
    pixels, labels = load_digits(return_X_y=True)
    parts = train_test_split(
        (pixels / 16).astype(np.float32), labels.astype(np.int32), test_size=0.25, stratify=labels, random_state=seed
    )
    train, test = ({"input": parts[i], "label": parts[i + 2]} for i in (0, 1))
    experiences = split_by_class(train, test, 5) if stream == "split" else permuted(train, test, 5, seed=seed)
    key_encoder, key_head = jax.random.split(jax.random.key(seed))
    model = Classifier.init(key_head, Mlp.init(key_encoder, (64, 100, 100)), dim=100, classes=10)
    result = run_stream(
        experiences,
        model,
        classification(),
        optax.sgd(0.03),
        METHODS[method],
        epochs=8,
        batch_size=10,
        evaluate={"accuracy": accuracy(scenario="class" if stream == "split" else "domain")},
        seed=seed,
    )
    R = result.R["accuracy"]
    return metrics.average_accuracy(R), metrics.average_incremental_accuracy(R), metrics.backward_transfer(R)


@pytest.mark.slow
@pytest.mark.parametrize(("stream", "method"), sorted(TABLE))
def test_within_three_standard_deviations(stream, method):
    *expected, std = TABLE[stream, method]
    measured = np.mean([scores(stream, method, seed) for seed in range(3)], axis=0)
    print(stream, method, measured)
    # BWT sums over T - 1 tasks what ACC averages over T.
    np.testing.assert_array_less(np.abs(measured - expected), [3 * std, 3 * std, 1.25 * 3 * std])
