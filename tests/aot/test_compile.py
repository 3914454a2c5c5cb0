"""Compiled runs: what the TPU compiler says of a run. Without libtpu they are skipped."""

import json
import re

import grain
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import CONTRASTIVE, pair_batch, tiny_model, tiny_run, toy_run

from jaxemb import parallel
from jaxemb.aot.compile import _overflow, compile_run
from jaxemb.aot.hlo import Program
from jaxemb.aot.report import Report, Setup
from jaxemb.aot.slices import CHIPS, Slice, tpu_slice
from jaxemb.checkpoints import Parameters
from jaxemb.train import load_run

GIB = 2**30


@pytest.fixture(scope="module")
def four():
    """Four v5e chips."""
    pytest.importorskip("libtpu", reason="the TPU compiler is absent: pip install 'jaxemb[tpu]'")
    return tpu_slice("v5e:2x2")


@pytest.fixture(scope="module")
def toy(four) -> Report:
    return compile_run(toy_run(), four)


def test_a_report_says_what_was_compiled(toy):
    assert (toy.topology, toy.chips, toy.mesh) == ("v5e:2x2", 4, {"data": 4, "fsdp": 1, "tensor": 1})
    assert (toy.records, toy.texts, toy.micro_batches, toy.parameters) == (8, 16, 1, 5)
    assert toy.fits and 0 < toy.memory.peak < toy.memory.capacity == 15.75 * GIB
    assert toy.memory.arguments > 8 * 8 * 4 * 6 / 4  # the tokens, a quarter of them on each chip
    assert toy.flops == 0 and toy.hbm_bytes > 0  # there is no matrix product in it
    reductions = [kind for kind in toy.traffic if kind.kind == "all-reduce"]
    assert [kind.chips for kind in reductions] == [4] and reductions[0].nbytes >= 5 * 4
    assert toy.seconds.step >= toy.seconds.roofline > 0
    assert toy.steps == 12 and toy.chip_hours == pytest.approx(12 * toy.seconds.step * 4 / 3600)


def test_a_report_is_json_and_text(toy):
    found = json.loads(json.dumps(toy.as_json()))
    assert found["memory"]["peak"] == toy.memory.peak and "program" not in found
    assert found["seconds"]["step"] == toy.seconds.step and found["chip_hours"] == toy.chip_hours
    text = str(toy)
    assert text.startswith(
        "v5e:2x2: 4 chips, mesh data=4 fsdp=1 tensor=1; 8 records of 16 texts a step; 0.0 M parameters"
    )
    assert re.search(r"peak +\d+\.\d\d [KM]iB  of 15.75 GiB, 0%\n", text) and "all-reduce" in text
    assert re.search(r"all 12 steps +\S+ h  \S+ chip-hours", text)


@pytest.mark.slow
def test_micro_batches_and_larger_batches(four):
    report = compile_run(toy_run(accumulate=3), four, records=32)
    assert (report.records, report.texts, report.micro_batches) == (96, 192, 3)


@pytest.mark.slow
def test_a_run_keeps_its_own_mesh(four):
    with parallel.default_devices(four.devices):
        mesh = parallel.make_mesh(fsdp=2)
    assert compile_run(toy_run(mesh=mesh), four).mesh == {"data": 2, "fsdp": 2, "tensor": 1}
    elsewhere = toy_run(mesh=parallel.make_mesh())  # the devices here
    assert compile_run(elsewhere, four).mesh == {"data": 4, "fsdp": 1, "tensor": 1}


def test_a_model_too_large_for_this_machine_is_not_made(four, capsys):
    run = toy_run(embedder=lambda: Parameters({"w": jnp.zeros(5), "more": jnp.zeros((2**18, 2**20))}))
    report = compile_run(run, four)
    said = capsys.readouterr().err.splitlines()
    assert [line.split(" s  ")[1].partition(" ")[0] for line in said] == ["reading", "tracing", "compiling"]
    assert said[2].endswith("s  compiling it for v5e:2x2, the longest part: minutes for large models")
    assert not report.fits and report.program is None and report.seconds is None and report.chip_hours is None
    assert report.parameters == 2**38 + 5 and report.memory.arguments == pytest.approx(3 * 2**40, rel=1e-3)
    assert report.memory.peak > report.memory.capacity
    assert any("with rules=ENCODER_RULES and fsdp=" in line for line in report.advice)
    assert "DOES NOT FIT" in str(report) and json.dumps(report.as_json())


@pytest.mark.slow
def test_a_batch_too_large_for_the_chips_is_reported(four):
    def objective(model, batch, key):
        return sum(batch[name].ids.sum(-1) for name in ("query", "document")) * model["w"][0], {}

    report = compile_run(toy_run(objective=objective), four, records=2**30)
    assert not report.fits and report.memory.peak > 2 * 2**28 * 8 * 4
    assert any("s32[268435456,8]" in what for _, what in report.largest)


@pytest.mark.slow
def test_an_embedder_that_cannot_be_traced(four):
    def make():
        w = np.asarray(jnp.full(5, 0.5)) * 2  # reads the numbers
        return Parameters({"w": jnp.asarray(w)})

    assert compile_run(toy_run(embedder=make), four).parameters == 5


@pytest.mark.slow
def test_the_state_is_split_by_the_rules(four):
    wide = toy_run(embedder=lambda: Parameters({"w": jnp.zeros(4096), "key": {"kernel": jnp.zeros((1024, 1024))}}))
    whole = compile_run(wide, four).memory.arguments
    mesh = parallel.make_mesh(data=1, fsdp=4, devices=four.devices)
    assert compile_run(wide, four, mesh=mesh).memory.arguments < 0.3 * whole


def test_a_batch_that_does_not_split(four):
    with pytest.raises(ValueError, match=r"the 6 rows of .* do not split over the 4 shards of the mesh"):
        compile_run(toy_run(), four, records=6)


def test_no_data(four):
    nothing = lambda embedder: grain.MapDataset.range(0).batch(8, batch_fn=pair_batch).to_iter_dataset()
    with pytest.raises(ValueError, match="there is no batch to take shapes from"):
        compile_run(toy_run(data=nothing), four)


# What to change, from the compiler's report


LOG = """Ran out of memory in memory space hbm. Used {used}G of 15.75G hbm. Memory usage report:
  cumulative_size;       size;       offset; used_by_n_values; shapes_list
  ------------------------------------------------------------
{lines}
Memory Space: vmem (color=1)
    9.00GiB( 24%);    9.00GiB;            0;                1; f32[9,9]
"""


def overflow(state: float, batch: float, used: float, *lines: str) -> Report:
    setup = Setup("v5e:8x8", 64, {"data": 64, "fsdp": 1, "tensor": 1}, 65_536, 131_072, 1, 110_000_000, 1000)
    chips = Slice("v5e:8x8", CHIPS["v5e"], (8, 8), ())
    error = f"RESOURCE_EXHAUSTED: the memory required for HLO temporaries ({used}G) exceeds available HBM (15.75G)."
    log = LOG.format(used=used, lines="\n".join(lines))
    return _overflow(setup, chips, state * GIB, batch * GIB, error + log)


def test_the_compilers_report_is_read():
    report = overflow(
        1.25,
        0.0,
        25.25,
        "    4.50GiB( 24%);    4.50GiB;       786432;                8; f32[2048,128,768], 5×bf16[12,2048,128,768]",
        "    5.00GiB( 33%);  512.00MiB;   8053850112;                5; 2×bf16[2048,128,768]",
    )
    assert report.memory.temporaries == 24 * GIB and report.memory.peak == 25.25 * GIB
    assert report.largest == (
        (4.5 * GIB, "bf16[12,2048,128,768], f32[2048,128,768]"),
        (0.5 * GIB, "bf16[2048,128,768]"),
    )
    # 0.9 * 15.75 - 1.25 = 12.93 GiB for 24: half of 1,024 records per chip, of 2 texts each
    assert [line for line in report.advice if "chunk=" in line] == [
        "other temporaries of 1,024 records on a chip take 24.00 GiB, 12.93 GiB are left: on_columns(..., chunk=65536) "
        "encodes those of 512 at a time and gives the same gradient"
    ]


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ("9.00GiB; 0; 1; f32[1024,65536]", "similarities of all pairs, f32[1024,65536] and the like, take 9.00 GiB"),
        ("9.00GiB; 0; 1; u32[131072,128,768]", "random bits of the whole batch, u32[131072,128,768] and the like"),
        ("9.00GiB; 0; 1; f32[2048,128,768]", 'f32 arrays of the activations take 9.00 GiB: dtype="bfloat16"'),
        ("9.00GiB; 0; 1; bf16[2048,12,128,128]", "attention weights [texts, heads, T, T] take 9.00 GiB"),
    ],
)
def test_what_to_change_depends_on_what_is_large(line, advice):
    report = overflow(
        1.25, 1.25, 25.25, f"    9.00GiB( 24%);    {line}", "    9.1GiB( 24%);  100.00MiB; 0; 1; f32[768]"
    )
    assert [advice in text for text in report.advice].count(True) == 1
    harmless = overflow(1.25, 0.0, 25.25, "    9.10GiB( 24%);    9.10GiB; 0; 1; bf16[2048,128,768]")
    assert not any(advice[:20] in text for text in harmless.advice)


def test_many_arrays_per_layer_ask_for_remat():
    lines = [f"    9.0GiB( 24%);    4.00GiB; 0; 1; bf16[12,2048,{shape}]" for shape in ("128,768", "128,3072")]
    advice = '2 arrays per layer, takes 8.00 GiB: remat="full"'
    assert any(advice in line for line in overflow(1, 0, 25, *lines).advice)
    assert not any("remat" in line for line in overflow(1, 0, 25, lines[0]).advice)


def test_a_large_state_asks_for_fsdp():
    advice = overflow(20, 0, 25).advice
    assert advice[0] == (
        "the train state takes 20.00 GiB on every chip: with rules=ENCODER_RULES and fsdp=8 about 2.50 GiB"
    )


# Real programs


def all_arrays(program: Program) -> set[tuple[int, ...]]:
    return {b.shape for _, instruction, _ in program.executed() for b in instruction.outputs}


def assert_scales(report: Report, *, dim: int, candidates: int) -> None:
    """No array of pairs beyond a tile, parameters never gathered, and room to spare."""
    assert report.fits and report.memory.peak < 0.9 * report.memory.capacity
    rows = report.records // report.chips
    pairs = [
        s for s in all_arrays(report.program) if len(s) >= 2 and sorted(s)[-2] >= rows and sorted(s)[-1] >= rows * 64
    ]
    assert not [shape for shape in pairs if sorted(shape)[-1] >= candidates // 2 and dim not in shape]
    gathered = [c for c in report.program.collectives if c.kind == "all-gather"]
    per_chip = (report.texts // report.chips) * dim * 4  # all embeddings of a chip
    assert all(c.nbytes <= per_chip and rows in {b.shape[0] for b in c.buffers} for c in gathered)


@pytest.mark.slow
def test_attention_for_tpus_is_compiled_for_tpus(four):
    run = tiny_run(embedder=lambda: Parameters(tiny_model(dropout=0.0, attention_dropout=0.0)))
    names = [i.op_name for c in compile_run(run, four).program.computations.values() for i in c.values()]
    assert any("BTNH,BSNH->BNTS" in name for name in names)  # jax.nn.dot_product_attention's
    assert not any("bhtd,bhsd->bhts" in name for name in names)  # ours, for CPUs


@pytest.mark.slow
def test_pairs_of_a_dense_loss_do_not_fit(four):
    report = compile_run(tiny_run(objective=CONTRASTIVE), four, records=2**20)
    assert not report.fits
    assert any("similarities of all pairs, f32[262144,1048576]" in line for line in report.advice)


@pytest.mark.slow
def test_a_bert_base_at_65536_pairs_on_64_chips():
    pytest.importorskip("libtpu", reason="the TPU compiler is absent: pip install 'jaxemb[tpu]'")
    report = compile_run(load_run("tpu/bert_base.py"), tpu_slice("v5e:8x8"))
    assert (report.records, report.chips) == (65_536, 64)
    assert_scales(report, dim=768, candidates=65_536)


@pytest.mark.slow
def test_peg_at_80000_records_with_5_hard_negatives_on_256_chips():
    pytest.importorskip("libtpu", reason="the TPU compiler is absent: pip install 'jaxemb[tpu]'")
    report = compile_run(load_run("tpu/peg.py"), tpu_slice("v5e:16x16"))
    assert (report.records, report.texts, report.chips) == (80_128, 7 * 80_128, 256)
    assert_scales(report, dim=1024, candidates=6 * 80_128)
