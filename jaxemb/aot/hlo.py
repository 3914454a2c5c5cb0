"""Reads compiled programs: what an optimised HLO module computes, moves and sends, loops counted as often as they run.

XLA's own `cost_analysis` counts a loop's body once, and a train step is loops (layers, chunks, tiles) above all.
"""

import dataclasses
import functools
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

# Bits of the types that are no multiple of their name's digits.
_BITS = {"pred": 8, "token": 0, "opaque": 0}
# What moves no data by itself. The `-done` half of an asynchronous operation is counted with its first half.
_FREE = frozenset(
    ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "domain")
) | {"async-start", "async-update", "after-all", "optimization-barrier", "partition-id", "replica-id"}
_FREE_CALLS = re.compile(r'custom_call_target="(AllocateBuffer|ConcatBitcast)"')
_IN_PLACE = frozenset(("dynamic-update-slice", "scatter"))
_SLICES = frozenset(("dynamic-slice", "slice", "gather"))


@dataclasses.dataclass(frozen=True)
class Buffer:
    """An array of the program, on one device.

    Attributes:
      dtype: as HLO calls it, such as "bf16".
      shape: sizes of the dimensions.
      order: dimensions from the fastest to the slowest varying one; empty if not said.
      tile: sizes to which the fastest dimensions are padded, slowest first.
      in_hbm: False for the memory spaces on the chip (`S(1)` and so on).
    """

    dtype: str
    shape: tuple[int, ...]
    order: tuple[int, ...] = ()
    tile: tuple[int, ...] = ()
    in_hbm: bool = True

    @property
    def itemsize(self) -> float:
        """Bytes per element."""
        if self.dtype in _BITS:
            return _BITS[self.dtype] / 8
        digits = re.search(r"\d+", self.dtype)  # f8e4m3fn has 8 bits, c64 has 64
        return int(digits[0]) / 8 if digits else 0

    @property
    def nbytes(self) -> float:
        """Bytes without padding."""
        return math.prod(self.shape) * self.itemsize

    @property
    def padded_nbytes(self) -> float:
        """Bytes that it takes in memory."""
        physical = [self.shape[d] for d in reversed(self.order or tuple(reversed(range(len(self.shape)))))]
        for i, size in enumerate(reversed(self.tile[: len(physical)]), 1):
            physical[-i] = -(-physical[-i] // size) * size
        return math.prod(physical) * self.itemsize

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: unique in the module.
      opcode: such as "fusion".
      outputs: the array, or the arrays of the tuple, that it gives.
      operands: names of the instructions that it reads, in order.
      attributes: the rest of the line.
      is_root: whether it is the computation's result.
    """

    name: str
    opcode: str
    outputs: tuple[Buffer, ...]
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    @property
    def op_name(self) -> str:
        """Where in the JAX program it comes from, such as "jit(step)/while/body/dot_general"."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def cycles(self) -> int:
        """The TPU compiler's estimate, 0 where it made none."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.attributes)
        return int(found[1]) if found else 0

    def called(self, *attributes: str) -> list[str]:
        """Names of the computations in these attributes."""
        found = re.findall(rf"\b(?:{'|'.join(attributes)})=(\{{[^}}]*\}}|%?[\w.\-]+)", self.attributes)
        return [name for part in found for name in re.findall(r"[\w.\-]+", part)]


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective operation of the program.

    Attributes:
      kind: one of `COLLECTIVES`.
      runs: how often it runs in one execution of the program.
      nbytes: bytes of its operands on one device, each time.
      groups: device numbers that take part together, `[G, n]`; for a permutation the pairs (from, to), `[P, 2]`.
      op_name: where in the JAX program it comes from.
      buffers: its operands.
    """

    kind: str
    runs: int
    nbytes: float
    groups: np.ndarray
    op_name: str
    buffers: tuple[Buffer, ...]

    @property
    def sent(self) -> float:
        """Bytes that a device sends, all runs together, by the best algorithm on a ring of n devices.

        Of V bytes of operands: all-reduce 2 V (n-1)/n, reduce-scatter and all-to-all V (n-1)/n, all-gather V (n-1),
        collective-permute V.
        """
        n = self.groups.shape[1]
        share = {"all-reduce": 2 * (n - 1) / n, "all-gather": n - 1, "collective-permute": 1}
        return self.runs * self.nbytes * share.get(self.kind, (n - 1) / n)


class Program:
    """An optimised HLO module of one device, as `compiled.as_text()` gives it."""

    def __init__(self, text: str):
        self.computations, self._entry = _parse(text)
        devices = re.search(r"num_partitions=(\d+)", text.split("\n", 1)[0])
        self._devices = int(devices[1]) if devices else 1

    @functools.cached_property
    def runs(self) -> dict[str, int]:
        """How often each computation runs in one execution. Of a conditional every branch is counted."""
        return self._counts(into_fusions=False)

    def executed(self) -> Iterator[tuple[int, Instruction, Computation]]:
        """The instructions that the device runs one by one (a fusion is one), and how often each runs."""
        for name, runs in self.runs.items():
            for instruction in self.computations[name].values():
                yield runs, instruction, self.computations[name]

    @functools.cached_property
    def flops(self) -> float:
        """Floating-point operations of the matrix products and convolutions, two per multiplication and addition."""
        return sum(runs * flops for runs, flops, _ in self._products())

    @functools.cached_property
    def matrix_unit_flops(self) -> float:
        """`flops` as bf16 operations: an f32 product is 6 of them at the highest precision, 3 at a high one."""
        return sum(runs * flops * passes for runs, flops, passes in self._products())

    @functools.cached_property
    def cycles(self) -> int:
        """The TPU compiler's estimate for all that is not communication; 0 if it made none."""
        return sum(runs * instruction.cycles for runs, instruction, _ in self.executed())

    @functools.cached_property
    def hbm_bytes(self) -> float:
        """Bytes read from and written to the device's main memory, as if nothing stayed in caches."""
        return sum(runs * self._moved(instruction, computation) for runs, instruction, computation in self.executed())

    def buffers(self) -> Iterator[tuple[Buffer, Instruction]]:
        """Arrays in the device's main memory that some instruction makes (no views, no arguments)."""
        for _, instruction, _ in self.executed():
            if instruction.opcode in _FREE or instruction.opcode.endswith("-done"):
                continue
            yield from ((buffer, instruction) for buffer in instruction.outputs if buffer.in_hbm)

    @functools.cached_property
    def collectives(self) -> list[Collective]:
        """Every collective operation, also those within fusions."""
        found = []
        for name, runs in self._counts(into_fusions=True).items():
            computation = self.computations[name]
            for instruction in computation.values():
                kind = instruction.opcode.removesuffix("-start")
                if kind in COLLECTIVES:
                    buffers = tuple(b for operand in instruction.operands for b in computation[operand].outputs)
                    size = sum(buffer.nbytes for buffer in buffers)
                    groups = _groups(instruction.attributes, self._devices)
                    found.append(Collective(kind, runs, size, groups, instruction.op_name, buffers))
        return found

    # How often computations run

    def _counts(self, into_fusions: bool) -> dict[str, int]:
        counts: Counter[str] = Counter()

        def visit(name: str, runs: int) -> None:
            counts[name] += runs
            for instruction in self.computations[name].values():
                if instruction.opcode == "while":
                    body = instruction.called("body")[0]
                    visit(body, runs * self._trips(instruction, self.computations[name]))
                elif instruction.opcode in ("call", "async-start", "conditional") or (
                    into_fusions and instruction.opcode == "fusion"
                ):
                    parts = ("calls", "to_apply", "branch_computations", "true_computation", "false_computation")
                    for called in instruction.called(*parts):
                        visit(called, runs)

        visit(self._entry, 1)
        return dict(counts)

    def _trips(self, loop: Instruction, computation: Computation) -> int:
        """How often a loop's body runs: as XLA says, or as its condition `i < n` says; 1 if neither does."""
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(known[1])
        condition = self.computations[loop.called("condition")[0]]
        test = next(instruction for instruction in condition.values() if instruction.is_root)
        initial = computation[loop.operands[0]]

        def value(name: str) -> int | None:
            """A number that is known before the loop starts."""
            instruction = condition.get(name)
            if instruction is None:
                return None
            if instruction.opcode == "get-tuple-element" and initial.opcode == "tuple":
                index = re.search(r"index=(\d+)", instruction.attributes)
                instruction = computation[initial.operands[int(index[1])]] if index else instruction
            while instruction.opcode in ("copy", "bitcast") and instruction.operands[0] in computation:
                instruction = computation[instruction.operands[0]]
            number = re.match(r"(-?\d+)\)", instruction.attributes) if instruction.opcode == "constant" else None
            return int(number[1]) if number else None

        if test.opcode == "fusion":  # its operands are those of the comparison within
            inner = self.computations[test.called("calls")[0]]
            compare = next(instruction for instruction in inner.values() if instruction.is_root)
            place = {i.name: test.operands[_parameter_number(i)] for i in inner.values() if i.opcode == "parameter"}
            ends = [place.get(operand, operand) for operand in compare.operands]
        else:
            compare, ends = test, list(test.operands)
        first, last = value(ends[0]), value(ends[-1])
        if compare.opcode != "compare" or "direction=LT" not in compare.attributes or first is None or last is None:
            return 1
        return max(1, last - first)

    # What instructions cost

    def _products(self) -> Iterator[tuple[int, float, int]]:
        """Runs, FLOPs and bf16 passes of every matrix product and convolution."""
        for name, runs in self._counts(into_fusions=True).items():
            computation = self.computations[name]
            for instruction in computation.values():
                if instruction.opcode in ("dot", "convolution"):
                    left, right = (computation[operand].outputs[0] for operand in instruction.operands[:2])
                    flops = (_dot_flops if instruction.opcode == "dot" else _convolution_flops)(
                        instruction, left, right
                    )
                    is_f32 = left.itemsize >= 4 and right.itemsize >= 4
                    precision = re.search(r"operand_precision=\{(\w+)", instruction.attributes)
                    passes = {"highest": 6, "high": 3}.get(precision[1] if precision else "", 1) if is_f32 else 1
                    yield runs, flops, passes

    def _moved(self, instruction: Instruction, computation: Computation) -> float:
        opcode = instruction.opcode
        if opcode in _FREE or opcode.endswith("-done") or _FREE_CALLS.search(instruction.attributes):
            return 0
        size = lambda buffers: sum(buffer.padded_nbytes for buffer in buffers if buffer.in_hbm)
        operands = [computation[name].outputs for name in instruction.operands]
        if opcode == "copy-start":  # gives (destination, source, a flag)
            return size(operands[0]) + size(instruction.outputs[:1])
        if opcode == "slice-start":  # gives ((source), destination, a flag); reads no more than it writes
            source, destination = instruction.outputs[0], instruction.outputs[1]
            return (source.in_hbm + destination.in_hbm) * destination.padded_nbytes
        if opcode == "fusion":
            return self._moved_by_fusion(instruction, operands)
        if opcode in _SLICES:
            read = sum(buffer.padded_nbytes for buffer in instruction.outputs) * any(b.in_hbm for b in operands[0])
            return read + size(instruction.outputs)
        if opcode in _IN_PLACE:
            return 2 * sum(size(operand) for operand in operands[1:])
        return sum(map(size, operands)) + size(instruction.outputs)

    def _moved_by_fusion(self, fusion: Instruction, operands: Sequence[tuple[Buffer, ...]]) -> float:
        """A fusion that slices an operand reads the slice only, and one that updates a slice writes that only."""
        inner = self.computations[fusion.called("calls")[0]]
        moved = 0.0
        for parameter in (i for i in inner.values() if i.opcode == "parameter"):
            users = [i for i in _users(inner, parameter.name)]
            for buffer in operands[_parameter_number(parameter)]:
                if not buffer.in_hbm:
                    continue
                if users and all(user.opcode in _SLICES and user.operands[0] == name for user, name in users):
                    moved += sum(user.outputs[0].nbytes for user, _ in users)
                elif not (users and all(user.opcode in _IN_PLACE and user.operands[0] == name for user, name in users)):
                    moved += buffer.padded_nbytes
        results = [_source(inner, name) for name in _roots(inner)]
        for buffer, result in zip(fusion.outputs, results, strict=False):
            if buffer.in_hbm:
                updates = result.operands[1 if result.opcode == "dynamic-update-slice" else -1 :][:1]
                written = inner[updates[0]].outputs[0].nbytes if result.opcode in _IN_PLACE else buffer.padded_nbytes
                moved += written
        return moved


# Reading the text


def _parse(text: str) -> tuple[dict[str, Computation], str]:
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.split("\n"):
        if line.startswith(("%", "ENTRY ")) and line.rstrip().endswith("{"):
            name = line.removeprefix("ENTRY ").lstrip("%").split(" ", 1)[0]
            current = computations.setdefault(name, {})
            entry = name if line.startswith("ENTRY ") else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and " = " in line:
            instruction = _instruction(line)
            current[instruction.name] = instruction
    if not entry:
        raise ValueError("the text is no HLO module: it has no ENTRY computation")
    return computations, entry


def _instruction(line: str) -> Instruction:
    left, right = line.split(" = ", 1)
    is_root = left.lstrip().startswith("ROOT ")
    end = _closing(right, 0) + 1 if right.startswith("(") else right.index(" ")
    shape, rest = right[:end], right[end:].lstrip()
    start = rest.index("(")
    stop = _closing(rest, start)
    opcode, inside = rest[:start], rest[start + 1 : stop]
    literal = opcode in ("constant", "parameter")
    operands = () if literal else tuple(re.findall(r"%([\w.\-]+)", inside))
    attributes = f"{inside}){rest[stop + 1 :]}" if literal else rest[stop + 1 :]
    name = left.replace("ROOT ", "").strip().lstrip("%")
    return Instruction(name, opcode, tuple(_buffers(shape)), operands, attributes, is_root)


def _closing(text: str, start: int) -> int:
    """The index of the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"unbalanced parentheses in {text[:80]!r}")


def _buffers(shape: str) -> Iterator[Buffer]:
    for dtype, sizes, layout in re.findall(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?", shape):
        order, _, rest = layout.partition(":")
        tile = re.search(r"T\(([\d,]+)\)", rest)
        yield Buffer(
            dtype,
            _integers(sizes),
            _integers(order),
            _integers(tile[1]) if tile else (),
            in_hbm=not re.search(r"S\([1-9]\d*\)", rest),
        )


def _integers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)))


def _parameter_number(parameter: Instruction) -> int:
    return _integers(parameter.attributes)[0]


def _users(computation: Computation, name: str) -> list[tuple[Instruction, str]]:
    """Who reads an array, directly or as a bitcast, and by which name."""
    users: list[tuple[Instruction, str]] = []
    for instruction in computation.values():
        if name in instruction.operands:
            if instruction.opcode == "bitcast":
                users += _users(computation, instruction.name)
            else:
                users.append((instruction, name))
    return users


def _roots(computation: Computation) -> tuple[str, ...]:
    root = next(instruction for instruction in computation.values() if instruction.is_root)
    return root.operands if root.opcode == "tuple" else (root.name,)


def _source(computation: Computation, name: str) -> Instruction:
    """The instruction itself, seen through bitcasts."""
    instruction = computation[name]
    while instruction.opcode == "bitcast":
        instruction = computation[instruction.operands[0]]
    return instruction


def _dot_flops(dot: Instruction, left: Buffer, right: Buffer) -> float:
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", dot.attributes)
    depth = math.prod(left.shape[d] for d in _integers(contracted[1] if contracted else ""))
    return 2.0 * math.prod(dot.outputs[0].shape) * depth


def _convolution_flops(convolution: Instruction, left: Buffer, right: Buffer) -> float:
    """Two per pair of an input and a kernel element that meet; padding and holes of dilation meet nothing.

    The TPU compiler writes every matrix product as a convolution, batches as dilated spatial dimensions.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", convolution.attributes)
    if labels is None:
        raise ValueError(f"a convolution without dim_labels: {convolution.name}")
    lhs, rhs, out = labels.groups()
    window = re.search(r"window=\{([^}]*)\}", convolution.attributes)
    fields = dict(part.split("=", 1) for part in window[1].split()) if window else {}
    spatial = sum(label.isdigit() for label in lhs)
    per_axis = lambda name, default: fields[name].split("x") if name in fields else [default] * spatial
    meetings = 1
    for axis in range(spatial):
        size, stride, hole, kernel_hole = (
            int(per_axis(name, "1")[axis]) for name in ("size", "stride", "lhs_dilate", "rhs_dilate")
        )
        before = int(per_axis("pad", "0_0")[axis].split("_")[0])
        inputs = left.shape[lhs.index(str(axis))]
        outputs = convolution.outputs[0].shape[out.index(str(axis))]
        at = np.arange(outputs)[:, None] * stride + np.arange(size)[None, :] * kernel_hole - before
        meetings *= int(np.sum((at >= 0) & (at <= (inputs - 1) * hole) & (at % hole == 0)))
    groups = re.search(r"batch_group_count=(\d+)", convolution.attributes)
    batch = left.shape[lhs.index("b")] // (int(groups[1]) if groups else 1)
    return 2.0 * meetings * batch * right.shape[rhs.index("i")] * right.shape[rhs.index("o")]


def _groups(attributes: str, devices: int) -> np.ndarray:
    """The device numbers of a collective, `[G, n]`."""
    if pairs := re.search(r"source_target_pairs=\{\{([\d,{} ]*)\}\}", attributes):
        return np.asarray(_integers(pairs[1])).reshape(-1, 2)
    # mesh['a'=4,'b'=16] {'b'}: along the named axes
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes):
        names = re.findall(r"'([^']+)'=(\d+)", mesh[1])
        grid = np.arange(math.prod(int(size) for _, size in names)).reshape([int(size) for _, size in names])
        along = [axis for axis, (name, _) in enumerate(names) if f"'{name}'" in mesh[2]]
        return np.moveaxis(grid, along, range(-len(along), 0)).reshape(-1, math.prod(grid.shape[a] for a in along))
    # [4,16]<=[64] or [16,4]<=[4,16]T(1,0): iota, reshaped and transposed
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        shape, dims = _integers(iota[1]), _integers(iota[2])
        grid = np.arange(math.prod(dims)).reshape(dims)
        return (grid.transpose(_integers(iota[3])) if iota[3] else grid).reshape(shape)
    if lists := re.search(r"replica_groups=\{(\{[\d,{} ]+\})\}", attributes):
        return np.asarray([_integers(group) for group in re.findall(r"\{([\d, ]+)\}", lists[1])])
    return np.arange(devices)[None, :]
