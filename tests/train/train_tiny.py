"""Trains a tiny run slowly: `python train_tiny.py OUT SECONDS_PER_BATCH TASKS`, to be killed by the tests."""

import sys
import time

from tiny_run import pairs, tiny_run

from jaxemb.compilation import enable_persistent_cache
from jaxemb.train import RunTask, adamw, fit
from jaxemb.transforms import chain, ema, l2


def slowly(batch):
    time.sleep(float(sys.argv[2]))
    return batch


if __name__ == "__main__":
    enable_persistent_cache()
    data = lambda embedder: pairs().map(slowly)
    parts = {"data": data, "steps": 24}
    if sys.argv[3] == "2":
        parts = {"data": None, "steps": 0, "tasks": [RunTask("one", data, 10), RunTask("other", data, 14)]}
    run = tiny_run(
        optimizer=adamw(1e-2, 24), transform=chain(ema(0.9), l2(0.1)), best=("tiny/similarity", "max"), **parts
    )
    fit(run, sys.argv[1])
    assert not {"torch", "tensorflow"} & sys.modules.keys(), "training must not import them"
