"""Two processes give what one gives: training, encoding, search, evaluation, checkpoints.

Run as a program, this file is one of the two processes.
"""

import argparse
import dataclasses
import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from processes import finish, start
from tiny_run import read_model
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from jaxemb import pooling
from jaxemb.checkpoints import Parameters
from jaxemb.compilation import enable_persistent_cache
from jaxemb.data import Number, Text, Tokenizer, batches
from jaxemb.data.records import Source
from jaxemb.evaluate import retrieval
from jaxemb.losses import duplicates, info_nce
from jaxemb.losses.masks import guided
from jaxemb.objectives import on_columns
from jaxemb.parallel import make_mesh
from jaxemb.retrieval import topk_search
from jaxemb.sentence_embedder import SentenceEmbedder
from jaxemb.train import Run, fit, read_metrics
from jaxemb.trees import by_path

BATCH, STEPS = 16, 4
TOKENIZER = Tokenizer(Backend(models.WordLevel({str(n): n for n in range(50)}, unk_token="0")))
TOKENIZER.backend.pre_tokenizer = pre_tokenizers.Whitespace()
GUIDE = np.random.default_rng(0).standard_normal((80, 4), np.float32)


def text(*seed: int, longest: int = 8) -> str:
    rng = np.random.default_rng(seed)
    return " ".join(map(str, rng.integers(1, 50, rng.integers(3, longest + 1))))


class Rows(list):
    """Records that know how many of them were asked for at a time."""

    requests: set[int]

    def __getitems__(self, indices):
        self.requests.add(len(indices))
        return [self[i] for i in indices]


def records() -> Rows:
    rows = Rows({"query": text(n, 0), "document": text(n, 1), "topic": n % 10} for n in range(40))
    rows.requests = set()
    return rows


def masked(queries, documents, *, id, topic):
    """Records of a topic have the same query, and a guide finds some documents closer than the own one."""
    guide = jnp.asarray(GUIDE)
    mask = duplicates(topic, id + 1000) | guided(guide[id], guide[id + 40], margin=0.1)
    return info_nce(queries, documents, temperature=0.1, mask=mask, directions=("q2d", "q2q", "p2p"), tile=8)


OBJECTIVES = {
    "plain": on_columns(functools.partial(info_nce, temperature=0.1), "query", "document"),
    "cached": on_columns(functools.partial(info_nce, temperature=0.1, tile=2), "query", "document", chunk=8),
    "masked": on_columns(masked, "query", "document", others=["id", "topic"]),
}
SHAPES = {"plain": (1, 2), "cached": (2, 1), "masked": (2, 1)}  # data, fsdp: the plain run also splits the parameters


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bag:
    """An encoder that compiles in no time: the mean over a text's tokens of `tanh(table[token] W)`."""

    table: jax.Array
    kernel: jax.Array
    dim = 16

    def __call__(self, tokens, *, key=None, dim=None):
        return pooling.Mean()(jnp.tanh(self.table[tokens.ids] @ self.kernel), tokens)


def small_model() -> Bag:
    rng = np.random.default_rng(0)
    return Bag(*(jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((50, 16), (16, 16))))


RULES = (
    (r"table|kernel", (PartitionSpec("fsdp", None), PartitionSpec(None, "fsdp"))),  # of 50 and 16 rows
    (r".*", PartitionSpec()),
)


def run_of(name: str, mesh, rows: Rows) -> Run:
    columns = {"query": Text(), "document": Text(), "topic": Number()}
    data = lambda _: batches(
        Source(rows, "made"), TOKENIZER, columns, batch_size=BATCH, max_length=8, buckets=(8,), seed=1
    )
    return Run(
        embedder=lambda: Parameters(small_model()),
        data=data,
        objective=OBJECTIVES[name],
        optimizer=optax.sgd(0.1, momentum=0.9),  # Adam would make steps of the rounding of gradients that are 0
        steps=STEPS,
        checkpoint_every=2,
        log_every=1,
        mesh=mesh,
        rules=mesh and RULES,
    )


def encoded(mesh, out: Path | None) -> dict[str, np.ndarray]:
    """What encoding, search and evaluation give on a mesh."""
    embedder = SentenceEmbedder(small_model(), TOKENIZER, max_length=16, format=None)
    texts = [text(n, 2, longest=30) for n in range(50)]
    vectors = embedder.encode(texts, mesh=mesh, batch_tokens=64, out=out)
    scores, ids = topk_search(vectors[:5], vectors, 3, mesh=mesh, corpus_chunk=20)

    class OnMesh:
        def encode(self, texts, *, prompt_name=None):
            return embedder.encode(texts, mesh=mesh, batch_tokens=64)

    queries = {str(n): t for n, t in enumerate(texts[:10])}
    corpus = {str(n): t for n, t in enumerate(texts[10:])}
    metrics = retrieval(OnMesh(), queries, corpus, {n: {str(3 * int(n)): 1} for n in queries}, ks=(5, 20))
    return {"vectors": vectors, "scores": scores, "ids": ids, "metrics": np.array(list(metrics.values()))}


def losses(out: Path) -> list[float]:
    return [line["train/loss"] for line in read_metrics(out) if "train/loss" in line]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("two")
    finish(start(__file__, out, "--runs", "plain"))
    return out


@pytest.fixture(scope="module")
def two_processes_of_other_losses(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("two")
    finish(start(__file__, out, "--runs", "cached,masked"))
    return out


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """The plain run on one device."""
    out = tmp_path_factory.mktemp("one")
    fit(run_of("plain", None, records()), out, progress=False)
    return out


def assert_same_run(found: Path, expected: Path) -> None:
    np.testing.assert_allclose(losses(found), losses(expected), atol=1e-5)
    found, expected = (read_model(out / "model") for out in (found, expected))
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5, err_msg=name)
    start = by_path(small_model())
    assert max(np.abs(value - start[name]).max() for name, value in expected.items()) > 1e-2  # it has learnt


def test_training_on_two_processes_is_training_on_one(two_processes, plain):
    assert_same_run(two_processes / "plain", plain)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cached", "masked"])
def test_cached_tiled_and_masked_losses_too(two_processes_of_other_losses, tmp_path, name):
    fit(run_of(name, None, records()), tmp_path, progress=False)
    assert_same_run(two_processes_of_other_losses / name, tmp_path)


def test_each_process_reads_its_share_of_the_records(two_processes):
    for process in range(2):
        np.testing.assert_array_equal(np.load(two_processes / f"{process}.npz")["requests"], [1, BATCH // 2])


def test_encoding_search_and_evaluation_give_every_process_what_one_gives(two_processes):
    expected = encoded(None, None)
    for process in range(2):
        found = np.load(two_processes / f"{process}.npz")
        for name in ("vectors", "scores", "metrics"):
            np.testing.assert_allclose(found[name], expected[name], atol=1e-5, err_msg=name)
        np.testing.assert_array_equal(found["ids"], expected["ids"])
    np.testing.assert_array_equal(np.load(two_processes / "vectors.npy"), found["vectors"])


@pytest.mark.parametrize("shape", [(2, 4), *(pytest.param(s, marks=pytest.mark.slow) for s in (None, (8, 1)))])
def test_a_checkpoint_of_two_processes_goes_on_in_one_on_another_mesh(two_processes, plain, tmp_path, shape):
    out = tmp_path / "run"
    shutil.copytree(two_processes / "plain", out)
    state = out / "checkpoints" / "step_00000002" / "state"
    assert all((state / f"ocdbt.process_{process}").is_dir() for process in range(2))  # both wrote
    for later in ("checkpoints/step_00000004", "model"):
        shutil.rmtree(out / later)
    mesh = None if shape is None else make_mesh(*shape)
    fit(run_of("plain", mesh, records()), out, progress=False)
    assert_same_run(out, plain)


CONFIG = """
import time
from jaxemb.parallel import make_mesh
from tiny_run import pairs, toy_run

def slowly(batch):
    time.sleep(0.1)
    return batch

def run():
    data = lambda embedder: pairs().map(slowly)
    return toy_run(steps=40, mesh=make_mesh(), data=data, evaluators={}, checkpoint_every=5, log_every=1)
"""


@pytest.mark.slow
def test_the_loss_of_a_process_ends_the_other_and_the_run_goes_on_when_started_again(tmp_path):
    config, out = tmp_path / "config.py", tmp_path / "run"
    config.write_text(CONFIG)
    command = ("-m", "jaxemb", "train", config, "--out", out, "--distributed")
    for lost, at in ((1, 8), (0, 18)):  # process 0 is the one that JAX coordinates the others by
        processes = start(*command)
        while not (out / "metrics.jsonl").exists() or len(losses(out)) < at:
            assert all(process.poll() is None for process in processes), finish(processes)
            time.sleep(0.05)
        processes[lost].send_signal(signal.SIGKILL)
        said = processes[1 - lost].communicate(timeout=60)[1]
        assert processes[1 - lost].returncode not in (0, None)
        assert "process was lost" in said and "start all processes again with the same command to go on from" in said
        assert f"the newest checkpoint in {out}" in said
        processes[lost].communicate(timeout=60)
        assert list((out / "checkpoints").glob("step_*"))
    finish(start(*command))

    whole = tmp_path / "whole"
    finish(start("-m", "jaxemb", "train", config, "--out", whole, "--distributed"))
    for name, value in read_model(whole / "model").items():
        np.testing.assert_array_equal(read_model(out / "model")[name], value)
    assert losses(out) == losses(whole)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--runs", help="names, with commas between them")
    parser.add_argument("--coordinator")
    parser.add_argument("--num-processes", type=int)
    parser.add_argument("--process-id", type=int)
    args = parser.parse_args()
    enable_persistent_cache()
    jax.distributed.initialize(args.coordinator, args.num_processes, args.process_id)
    rows = records()
    for name in args.runs.split(","):
        fit(run_of(name, make_mesh(*SHAPES[name]), rows), args.out / name, progress=False)
    results = encoded(make_mesh(), args.out / "vectors.npy")
    np.savez(args.out / f"{args.process_id}.npz", requests=sorted(rows.requests), **results)


if __name__ == "__main__":
    import test_distributed  # by its name, which the checkpoints' description of the run holds

    test_distributed.main()


def test_a_process_whose_output_nobody_reads_ends_well_as_the_others_do():
    code = (
        "import sys; from jaxemb import cli; from jaxemb.parallel import processes\n"
        "cli._has_joined = lambda: True\n"
        "processes.end = lambda code: sys.exit(f'ended with {code}')\n"
        "cli.main(['info'])"
    )
    unread, output = os.pipe()
    os.close(unread)
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=output, stderr=subprocess.PIPE, text=True, timeout=60, env=environment
    )
    os.close(output)
    assert done.returncode == 0 and not {"Traceback", "ended"} & set(done.stderr.split())
