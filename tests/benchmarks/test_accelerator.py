"""`benchmarks.accelerator` with tiny shapes on the CPU: every part, and what becomes of parts and peers that fail."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from benchmarks.accelerator import hyperinterval, report, run
from benchmarks.accelerator.measure import Bench, write_rows
from benchmarks.accelerator.parts import PARTS, Part
from benchmarks.accelerator.peers import Peer

REPOSITORY = Path(__file__).resolve().parents[2]


def outcome(part: Part, directory: Path) -> dict:
    """Of a part run in this process and without peers, as `run.run` makes it."""
    before, file = jax.config.read("jax_disable_most_optimizations"), directory / f"{part.name}.jsonl"
    write_rows(Bench(part.module, time.monotonic() + 1000, smoke=True, with_peer=False), file)
    jax.config.update("jax_disable_most_optimizations", before)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return {"name": part.name, "title": part.title, "status": "done", "seconds": 1.0, "rows": rows}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Of all parts but the numerical checks, which compile as much as the others together."""
    directory = tmp_path_factory.mktemp("accelerator")
    return [outcome(part, directory) for part in PARTS[1:]]


def check_machine(machine: dict) -> None:
    assert machine["machine"].keys() >= {"device", "nvidia_smi", "bytes_limit", "packages", "platform_version"}


@pytest.mark.slow
def test_the_numerical_checks_pass(tmp_path):
    machine, *rows = outcome(PARTS[0], tmp_path)["rows"]
    check_machine(machine)
    assert PARTS[0].name == "numerics" and rows
    for row in rows:
        assert row["passed"] and "error" not in row and "skipped" not in row, row
        assert math.isfinite(row["measured"]), row


@pytest.mark.parametrize("part", PARTS[1:], ids=lambda part: part.name)
def test_every_part_gives_its_rows(outcomes, part):
    (found,) = (outcome for outcome in outcomes if outcome["name"] == part.name)
    machine, *rows = found["rows"]
    check_machine(machine)
    assert rows
    for row in rows:
        assert "error" not in row["ours"], row
        assert row["ours"]["seconds"] > 0 and row["bytes"] > 0, row
        assert row["flops"] > 0 or row["precision"] == "copy", row
        assert row["ours"].keys() >= {"samples", "first_call_seconds", "process_peak_bytes"}
        if part.name != "search":  # which compiles as it is called
            assert row["ours"].keys() >= {"compile_seconds", "program_bytes", "xla_flops"}
        assert row["peer"]["absent"] and row["ratio"] is None


def test_the_summary_has_every_row_and_shares_of_the_measured_peaks(outcomes, tmp_path):
    report.write(tmp_path, outcomes)
    lines = (tmp_path / "summary.md").read_text().splitlines()
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["peaks"].keys() == {"bf16", "tf32", "f32", "copy"}
    for name, part in results["parts"].items():
        assert part["rows"]
        for row in part["rows"]:
            assert any(line.startswith(f"| {row.get('case') or row['check']} |") for line in lines), row
            if name in ("encode", "train"):
                assert row["ours"]["share_of_peak"] > 0 and row["ours"]["share_of_bandwidth"] > 0


def test_the_parts_fit_into_eight_minutes():
    assert sum(part.seconds for part in PARTS) <= 480


def test_hyperinterval_is_measured_in_the_published_setting():
    from experiments.hyperinterval import PERMUTED_MNIST, PRESETS

    setting = PRESETS["paper"].streams[PERMUTED_MNIST]
    assert (setting.steps, setting.batch_size, setting.target) == (
        hyperinterval.STEPS,
        hyperinterval.BATCH,
        hyperinterval.TARGET,
    )
    assert {"embed_dim": 24, **setting.plain} == hyperinterval.CONFIG


def modules(directory: Path, monkeypatch, **sources: str) -> None:
    """Modules that processes begun from here can import."""
    directory.mkdir(exist_ok=True)
    for name, source in sources.items():
        (directory / f"{name}.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", f"{directory}:{REPOSITORY}")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")


def test_a_part_that_fails_is_reported_and_the_others_survive(tmp_path, monkeypatch):
    row = "{'check': name, 'measured': 0.0, 'limit': 1.0, 'passed': True}"
    modules(
        tmp_path / "parts",
        monkeypatch,
        slow="import time\ntime.sleep(100)",
        crashed=f"import os\ndef rows(bench):\n    name = 'before the crash'\n    yield {row}\n    os._exit(7)",
        broken=f"def rows(bench):\n    name = 'before the error'\n    yield {row}\n    raise ValueError('too bad')",
        fine=f"def rows(bench):\n    name = 'well'\n    yield {row}",
    )
    # What is left for the slow one is a second; the others may take what they need.
    parts = [Part(name, name, 1 if name == "slow" else 40, name) for name in ("slow", "crashed", "broken", "fine")]
    out = tmp_path / "out"
    assert not run.run(parts, out, budget=121, smoke=True, with_peer=False)
    results = json.loads((out / "results.json").read_text())["parts"]
    assert results["slow"]["status"] == "stopped after 1 s"
    assert results["crashed"]["status"].startswith("failed: exit code 7")
    assert results["broken"]["status"] == "failed: exit code 1; ValueError: too bad"
    assert results["fine"]["status"] == "done"
    assert [len(results[name]["rows"]) for name in results] == [0, 1, 1, 1]
    summary = (out / "summary.md").read_text()
    for text in ("**stopped after 1 s**", "before the crash", "before the error", "ValueError: too bad", "| well |"):
        assert text in summary


def test_a_part_without_time_is_listed(tmp_path):
    assert run.run(PARTS, tmp_path, budget=0, smoke=True, with_peer=False)
    summary = (tmp_path / "summary.md").read_text()
    for part in PARTS:
        assert f"| {part.name} | not run: no time left | 0 |" in summary


def test_what_fails_says_so_in_its_own_column():
    def broken():
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory\nand a page of detail")

    bench = Bench("none", time.monotonic() + 100, smoke=True, with_peer=False)
    about = {"flops": 1.0, "bytes": 1.0, "precision": "f32"}
    row = bench.measure("large", broken, **about)
    assert row["ours"] == {"error": "RuntimeError: RESOURCE_EXHAUSTED: out of memory"} and row["ratio"] is None
    late = Bench("none", time.monotonic() - 1, smoke=True, with_peer=False).measure("late", broken, **about)
    assert late["skipped"] == "no time left"
    outcome = {"name": "p", "title": "P", "status": "done", "seconds": 1.0, "rows": [row, late]}
    summary = report.markdown(report.collect([outcome]))
    assert "RuntimeError: RESOURCE_EXHAUSTED: out of memory" in summary and "| no time left |" in summary


PEER = """
import os
def peer(spec, device):
    if spec["case"] == "missing":
        import no_such_package
    if spec["case"] == "large":
        raise RuntimeError("out of memory")
    if spec["case"] == "dies":
        os._exit(3)
    print("noise")
    return "a peer", lambda: None
"""


def test_a_peer_that_fails_is_reported_and_begun_anew(tmp_path, monkeypatch):
    modules(tmp_path, monkeypatch, torch="", a_peer=PEER)
    peer = Peer("a_peer", "cpu")
    ask = lambda case: peer.prepare({"case": case}, 0.0, 60.0)
    assert (
        ask("good")["name"] == "a peer" and peer.sample(60.0)["seconds"] >= 0 and peer.finish() == {"peak_bytes": None}
    )
    assert ask("missing") == {"absent": "No module named 'no_such_package'"}
    assert ask("large") == {"error": "RuntimeError: out of memory"}
    assert ask("dies") == {"error": "its process ended (exit code 3)"}
    assert peer.finish() == {}
    assert ask("good")["name"] == "a peer"
    peer.close()


def test_without_torch_the_peer_is_absent(tmp_path, monkeypatch):
    modules(tmp_path, monkeypatch, torch="raise ImportError('no torch here')", a_peer=PEER)
    peer = Peer("a_peer", "cpu")
    assert peer.prepare({"case": "good"}, 0.0, 60.0) == {"absent": "no torch here"}
    peer.close()


@pytest.mark.slow
def test_the_command_measures_this_library_and_its_peers(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    modules(tmp_path / "none", monkeypatch)
    command = [sys.executable, "-m", "benchmarks.accelerator", "--smoke", "--out", str(tmp_path)]
    subprocess.run(command, cwd=REPOSITORY, check=True, timeout=480)
    results = json.loads((tmp_path / "results.json").read_text())
    assert {part["status"] for part in results["parts"].values()} == {"done"}
    rows = [row for part in results["parts"].values() for row in part["rows"] if "case" in row]
    for row in rows:
        assert row["ratio"] is not None or row["peer"]["absent"], row
    assert sum(row["ratio"] is not None for row in rows) > len(rows) // 2
