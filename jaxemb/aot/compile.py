"""What a run will need on a TPU slice, read off the program that the TPU compiler makes of its train step.

    report = compile_run(run, tpu_slice("v5e:16x16"))
    print(report)

No TPU is needed, nothing is trained, and no array of the run's size is made.
"""

import contextlib
import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxemb import parallel
from jaxemb.aot.hlo import Buffer, Collective, Program
from jaxemb.aot.slices import Slice, compiler_log
from jaxemb.parallel.mesh import ENCODER_RULES, Rules
from jaxemb.train.run import Run
from jaxemb.train.state import TrainState, begin_task, init_state
from jaxemb.train.step import make_train_step
from jaxemb.transforms import Task
from jaxemb.trees import PyTree, map_with_path
from jaxemb.types import Tokens

GIB = 2**30
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
class Report:
    """What a compiled run needs. Bytes, FLOPs and seconds are of one chip and one step.

    Attributes:
      topology: name of the slice.
      chips: how many.
      mesh: axis to size.
      records: records of the global batch, over all micro-batches.
      texts: rows of tokens of that batch, over all columns.
      micro_batches: run one after another in a step.
      parameters: numbers in the trained model.
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

    topology: str
    chips: int
    mesh: Mapping[str, int]
    records: int
    texts: int
    micro_batches: int
    parameters: int
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

    def as_json(self) -> dict[str, Any]:
        """All but the program, in types that JSON has."""
        found = dataclasses.asdict(dataclasses.replace(self, program=None))
        del found["program"]
        if self.seconds is not None:
            found["seconds"] |= {"roofline": self.seconds.roofline, "step": self.seconds.step}
        return found

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def compile_run(run: Run, slice_: Slice, *, mesh: Mesh | None = None, records: int | None = None) -> Report:
    """Compiles the train step of `run` for a TPU slice and reports what it needs.

    Args:
      run: the run; its first batch gives the shapes, as the whole batch of one process that stands for all.
      slice_: the chips, from `tpu_slice`.
      mesh: of the slice's devices; by default the run's own if it has these devices, else all of them along `data`.
        On another mesh than its own, a run that has no rules is placed by `ENCODER_RULES`.
      records: records per batch, if other than in the first batch.

    Raises:
      ValueError: if the batch does not split over the mesh, or the data is empty.
    """
    rules = run.rules or ENCODER_RULES
    if mesh is None and run.mesh is not None and set(run.mesh.devices.flat) == set(slice_.devices):
        mesh, rules = run.mesh, run.rules or ((r".*", PartitionSpec()),)
    mesh = mesh or parallel.make_mesh(devices=slice_.devices)
    state, batch = _shapes(run, mesh, rules, records)
    facts = _Facts(
        topology=slice_.name,
        chips=len(slice_.devices),
        mesh={name: int(size) for name, size in mesh.shape.items()},
        records=math.prod(batch["id"].shape),
        texts=sum(math.prod(column.ids.shape[:-1]) for column in batch.values() if isinstance(column, Tokens)),
        micro_batches=run.accumulate,
        parameters=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.trained)),
    )
    step = make_train_step(run.objective, run.optimizer, run.transform, accumulate=run.accumulate)
    placed = jax.tree.map(lambda leaf: leaf.sharding, state)
    logged = len(compiler_log())
    with parallel.in_force(mesh):
        lowered = jax.jit(step, donate_argnums=0, out_shardings=(placed, None)).lower(state, batch)
    try:
        with _uncached():
            compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        said = str(error) + compiler_log()[logged:]
        return _overflow(facts, slice_, _bytes_per_chip(state), _bytes_per_chip(batch), said)
    return _report(facts, slice_, mesh, compiled)


# What is compiled


@contextlib.contextmanager
def _uncached() -> Iterator[None]:
    """Keeps a program out of JAX's persistent cache, which cannot read it back without a TPU."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, math.inf)
    try:
        yield
    finally:
        jax.config.update(name, before)


def _shapes(run: Run, mesh: Mesh, rules: Rules, records: int | None) -> tuple[TrainState, dict[str, Any]]:
    """Shapes and shardings of the state and the batch, as `fit` would place them."""
    embedder = _embedder_of_shapes(run)
    batch = _batch_shapes(run, embedder, mesh, records)

    def initial(model):
        state = init_state(jax.random.key(run.seed, impl=run.prng), model, run.optimizer, run.transform)
        return begin_task(run.transform, run.objective, state, Task(0, steps=run.steps))

    state = jax.eval_shape(initial, embedder.model)
    return _placed(state, parallel.shardings(state, mesh, rules)), batch


def _embedder_of_shapes(run: Run):
    """The run's embedder with shapes for arrays, made without the arrays if its function can be traced."""
    made = []

    def make():
        made.append(run.embedder())
        return made[-1].model

    try:
        model = jax.eval_shape(make)
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError):
        made.append(run.embedder())
        model = jax.eval_shape(lambda: made[-1].model)
    return made[-1].replace(model=model)


def _batch_shapes(run: Run, embedder, mesh: Mesh, records: int | None) -> dict[str, Any]:
    try:
        first = next(iter(run.data(embedder)))
    except StopIteration:
        raise ValueError("the data is empty: there is no batch to take shapes from") from None
    have = len(first["id"])
    wanted = have if records is None else records
    axis = int(run.accumulate > 1)
    sharding = NamedSharding(mesh, PartitionSpec(*[None] * axis, ("data", "fsdp")))
    shards = mesh.shape["data"] * mesh.shape["fsdp"]

    def one(name, array):
        rows = -(-np.shape(array)[0] * wanted // have)
        if rows % shards:
            raise ValueError(f"batch: the {rows} rows of {name} do not split over the {shards} shards of the mesh")
        shape = (run.accumulate,) * axis + (rows, *np.shape(array)[1:])
        dtype = jax.dtypes.canonicalize_dtype(np.asarray(array).dtype)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    return map_with_path(one, first)


def _placed(tree: PyTree, shardings: PyTree) -> PyTree:
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, shardings)


def _bytes_per_chip(tree: PyTree) -> float:
    def one(leaf) -> float:
        # A key is a few integers; four bytes stand for it.
        size = 4 if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.dtype.itemsize
        return math.prod(leaf.sharding.shard_shape(leaf.shape)) * size

    return float(sum(map(one, jax.tree.leaves(tree))))


# What is reported


@dataclasses.dataclass(frozen=True)
class _Facts:
    topology: str
    chips: int
    mesh: Mapping[str, int]
    records: int
    texts: int
    micro_batches: int
    parameters: int

    @property
    def batch(self) -> int:
        """Records of a micro-batch."""
        return self.records // self.micro_batches

    @property
    def rows(self) -> int:
        """Records of a micro-batch on one chip."""
        return self.batch // (self.mesh["data"] * self.mesh["fsdp"])


def _report(facts: _Facts, slice_: Slice, mesh: Mesh, compiled: jax.stages.Compiled) -> Report:
    text, sizes, chip = compiled.as_text(), compiled.memory_analysis(), slice_.chip
    assert text is not None and sizes is not None  # the TPU compiler gives both
    program = Program(text)
    # `temp_size_in_bytes` counts arrays twice that take the same place one after the other; the peak does not.
    peak, arguments = float(sizes.peak_memory_in_bytes), float(sizes.argument_size_in_bytes)
    memory = Memory(arguments, max(peak - arguments, 0.0), peak + sizes.generated_code_size_in_bytes, chip.hbm)
    traffic = _traffic(program.collectives, slice_, mesh)
    seconds = Seconds(
        matrix_units=program.matrix_unit_flops / chip.flops,
        hbm=program.hbm_bytes / chip.hbm_bandwidth,
        ici=sum(kind.seconds for kind in traffic),
        kernels=program.cycles / chip.clock,
    )
    return Report(
        **dataclasses.asdict(facts),
        fits=True,
        memory=memory,
        largest=_largest(program.buffers()),
        flops=program.flops,
        matrix_unit_flops=program.matrix_unit_flops,
        hbm_bytes=program.hbm_bytes,
        traffic=traffic,
        seconds=seconds,
        peak_share=program.flops / (chip.flops * seconds.step),
        roofline_share=program.flops / (chip.flops * seconds.roofline),
        advice=tuple(_advice_on_speed(facts, program, traffic, seconds, slice_)),
        program=program,
    )


def _largest(buffers: Iterable[tuple[Buffer, Any]], count: int = 8) -> tuple[tuple[float, str], ...]:
    found: dict[str, float] = {}
    for buffer, instruction in buffers:
        place = re.sub(r"^jit\(step\)/", "", instruction.op_name)
        found.setdefault(f"{buffer}  {place}".rstrip(), buffer.padded_nbytes)
    ordered = sorted(found.items(), key=lambda item: -item[1])[:count]
    return tuple((size, what) for what, size in ordered)


def _traffic(collectives: Iterable[Collective], slice_: Slice, mesh: Mesh) -> tuple[Traffic, ...]:
    devices = mesh.devices.ravel()

    def bandwidth(collective: Collective) -> float:
        if collective.kind == "collective-permute":  # each chip sends to one other
            return slice_.link_bandwidth
        return slice_.bandwidth(devices[collective.groups[0]])

    groups: defaultdict[tuple[str, int], list[Collective]] = defaultdict(list)
    for collective in collectives:
        chips = 2 if collective.kind == "collective-permute" else collective.groups.shape[1]
        if chips > 1:
            groups[collective.kind, chips].append(collective)
    found = [
        Traffic(
            kind=kind,
            chips=chips,
            operations=len(same),
            runs=sum(c.runs for c in same),
            nbytes=sum(c.runs * c.nbytes for c in same),
            sent=sum(c.sent for c in same),
            seconds=sum(c.sent / bandwidth(c) for c in same),
        )
        for (kind, chips), same in groups.items()
    ]
    return tuple(sorted(found, key=lambda kind: -kind.seconds))


def _advice_on_speed(facts: _Facts, program: Program, traffic, seconds: Seconds, slice_: Slice) -> Iterable[str]:
    bits = sum(runs * i.cycles for runs, i, _ in program.executed() if {b.dtype for b in i.outputs} == {"u32"})
    if bits / slice_.chip.clock > 0.1 * seconds.step:
        yield f"random bits take {_time(bits / slice_.chip.clock)} of {_time(seconds.step)}: a dropout of 0 needs none"
    reduced = sum(kind.nbytes for kind in traffic if kind.kind == "all-reduce")
    once = 4.0 * facts.parameters
    if reduced > 3 * once and seconds.ici > 0.1 * seconds.step:
        yield (
            f"{_size(reduced)} are summed over the chips in a step, the gradients once would be {_size(once)}: "
            "they are summed in each of several micro-batches or chunks; larger and fewer ones send less"
        )
    if seconds.ici > 0.5 * seconds.step:
        yield f"collectives take {_time(seconds.ici)} of {_time(seconds.step)}: more records per chip hide them better"


def _overflow(facts: _Facts, slice_: Slice, state: float, batch: float, said: str) -> Report:
    """The report of a program that found no room, from the bytes of its arguments and what the compiler said."""
    arguments = state + batch
    found = re.search(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM", said)
    found = found or re.search(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", said)
    needed = float(found[1]) * 1024 ** " KMGT".index(found[2] or " ") if found else math.nan
    buffers = list(_logged_buffers(said))
    memory = Memory(arguments, max(needed - arguments, 0.0), needed, slice_.chip.hbm)
    return Report(
        **dataclasses.asdict(facts),
        fits=False,
        memory=memory,
        largest=_largest_groups(buffers),
        advice=tuple(_advice_on_memory(facts, memory, state, buffers)),
    )


def _logged_buffers(said: str) -> Iterable[tuple[float, tuple[Buffer, ...]]]:
    """The compiler's report of the main memory: bytes of an allocation, and the arrays that share it in turn."""
    report = said.rpartition("Ran out of memory in memory space hbm")[2].partition("Memory Space: vmem")[0]
    for size, unit, arrays in re.findall(r"\);\s*([\d.]+)([KMGT]?)i?B;\s*\d+;\s*\d+;\s*(.*)", report):
        shapes = re.findall(r"(\w+?)\[([\d,]*)\]", arrays.replace("×", " "))
        buffers = tuple(Buffer(dtype, tuple(map(int, re.findall(r"\d+", sizes)))) for dtype, sizes in shapes)
        yield float(size) * 1024 ** " KMGT".index(unit or " "), buffers


def _largest_groups(buffers, count: int = 8) -> tuple[tuple[float, str], ...]:
    ordered = sorted(buffers, key=lambda item: -item[0])[:count]
    describe = lambda arrays: ", ".join(dict.fromkeys(map(str, sorted(arrays, key=lambda b: -b.nbytes))))
    return tuple((size, describe(arrays)) for size, arrays in ordered)


def _advice_on_memory(facts: _Facts, memory: Memory, state: float, buffers) -> Iterable[str]:
    room, rows = _HEADROOM * memory.capacity, facts.rows
    arrays = [(size, max(shared, key=lambda b: b.nbytes)) for size, shared in buffers if shared]
    total = lambda wanted: sum(size for size, array in arrays if wanted(array))

    if state > room / 4:
        whole = state * facts.mesh["fsdp"]
        sizes = [2**k for k in range(1, 20) if facts.chips % 2**k == 0 and 2**k > facts.mesh["fsdp"]]
        if fits := [size for size in sizes if whole / size < room / 4] or sizes[-1:]:
            yield (
                f"the train state takes {_size(state)} on every chip: with rules=ENCODER_RULES and fsdp={fits[0]} "
                f"about {_size(whole / fits[0])}"
            )
    pairs = total(is_pairs := lambda b: len(b.shape) == 2 and b.shape[0] >= rows > 1 and b.shape[1] >= facts.batch)
    if pairs > 0.02 * memory.peak:
        example = next(array for _, array in arrays if is_pairs(array))
        yield (
            f"similarities of all pairs, {example} and the like, take {_size(pairs)}: "
            "info_nce(..., tile=1024) holds no more than a tile of them"
        )
    bits = total(is_global := lambda b: b.dtype == "u32" and b.shape and b.shape[0] >= facts.batch > rows)
    if bits > 0.02 * memory.peak:
        example = next(array for _, array in arrays if is_global(array))
        yield (
            f"random bits of the whole batch, {example} and the like, take {_size(bits)} on every chip: "
            'Run(prng="threefry2x32") makes on each chip its own part, a dropout of 0 needs none'
        )
    free, others = room - memory.arguments, memory.temporaries - pairs - bits
    fitting = 2 ** math.floor(math.log2(max(rows * free / others, 1))) if others > 0 else rows
    if free > 0 and fitting < rows:
        chunk = fitting * facts.texts // facts.micro_batches // rows
        yield (
            f"other temporaries of {rows:,} records on a chip take {_size(others)}, {_size(free)} are left: "
            f"on_columns(..., chunk={chunk}) encodes those of {fitting:,} at a time and gives the same gradient"
        )
    stacks = {array.shape for _, array in arrays if len(array.shape) >= 3 and array.shape[1] >= rows > array.shape[0]}
    kept = total(lambda b: b.shape in stacks)
    if len(stacks) > 1 and kept > 0.2 * memory.temporaries:
        yield (
            f"what the layers keep for the backward pass, {len(stacks)} arrays per layer, takes {_size(kept)}: "
            "remat=True in the encoder keeps one and recomputes the others"
        )
    wide = total(lambda b: b.dtype == "f32" and len(b.shape) > 2 and math.prod(b.shape) > rows * b.shape[-1])
    if wide > 0.2 * memory.temporaries:
        yield f'f32 arrays of the activations take {_size(wide)}: dtype="bfloat16" in the encoder halves most of them'
    attention = total(lambda b: len(b.shape) >= 4 and b.shape[-1] == b.shape[-2])
    if attention > 0.2 * memory.temporaries:
        yield f"attention weights [texts, heads, T, T] take {_size(attention)}: shorter texts, or fewer at a time"


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
    yield f"  state and batch     {_size(memory.arguments):>12}"
    yield f"  temporaries         {_size(memory.temporaries):>12}"
    of = f"of {_size(memory.capacity)}, {memory.peak / memory.capacity:.0%}"
    yield f"  peak                {_size(memory.peak):>12}  {of}{'' if report.fits else ': DOES NOT FIT'}"
    yield ""
    yield "largest arrays"
    yield from (f"  {_size(size):>12}  {what}" for size, what in report.largest)
    if report.seconds is not None:
        yield ""
        yield f"{'collectives':<20}{'chips':>8}{'in program':>12}{'runs':>8}{'operands':>13}{'sent':>13}{'time':>11}"
        for kind in report.traffic:
            yield (
                f"  {kind.kind:<18}{kind.chips:>8}{kind.operations:>12}{kind.runs:>8}{_size(kind.nbytes):>13}"
                f"{_size(kind.sent):>13}{_time(kind.seconds):>11}"
            )
        seconds = report.seconds
        yield ""
        yield "time of a step"
        yield f"  matrix units        {_time(seconds.matrix_units):>12}  {report.flops:.3g} FLOPs at the bf16 peak"
        yield f"  main memory         {_time(seconds.hbm):>12}  {_size(report.hbm_bytes or 0)}"
        yield f"  interconnect        {_time(seconds.ici):>12}  {_size(sum(kind.sent for kind in report.traffic))} sent"
        yield f"  kernels             {_time(seconds.kernels):>12}  as the compiler estimates them"
        yield f"  roofline            {_time(seconds.roofline):>12}  {report.roofline_share:.1%} of the peak at best"
        yield f"  prediction          {_time(seconds.step):>12}  {report.peak_share:.1%} of the peak"
    if report.advice:
        yield ""
        yield "what to change"
        yield from (f"  - {line}" for line in report.advice)


def _size(nbytes: float) -> str:
    for unit, factor in (("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if nbytes >= factor:
            return f"{nbytes / factor:.2f} {unit}"
    return f"{nbytes:.0f} B"


def _time(seconds: float) -> str:
    return (
        f"{seconds:.2f} s"
        if seconds >= 1
        else f"{1e3 * seconds:.2f} ms"
        if seconds >= 1e-3
        else f"{1e6 * seconds:.0f} us"
    )
