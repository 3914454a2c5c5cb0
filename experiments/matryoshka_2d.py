"""2D Matryoshka: one model to be cut to fewer layers, fewer dimensions, or both (Li et al. 2024).

    python -m experiments.matryoshka_2d --preset small

Compared, at every number of layers and dimensions, are training of the full size only ("fine-tuning"), Matryoshka
(of dimensions), 2D Matryoshka as first published, and a separately trained model for each of some sizes. `sizes` says
what is trained and measured. Learning rates were chosen for fine-tuning and are the same for all methods.
"""

import dataclasses
from typing import Any

from experiments import common, sizes
from jaxemb.compilation import enable_persistent_cache

# The specification's reference run of "intents": seeds 0 / 1.
_REFERENCE = {
    "fine-tuning": ("25.7 / 29.1", "59.9 / 68.2", "78.7 / 79.3", "83.5 / 83.6", "66.1 / 68.2"),
    "Matryoshka": ("30.4 / 32.7", "67.2 / 70.4", "79.6 / 78.1", "82.3 / 82.3", "69.4 / 70.4"),
    "2D Matryoshka": ("66.1 / 63.2", "78.1 / 79.0", "80.1 / 80.6", "80.9 / 81.9", "77.9 / 78.0"),
    "separately trained": ("68.7 / 71.8", "79.6 / 81.0", "82.1 / 82.0", "83.5 / 83.6", ""),
}
_NOTE = (
    '\n\nOn "intents" all methods are better here than in the reference run, and fine-tuning by far at the smallest '
    "size: 30 more than that would be the quality of the full model."
)
_ASKED = {
    "intents": {"1 layer, 12": 30.0, "all sizes": 8.0, "4 layers, 96": -4.0},
    "sts": {"1 layer, 32": 0.0, "2 layers, 64": 0.0, "3 layers, 128": 0.0, "all sizes": 0.0},
}


def claims(rows: sizes.Rows) -> list[dict[str, Any]]:
    """What 2D Matryoshka should do against fine-tuning: of "intents" the specification's gates, else be better."""
    return [
        sizes.claim(rows, setting, "2D Matryoshka", "fine-tuning", size, least)
        for setting in rows
        for size, least in _ASKED[setting].items()
    ]


def main() -> None:
    name, preset, seeds, out = common.arguments("matryoshka_2d", __doc__.split("\n")[0], sizes.PRESETS)
    enable_persistent_cache()
    grids = sizes.measured(preset.trainings, lambda training: sizes.METHODS, seeds, preset.keep)
    metrics = {"preset": name, **dataclasses.asdict(preset), "seeds": seeds}
    reference: dict[sizes.Name, Any] = {} if name == "smoke" else {"intents": _REFERENCE}
    found = claims(sizes.rows(grids, preset.trainings))
    about = "# 2D Matryoshka" + (_NOTE if name == "small" else "")
    sizes.write_results(out, metrics, about, grids, preset.trainings, reference, found)


if __name__ == "__main__":
    main()
