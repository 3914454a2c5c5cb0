"""HyperInterval's recipe on one device: Permuted MNIST-10 or Split MNIST in the published sizes.

jaxemb train experiments/recipes/hyperinterval.py --out runs/hyperinterval --set stream=split
jaxemb compile experiments/recipes/hyperinterval.py --topology v5e:2x2     # what it needs, without a TPU
"""

import functools
from typing import Literal

import grain
import jax
import numpy as np

from experiments.hyperinterval import ARMS, PERMUTED_MNIST, PRESETS, SPLIT_MNIST, data, transform_of
from jaxemb.checkpoints import Parameters
from jaxemb.classifiers.linear import Classifier
from jaxemb.encoders import Mlp
from jaxemb.objectives import classification
from jaxemb.train import Run, RunTask


def run(*, stream: Literal["permuted", "split"] = "permuted", nested: bool = False, seed: int = 0) -> Run:
    """A hypernetwork of 206 million weights (split: 36 million) that makes the weights of an MLP for every task.

    Adam keeps its moments from task to task here; `experiments.hyperinterval --preset paper` begins anew.

    Args:
      stream: ten permutations of the pixels, or five pairs of classes.
      nested: whether the boxes are nested.
      seed: of the stream, and of the weights.
    """
    found = data(PRESETS["paper"], PERMUTED_MNIST if stream == "permuted" else SPLIT_MNIST, seed)
    settings, tasks, keys = found.stream, found.tasks, jax.random.split(jax.random.key(seed))
    transform, optimizer = transform_of(found, ARMS["nested, own" if nested else "HyperInterval"])
    firsts = np.cumsum([0, *(len(task.train["label"]) for task in tasks)])

    def model():
        encoder = Mlp.init(keys[1], (tasks[0].train["input"].shape[1], *settings.target))
        return Parameters(Classifier.init(keys[0], encoder, settings.target[-1], len(tasks[0].classes)))

    def batches(number, embedder):
        columns = tasks[number].train
        size = len(columns["label"])
        records = {**columns, "id": np.arange(size, dtype=np.int32) + np.int32(firsts[number])}
        rows = grain.MapDataset.range(size).seed(seed + number).shuffle().repeat().batch(settings.records(nested))
        return rows.map(lambda chosen: {name: column[chosen] for name, column in records.items()}).to_iter_dataset()

    return Run(
        embedder=model,
        tasks=[
            RunTask(task.name, functools.partial(batches, number), settings.steps, task.classes)
            for number, task in enumerate(tasks)
        ],
        objective=classification(),
        optimizer=optimizer,
        transform=transform,
        seed=seed,
        options={"stream": stream, "nested": nested},
    )
