"""Mesh presets: how to split a model over the chips of a slice, and the compiled programs that say so.

    python -m tpu.meshes > tpu/results/meshes.jsonl

The state takes 12 bytes a parameter and the gradient 4 more. Where that is less than a third of a chip's memory, `data`
alone is best, as in `bert_base.py` and `peg.py`; a larger model is split by `fsdp`.
"""

import dataclasses
import json
from functools import partial

from jaxemb import parallel
from jaxemb.aot import compile_run
from jaxemb.aot.slices import tpu_slice
from jaxemb.train import load_run
from tpu.shapes import bert

MODELS = {"6.5 B": (4096, 32), "1.3 B": (2048, 24)}  # width, layers
SLICES = ("v5e:8x8", "v6e:8x8", "v5p:4x4x4")  # 64 chips each
FSDP = {  # of 64 chips; the rest is `data`
    "1.3 B": {"v5e": 8, "v6e": 4, "v5p": 1},
    "6.5 B": {"v5e": 64, "v6e": 16, "v5p": 8},
}


def main() -> None:
    for model, (dim, layers) in MODELS.items():
        for topology in SLICES:
            chips = tpu_slice(topology)
            with parallel.default_devices(chips.devices):
                run = load_run(
                    "tpu/bert_base.py", {"batch_size": 8192, "chunk": 1024, "fsdp": FSDP[model][chips.chip.name]}
                )
            run = dataclasses.replace(run, embedder=partial(bert, dim, layers, vocab_size=30_522, dropout=0.0))
            report = compile_run(run, chips).as_json()
            row = {name: value for name, value in report.items() if name not in ("largest", "traffic", "advice")}
            print(json.dumps({"model": model} | row), flush=True)


if __name__ == "__main__":
    main()
