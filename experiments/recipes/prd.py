"""PRD's recipe on one device: a ResNet-18 learns the classes of an image set task after task, and stores none of them.

jaxemb train experiments/recipes/prd.py --out runs/prd --set dataset=gtsrb
jaxemb compile experiments/recipes/prd.py --topology v5e:2x2     # what it needs, without a TPU
"""

import dataclasses
import functools
from typing import Literal

import grain
import jax
import numpy as np
import optax

from experiments.lib import images
from experiments.prd import CIFAR, EXPERIMENT, GTSRB, PRD, data, method, schedule
from jaxemb import Classifier
from jaxemb.checkpoints import Parameters
from jaxemb.encoders import Mlp
from jaxemb.objectives import supervised_contrastive
from jaxemb.train import Run, RunTask
from jaxemb.transforms import augmentation, chain, running_statistics


def run(*, dataset: Literal["cifar10", "gtsrb"] = "cifar10", learning_rate: float = 0.01, seed: int = 0) -> Run:
    """The published network, epochs and rates, with five tasks of CIFAR-10 or eight of GTSRB for those of CIFAR-100.

    Args:
      dataset: see above.
      learning_rate: of the model; that of the prototypes is 0.1.
      seed: of the order of the classes, the weights and the batches.
    """
    found = data(EXPERIMENT.presets["paper"], CIFAR if dataset == "cifar10" else GTSRB, seed)
    recipe, tasks, keys = found.recipe, found.tasks, jax.random.split(jax.random.key(seed))
    firsts = np.cumsum([0, *(len(task.train["label"]) for task in tasks)])
    lengths = [max(1, len(task.train["label"]) // recipe.batch_size) for task in tasks]
    rate = schedule(learning_rate, recipe, lengths[0])
    view = augmentation(images.augmented(*found.view, columns={"input": "input", "view": "input"}))

    def model():
        head = Mlp.init(keys[1], (found.dim, found.dim, found.dim // 4), final_activation=False)
        return Parameters(Classifier(found.encoder, head))

    def batches(number, embedder):
        columns = tasks[number].train
        size = len(columns["label"])
        records = {**columns, "id": np.arange(size, dtype=np.int32) + np.int32(firsts[number])}
        rows = grain.MapDataset.range(size).seed(seed + number).shuffle().repeat().batch(recipe.batch_size)
        return rows.map(lambda chosen: {name: column[chosen] for name, column in records.items()}).to_iter_dataset()

    return Run(
        embedder=model,
        tasks=[
            RunTask(
                task.name,
                functools.partial(batches, number),
                lengths[number] * (recipe.epochs + recipe.extra * (number == 0)),
                task.classes,
            )
            for number, task in enumerate(tasks)
        ],
        objective=supervised_contrastive(base_temperature=0.07),
        optimizer=optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(rate, momentum=0.9)),
        transform=chain(
            view, method(found, dataclasses.replace(EXPERIMENT.arms[PRD], weight=4.0), rate), running_statistics()
        ),
        seed=seed,
        options={"dataset": dataset, "learning_rate": learning_rate},
    )
