"""What a run will need on a TPU slice, read off the program that the TPU compiler makes of its train step.

    report = compile_run(run, tpu_slice("v5e:16x16"))
    print(report)

No TPU is needed, nothing is trained, and no array of the run's size is made.
"""

import contextlib
import dataclasses
import math
import re
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, TextIO, cast

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxemb import parallel
from jaxemb.aot.hlo import Buffer, Collective, Program
from jaxemb.aot.report import Memory, Report, Seconds, Setup, Traffic, advice_on_memory, advice_on_speed
from jaxemb.aot.slices import Slice, compiler_log
from jaxemb.checks import checked
from jaxemb.parallel.mesh import ENCODER_RULES, Rules
from jaxemb.progress import Audience
from jaxemb.train.run import Run
from jaxemb.train.state import TrainState, begin_task, init_state
from jaxemb.train.step import make_train_step
from jaxemb.transforms import Task
from jaxemb.trees import PyTree, map_with_path
from jaxemb.types import Tokens


@checked()
def compile_run(
    run: Run, slice_: Slice, *, mesh: Mesh | None = None, records: int | None = None, progress: bool = True
) -> Report:
    """Compiles the train step of `run` for a TPU slice and reports what it needs.

    Args:
      run: the run; its first batch gives the shapes, as the whole batch of one process that stands for all.
      slice_: the chips, from `tpu_slice`.
      mesh: of the slice's devices; by default the run's own if it has these devices, else all of them along `data`.
        On another mesh than its own, a run that has no rules is placed by `ENCODER_RULES`.
      records: records per batch, if other than in the first batch.
      progress: say on stderr what is going on; large models take minutes.

    Raises:
      ValueError: if the batch does not split over the mesh, or the data is empty.
    """
    started = time.perf_counter()

    def say(what: str) -> None:
        if progress:
            line = f"{time.perf_counter() - started:6.1f} s  {what}"
            print(line, file=cast(TextIO, Audience(sys.stderr)), flush=True)

    rules = run.rules or ENCODER_RULES
    if mesh is None and run.mesh is not None and set(run.mesh.devices.flat) == set(slice_.devices):
        mesh, rules = run.mesh, run.rules or parallel.REPLICATED
    mesh = mesh or parallel.make_mesh(devices=slice_.devices)
    say("reading the model's shapes and the first batch")
    state, batch = _shapes(run, mesh, rules, records)
    setup = Setup(
        topology=slice_.name,
        chips=len(slice_.devices),
        mesh={name: int(size) for name, size in mesh.shape.items()},
        records=math.prod(batch["id"].shape),
        texts=sum(math.prod(column.ids.shape[:-1]) for column in batch.values() if isinstance(column, Tokens)),
        micro_batches=run.accumulate,
        parameters=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves((state.model, state.method_params))),
        steps=run.steps,
    )
    step = make_train_step(run.objective, run.optimizer, run.transform, accumulate=run.accumulate)
    placed = jax.tree.map(lambda leaf: leaf.sharding, state)
    logged = len(compiler_log())
    say(f"tracing a step of {setup.parameters:,} parameters and {setup.records:,} records")
    with parallel.in_force(mesh):
        lowered = jax.jit(step, donate_argnums=0, out_shardings=(placed, None)).lower(state, batch)
    say(f"compiling it for {slice_.name}, the longest part: minutes for large models")
    try:
        with _uncached():
            compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        said = str(error) + compiler_log()[logged:]
        return _overflow(setup, slice_, _bytes_per_chip(state), _bytes_per_chip(batch), said)
    say("reading the program")
    return _report(setup, slice_, mesh, compiled)


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
        return begin_task(run.transform, run.objective, state, Task(0, steps=run.all_tasks[0].steps))

    state = jax.eval_shape(initial, embedder.model)
    return _placed(state, parallel.shardings(state, mesh, rules)), batch


def _embedder_of_shapes(run: Run):
    """The run's embedder with shapes for arrays, made without the arrays if its function can be traced."""
    made = []

    def make():
        made.append(run.make_embedder())
        return made[-1].model

    try:
        model = jax.eval_shape(make)
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError):
        made.append(run.make_embedder())
        model = jax.eval_shape(lambda: made[-1].model)
    return made[-1].replace(model=model)


def _batch_shapes(run: Run, embedder, mesh: Mesh, records: int | None) -> dict[str, Any]:
    try:
        first = next(iter(run.all_tasks[0].data(embedder)))
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


# What is read off the program


def _report(setup: Setup, slice_: Slice, mesh: Mesh, compiled: jax.stages.Compiled) -> Report:
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
        **dataclasses.asdict(setup),
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
        advice=tuple(advice_on_speed(setup, program, traffic, seconds, slice_)),
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


def _overflow(setup: Setup, slice_: Slice, state: float, batch: float, said: str) -> Report:
    """The report of a program that found no room, from the bytes of its arguments and what the compiler said."""
    arguments = state + batch
    found = re.search(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM", said)
    found = found or re.search(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", said)
    needed = float(found[1]) * 1024 ** " KMGT".index(found[2] or " ") if found else math.nan
    buffers = list(_logged_buffers(said))
    memory = Memory(arguments, max(needed - arguments, 0.0), needed, slice_.chip.hbm)
    return Report(
        **dataclasses.asdict(setup),
        fits=False,
        memory=memory,
        largest=_largest_groups(buffers),
        advice=tuple(advice_on_memory(setup, memory, state, buffers)),
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
