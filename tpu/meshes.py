"""Mesh presets: how to split a model over the chips of a slice, and the rehearsals that say so.

    python -m tpu.meshes > tpu/results/meshes.json

A model whose state (16 bytes a parameter with its gradient) takes less than a third of a chip's memory needs no split:
`data` alone, as in `bert_base.py`. A larger one is split by `fsdp`.
"""

import dataclasses
import json
from functools import partial

from jaxemb import parallel
from jaxemb.parallel.slices import tpu_slice
from jaxemb.train import load_run
from jaxemb.train.rehearsal import rehearse
from tpu.shapes import bert

MODELS = {"335 M": (1024, 24), "1.3 B": (2048, 24), "6.5 B": (4096, 32)}  # width, layers
SLICES = ("v5e:8x8", "v6e:8x8", "v5p:4x4x4")  # 64 chips each
FSDP = {  # of 64 chips; the rest is `data`
    "335 M": {"v5e": 1, "v6e": 1, "v5p": 1},
    "1.3 B": {"v5e": 8, "v6e": 4, "v5p": 1},
    "6.5 B": {"v5e": 64, "v6e": 16, "v5p": 8},
}


def main() -> None:
    rows = []
    for model, (dim, layers) in MODELS.items():
        for name in SLICES:
            chips = tpu_slice(name)
            with parallel.default_devices(chips.devices):
                run = load_run(
                    "tpu/bert_base.py", {"batch_size": 8192, "chunk": 1024, "fsdp": FSDP[model][chips.chip.name]}
                )
            run = dataclasses.replace(run, embedder=partial(bert, dim, layers, vocab_size=30_522, dropout=0.0))
            report = rehearse(run, chips).as_json()
            rows.append({"model": model} | {k: v for k, v in report.items() if k not in ("largest", "traffic")})
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
