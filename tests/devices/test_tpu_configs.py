"""Two processes that train a real encoder as one, its parameters split: the config of `tpu/`, but small."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import processes
import pytest

import jaxemb
from jaxemb.train import fit

pytestmark = pytest.mark.slow

OPTIONS = {"batch_size": 8, "length": 16, "chunk": 4, "tile": 4, "steps": 3}
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def pairs(tmp_path) -> Path:
    path = tmp_path / "pairs.jsonl"
    records = [{"query": f"what is {n}", "document": f"the number after {n - 1}"} for n in range(32)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def train(*arguments: str) -> None:
    """Runs `jaxemb train tpu/bert_base.py` with the arguments as two processes of one device."""
    processes.finish(
        processes.start("-m", "jaxemb", "train", REPOSITORY / "tpu/bert_base.py", *arguments, "--distributed"), 300
    )


def test_two_processes_train_and_save_the_model_of_one(tiny_minilm, pairs, tmp_path, monkeypatch):
    options = OPTIONS | {"data": str(pairs), "model": str(tiny_minilm)}
    chosen = [text for name, value in options.items() for text in ("--set", f"{name}={value}")]
    train("--out", str(tmp_path / "two"), "--set", "fsdp=2", *chosen)

    monkeypatch.syspath_prepend(REPOSITORY)
    from jaxemb.parallel import default_devices
    from jaxemb.train import load_run

    with default_devices(jax.devices()[:1]):
        one = fit(load_run(REPOSITORY / "tpu/bert_base.py", options), tmp_path / "one", progress=False)
    losses = [
        [json.loads(line)["train/loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)  # in bf16
    start, two = (jax.tree.leaves(jaxemb.load(str(p)).model) for p in (tiny_minilm, tmp_path / "two" / "model"))
    difference = lambda a, b: optax.tree.norm(jax.tree.map(jnp.subtract, a, b))
    learnt = difference(jax.tree.leaves(one.embedder.model), start)
    assert learnt > 0.1 and difference(two, jax.tree.leaves(one.embedder.model)) < 0.05 * learnt


def test_made_up_texts_time_a_slice(tmp_path):
    small = OPTIONS | {"steps": 1, "batch_size": 4, "chunk": 4}
    train("--out", str(tmp_path / "run"), *[text for n, v in small.items() for text in ("--set", f"{n}={v}")])
    assert (tmp_path / "run" / "checkpoints" / "step_00000001").is_dir()
