"""HyperInterval's step in the published setting of Permuted MNIST-10, and how long the whole recipe would take.

Ten tasks of 5,000 steps on batches of 128 images of 32 x 32; a hypernetwork of 100-100 units makes the weights of an
MLP 1024-1000-1000-10: 206 million weights, trained by Adam in f32. Measured are the first task's step, and the last
one's, which holds nine old tasks. The official code needs packages of its own: `benchmarks.hyperinterval` measures
against it.
"""

import functools
import itertools
from collections.abc import Callable, Iterator

import jax
import numpy as np
import optax

from benchmarks.accelerator.measure import Bench, Program, Row
from jaxemb.classifiers.linear import Classifier
from jaxemb.encoders import Mlp
from jaxemb.objectives import classification
from jaxemb.train import begin_task, init_state, make_train_step
from jaxemb.transforms import HyperIntervalConfig, Task, hyper_interval

TASKS, STEPS, BATCH = 10, 5000, 128
PIXELS, TARGET, CLASSES = 1024, (1000, 1000), 10
CONFIG = {"embed_dim": 24, "hidden": (100, 100), "gamma": 0.5, "beta": 0.01}


def rows(bench: Bench) -> Iterator[Row]:
    """A row for the first task's step, and one for the last one's; each says what the recipe would take."""
    pixels, target, fields, batch = PIXELS, TARGET, CONFIG, BATCH
    if bench.smoke:
        pixels, target, fields, batch = 16, (8, 8), {**CONFIG, "hidden": (4, 4)}, 4
    config = HyperIntervalConfig(tasks=TASKS, **fields)
    kernels, made_by, weights = _weights((pixels, *target, CLASSES), (config.embed_dim, *config.hidden))
    step_of = _steps(config, pixels, target, batch)
    seconds = []
    for name, number in (("first", 0), ("last", TASKS - 1)):
        row = bench.measure(
            f"step of the {name} task, {weights / 1e6:,.1f} M weights",
            functools.partial(step_of, number),
            # A forward pass, and a backward pass of twice its products. Through the hypernetwork go the embedding's
            # centre and radius and the old tasks' centres; through the target a batch, with four products a layer.
            flops=3 * 2.0 * ((2 + number) * made_by + 4 * batch * kernels),
            # Adam reads and writes the weights and both moments, and reads the gradient, which something has written.
            bytes=4 * 8 * weights,
            precision="f32",
            work=(batch, "images"),
            peer="the official code is another environment's",
        )
        seconds.append(row["ours"].get("seconds"))
        if None not in seconds:
            hours = TASKS * STEPS * sum(seconds) / len(seconds) / 3600
            row["note"] = f"at this rate the {TASKS} x {STEPS:,} steps of the recipe take {hours:.2f} hours a seed"
        yield row


def _weights(target: tuple[int, ...], hyper: tuple[int, ...]) -> tuple[int, int, int]:
    """Weights of the target's kernels, of the hypernetwork's, and all that is trained."""
    kernels = lambda sizes: sum(m * n for m, n in itertools.pairwise(sizes))
    layers = (*hyper, kernels(target) + sum(target[1:]))
    return kernels(target), kernels(layers), kernels(layers) + sum(layers[1:]) + TASKS * hyper[0]


def _steps(config: HyperIntervalConfig, pixels: int, target: tuple[int, ...], batch: int) -> Callable[[int], Program]:
    """The step of a task by its number; compiled once, as it is the same program for all of them."""
    transform, objective, optimizer = hyper_interval(config), classification(), optax.adam(1e-3)

    @jax.jit
    def model():
        keys = jax.random.split(jax.random.key(0))
        return Classifier.init(keys[0], Mlp.init(keys[1], (pixels, *target)), target[-1], CLASSES)

    rng = np.random.default_rng(0)
    records = {
        "input": rng.uniform(size=(batch, pixels)).astype(np.float32),
        "label": rng.integers(0, CLASSES, batch).astype(np.int32),
    }
    compiled: Program | None = None

    def step_of(number: int) -> Program:
        nonlocal compiled
        state = init_state(jax.random.key(0), model(), optimizer, transform)
        state = begin_task(transform, objective, state, Task(number))  # no steps given: the full gamma at once
        if compiled is not None:
            return compiled.on(state, records)
        compiled = Program(make_train_step(objective, optimizer, transform), state, records, carries=True)
        return compiled

    return step_of
