"""What a compiled run needs, and what to change: the parts of a report, its advice and its text."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxemb.aot.hlo import Buffer, Program
from jaxemb.aot.slices import Slice
from jaxemb.train.memory import size_of

_HEADROOM = 0.9  # of the memory, in what is advised


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one chip's memory.

    Attributes:
      arguments: the train state and the batch; the new state takes the place of the old one.
      temporaries: what the step needs beside them, at the most.
      peak: the most at any time, the program included.
      capacity: what the chip has for programs.
    """

    arguments: float
    temporaries: float
    peak: float
    capacity: float


@dataclasses.dataclass(frozen=True)
class Traffic:
    """All collectives of one kind over groups of one size.

    Attributes:
      kind: such as "all-reduce".
      chips: chips that take part together.
      operations: collectives in the program.
      runs: how often they run in a step.
      nbytes: bytes of their operands per chip and step.
      sent: bytes that a chip sends per step, see `jaxemb.aot.hlo.Collective`.
      seconds: at the bandwidth of the links that such a group can use.
    """

    kind: str
    chips: int
    operations: int
    runs: int
    nbytes: float
    sent: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class Seconds:
    """Time of one step on one chip, by what bounds it.

    Attributes:
      matrix_units: FLOPs at the peak.
      hbm: bytes of the main memory at its bandwidth.
      ici: collectives, see `Traffic`.
      kernels: all but collectives, as the TPU compiler estimates its own kernels.
    """

    matrix_units: float
    hbm: float
    ici: float
    kernels: float

    @property
    def roofline(self) -> float:
        """The least that is possible: the longest of the three if they overlap completely."""
        return max(self.matrix_units, self.hbm, self.ici)

    @property
    def step(self) -> float:
        """The prediction: the kernels, then the collectives, as if nothing of the two overlapped."""
        return max(self.kernels, self.matrix_units, self.hbm) + self.ici


@dataclasses.dataclass(frozen=True)
class Setup:
    """What is compiled for what.

    Attributes:
      topology: name of the slice.
      chips: how many.
      mesh: axis to size.
      records: records of the global batch, over all micro-batches.
      texts: rows of tokens of that batch, over all columns.
      micro_batches: run one after another in a step.
      parameters: numbers in the trained model.
      steps: of the whole run, of all its tasks.
    """

    topology: str
    chips: int
    mesh: Mapping[str, int]
    records: int
    texts: int
    micro_batches: int
    parameters: int
    steps: int

    @property
    def batch(self) -> int:
        """Records of a micro-batch."""
        return self.records // self.micro_batches

    @property
    def rows(self) -> int:
        """Records of a micro-batch on one chip."""
        return self.batch // (self.mesh["data"] * self.mesh["fsdp"])


@dataclasses.dataclass(frozen=True)
class Report(Setup):
    """What a compiled run, see `Setup`, needs. Bytes, FLOPs and seconds are of one chip and one step.

    Attributes:
      fits: whether the compiler found room. If not, there is no program, and work and time are None.
      memory: see `Memory`.
      largest: the largest arrays in the main memory: bytes and what they are.
      flops: of matrix products, and `matrix_unit_flops` as bf16 operations.
      hbm_bytes: moved from and to the main memory.
      traffic: collectives by kind.
      seconds: see `Seconds`.
      peak_share: predicted share of the chip's bf16 peak, `flops / (peak * seconds.step)`; `roofline_share` at best.
      advice: what to change, if anything.
      program: the compiled program.
    """

    fits: bool
    memory: Memory
    largest: tuple[tuple[float, str], ...]
    flops: float | None = None
    matrix_unit_flops: float | None = None
    hbm_bytes: float | None = None
    traffic: tuple[Traffic, ...] = ()
    seconds: Seconds | None = None
    peak_share: float | None = None
    roofline_share: float | None = None
    advice: tuple[str, ...] = ()
    program: Program | None = dataclasses.field(default=None, repr=False)

    @property
    def chip_hours(self) -> float | None:
        """Of the whole run, as predicted and without evaluation or input; None if it does not fit."""
        return None if self.seconds is None else self.steps * self.seconds.step * self.chips / 3600

    def as_json(self) -> dict[str, Any]:
        """All but the program, in types that JSON has."""
        found = dataclasses.asdict(dataclasses.replace(self, program=None))
        del found["program"]
        found["chip_hours"] = self.chip_hours
        if self.seconds is not None:
            found["seconds"] |= {"roofline": self.seconds.roofline, "step": self.seconds.step}
        return found

    def __str__(self) -> str:
        return "\n".join(_lines(self))


# Advice


def advice_on_speed(
    setup: Setup, program: Program, traffic: Iterable[Traffic], seconds: Seconds, slice_: Slice
) -> Iterable[str]:
    """What would make a step shorter."""
    bits = sum(runs * i.cycles for runs, i, _ in program.executed() if {b.dtype for b in i.outputs} == {"u32"})
    if bits / slice_.chip.clock > 0.1 * seconds.step:
        yield f"random bits take {_time(bits / slice_.chip.clock)} of {_time(seconds.step)}: a dropout of 0 needs none"
    reduced = sum(kind.nbytes for kind in traffic if kind.kind == "all-reduce")
    once = 4.0 * setup.parameters
    if reduced > 3 * once and seconds.ici > 0.1 * seconds.step:
        yield (
            f"{size_of(reduced)} are summed over the chips in a step, the gradients once would be {size_of(once)}: "
            "they are summed in each of several micro-batches or chunks; larger and fewer ones send less"
        )
    if seconds.ici > 0.5 * seconds.step:
        yield f"collectives take {_time(seconds.ici)} of {_time(seconds.step)}: more records per chip hide them better"


def advice_on_memory(
    setup: Setup, memory: Memory, state: float, buffers: Sequence[tuple[float, tuple[Buffer, ...]]]
) -> Iterable[str]:
    """What would make room; `state` are the train state's bytes, `buffers` as the compiler's log has them."""
    room, rows = _HEADROOM * memory.capacity, setup.rows
    arrays = [(size, max(shared, key=lambda b: b.nbytes)) for size, shared in buffers if shared]
    total = lambda wanted: sum(size for size, array in arrays if wanted(array))

    if state > room / 4:
        whole = state * setup.mesh["fsdp"]
        sizes = [2**k for k in range(1, 20) if setup.chips % 2**k == 0 and 2**k > setup.mesh["fsdp"]]
        if fits := [size for size in sizes if whole / size < room / 4] or sizes[-1:]:
            yield (
                f"the train state takes {size_of(state)} on every chip: with rules=ENCODER_RULES and fsdp={fits[0]} "
                f"about {size_of(whole / fits[0])}"
            )
    pairs = total(is_pairs := lambda b: len(b.shape) == 2 and b.shape[0] >= rows > 1 and b.shape[1] >= setup.batch)
    if pairs > 0.02 * memory.peak:
        example = next(array for _, array in arrays if is_pairs(array))
        yield (
            f"similarities of all pairs, {example} and the like, take {size_of(pairs)}: "
            "info_nce(..., tile=1024) holds no more than a tile of them"
        )
    bits = total(is_global := lambda b: b.dtype == "u32" and b.shape and b.shape[0] >= setup.batch > rows)
    if bits > 0.02 * memory.peak:
        example = next(array for _, array in arrays if is_global(array))
        yield (
            f"random bits of the whole batch, {example} and the like, take {size_of(bits)} on every chip: "
            'Run(prng="threefry2x32") makes on each chip its own part, a dropout of 0 needs none'
        )
    free, others = room - memory.arguments, memory.temporaries - pairs - bits
    fitting = 2 ** math.floor(math.log2(max(rows * free / others, 1))) if others > 0 else rows
    if free > 0 and fitting < rows:
        chunk = fitting * setup.texts // setup.micro_batches // rows
        yield (
            f"other temporaries of {rows:,} records on a chip take {size_of(others)}, {size_of(free)} are left: "
            f"on_columns(..., chunk={chunk}) encodes those of {fitting:,} at a time and gives the same gradient"
        )
    stacks = {array.shape for _, array in arrays if len(array.shape) >= 3 and array.shape[1] >= rows > array.shape[0]}
    kept = total(lambda b: b.shape in stacks)
    if len(stacks) > 1 and kept > 0.2 * memory.temporaries:
        yield (
            f"what the layers keep for the backward pass, {len(stacks)} arrays per layer, takes {size_of(kept)}: "
            'remat="full" in the encoder keeps one and recomputes the others'
        )
    wide = total(lambda b: b.dtype == "f32" and len(b.shape) > 2 and math.prod(b.shape) > rows * b.shape[-1])
    if wide > 0.2 * memory.temporaries:
        yield f'f32 arrays of the activations take {size_of(wide)}: dtype="bfloat16" in the encoder halves most of them'
    attention = total(lambda b: len(b.shape) >= 4 and b.shape[-1] == b.shape[-2])
    if attention > 0.2 * memory.temporaries:
        yield f"attention weights [texts, heads, T, T] take {size_of(attention)}: shorter texts, or fewer at a time"


# Text


def _lines(report: Report) -> Iterable[str]:
    memory = report.memory
    mesh = " ".join(f"{name}={size}" for name, size in report.mesh.items())
    parts = f" in {report.micro_batches} micro-batches" if report.micro_batches > 1 else ""
    yield (
        f"{report.topology}: {report.chips} chips, mesh {mesh}; {report.records:,} records of "
        f"{report.texts:,} texts a step{parts}; "
        f"{report.parameters / 1e6:,.1f} M parameters"
    )
    yield ""
    yield "memory of a chip"
    yield f"  state and batch     {size_of(memory.arguments):>12}"
    yield f"  temporaries         {size_of(memory.temporaries):>12}"
    of = f"of {size_of(memory.capacity)}, {memory.peak / memory.capacity:.0%}"
    yield f"  peak                {size_of(memory.peak):>12}  {of}{'' if report.fits else ': DOES NOT FIT'}"
    yield ""
    yield "largest arrays"
    yield from (f"  {size_of(size):>12}  {what}" for size, what in report.largest)
    if report.seconds is not None:
        yield ""
        yield f"{'collectives':<20}{'chips':>8}{'in program':>12}{'runs':>8}{'operands':>13}{'sent':>13}{'time':>11}"
        for kind in report.traffic:
            yield (
                f"  {kind.kind:<18}{kind.chips:>8}{kind.operations:>12}{kind.runs:>8}{size_of(kind.nbytes):>13}"
                f"{size_of(kind.sent):>13}{_time(kind.seconds):>11}"
            )
        seconds = report.seconds
        yield ""
        yield "time of a step"
        yield f"  matrix units        {_time(seconds.matrix_units):>12}  {report.flops:.3g} FLOPs at the bf16 peak"
        yield f"  main memory         {_time(seconds.hbm):>12}  {size_of(report.hbm_bytes or 0)}"
        sent = sum(kind.sent for kind in report.traffic)
        yield f"  interconnect        {_time(seconds.ici):>12}  {size_of(sent)} sent"
        yield f"  kernels             {_time(seconds.kernels):>12}  as the compiler estimates them"
        yield f"  roofline            {_time(seconds.roofline):>12}  {report.roofline_share:.1%} of the peak at best"
        yield f"  prediction          {_time(seconds.step):>12}  {report.peak_share:.1%} of the peak"
        yield ""
        hours = f"{report.steps * seconds.step / 3600:,.3g} h"
        yield f"{f'all {report.steps:,} steps':<22}{hours:>12}  {report.chip_hours:,.3g} chip-hours"
    if report.advice:
        yield ""
        yield "what to change"
        yield from (f"  - {line}" for line in report.advice)


def _time(seconds: float) -> str:
    return (
        f"{seconds:.2f} s"
        if seconds >= 1
        else f"{1e3 * seconds:.2f} ms"
        if seconds >= 1e-3
        else f"{1e6 * seconds:.0f} us"
    )
