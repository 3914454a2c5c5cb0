"""Trains a tiny run slowly: `python train_tiny.py OUT SECONDS_PER_BATCH`, to be killed by the tests."""

import sys
import time

from tiny_run import pairs, tiny_run

from jaxemb.compilation import enable_persistent_cache
from jaxemb.train import adamw, fit
from jaxemb.transforms import ema


def slowly(batch):
    time.sleep(float(sys.argv[2]))
    return batch


if __name__ == "__main__":
    enable_persistent_cache()
    run = tiny_run(
        steps=24,
        optimizer=adamw(1e-2, 24),
        transform=ema(0.9),
        data=lambda embedder: pairs().map(slowly),
        best=("tiny/similarity", "max"),
    )
    fit(run, sys.argv[1])
    assert not {"torch", "tensorflow"} & sys.modules.keys(), "training must not import them"
