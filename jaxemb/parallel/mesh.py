"""One mesh with named axes and one table of path rules say where every array lives.

The axes: `data` splits the batch, `fsdp` splits the batch and the parameters, `tensor` splits the parameters within
a layer. Programs are written for the global arrays; XLA inserts the collectives that the placement asks for.
"""

import contextlib
import contextvars
import functools
import inspect
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from jaxemb.checks import checked, numbers, whole
from jaxemb.trees import PyTree, map_with_path

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")  # those that records are split over

Rules = Sequence[tuple[str, PartitionSpec | Sequence[PartitionSpec]]]
"""Where the leaves whose path a pattern is found in lie: as the first of the given specs that divides them says."""

# Kernels are `[in, out]`; a leading axis for the stacked layers is added by `shardings` where a leaf has it.
ENCODER_RULES: Rules = (
    (r"\bv_(row|col)\.", PartitionSpec()),  # Adafactor's statistics are called after parameters, but are their means
    # Few vocabularies divide by anything: then the dimension is split instead.
    (r"(embeddings\.tokens|head\.table)$", (PartitionSpec("tensor", "fsdp"), PartitionSpec(None, ("fsdp", "tensor")))),
    (r"embeddings\.(positions|types)$", PartitionSpec(None, "fsdp")),
    (r"(query|key|value|up|gate)\.kernel$", PartitionSpec("fsdp", "tensor")),
    (r"(query|key|value|up|gate)\.bias$", PartitionSpec("tensor")),
    (r"(out|down)\.kernel$", PartitionSpec("tensor", "fsdp")),
    (r".*", PartitionSpec()),
)

REPLICATED: Rules = ((r".*", PartitionSpec()),)
"""Every leaf whole on every device."""


# What is an array of a kernel's axes in place of the kernel, see `jaxemb.nn.Kernel`.
_OF_KERNEL = re.compile(r"(?<=\bkernel)(\.base)*(\.scales)?(\.codes|\.scales|\.base)$")

_devices: contextvars.ContextVar[Sequence[jax.Device] | None] = contextvars.ContextVar("devices", default=None)


@checked()
@contextlib.contextmanager
def default_devices(devices: Sequence[jax.Device]) -> Iterator[None]:
    """Where `make_mesh` finds its devices meanwhile: a config that makes its own mesh makes it for these."""
    token = _devices.set(devices)
    try:
        yield
    finally:
        _devices.reset(token)


@checked()
def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of all (or the given) devices; one size may be -1, meaning "the rest".

    Raises:
      ValueError: if the sizes do not multiply to the number of devices.
    """
    devices = list(devices or _devices.get() or jax.devices())
    sizes = [data, fsdp, tensor]
    if sizes.count(-1) > 1 or any(s < 1 and s != -1 for s in sizes):
        raise ValueError(f"mesh sizes must be positive, at most one of them -1; got data, fsdp, tensor = {sizes}")
    if -1 in sizes:
        sizes[sizes.index(-1)] = max(1, len(devices) // math.prod(s for s in sizes if s != -1))
    if math.prod(sizes) != len(devices):
        raise ValueError(f"mesh of data, fsdp, tensor = {sizes} needs {math.prod(sizes)} devices; got {len(devices)}")
    return Mesh(np.asarray(devices).reshape(sizes), AXES)


def default_mesh() -> Mesh | None:
    """What training and the command run on where no mesh is given: all devices along `data`; None of a single one."""
    return make_mesh() if len(_devices.get() or jax.devices()) > 1 else None


@checked()
def in_force(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    """Inside it, what is traced can split its work over the mesh (see `batch_axes`); None changes nothing."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def mesh_in_force() -> Mesh | None:
    """The mesh of `jax.set_mesh` or `in_force`, where there is one; not for what is being traced."""
    mesh = jax.sharding.get_mesh()
    return None if mesh.empty else mesh


def batch_axes() -> dict[str, int]:
    """Names and sizes of the axes that records are split over, of the mesh in force (`jax.set_mesh`); often none.

    Inside `jax.shard_map`, axes that the caller has taken over do not count.
    """
    mesh = jax.sharding.get_abstract_mesh()
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    splits = lambda name: mesh.shape.get(name, 1) > 1 and types[name] != jax.sharding.AxisType.Manual
    return {name: mesh.shape[name] for name in BATCH_AXES if splits(name)}


@checked()
def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def _spec(path: str, shape: tuple[int, ...], rules: Rules, mesh: Mesh) -> PartitionSpec:
    for pattern, wanted in rules:
        specs = [wanted] if isinstance(wanted, PartitionSpec) else list(wanted)
        if not re.search(pattern, path) or all(len(spec) > len(shape) for spec in specs):
            continue
        specs = [PartitionSpec(*[None] * (len(shape) - len(s)), *s) if s else s for s in specs if len(s) <= len(shape)]
        problems = [_problem(shape, spec, mesh) for spec in specs]
        if None in problems:
            return specs[problems.index(None)]
        why = "; ".join(map(str, problems))
        raise ValueError(
            f"{path} of shape {list(shape)} does not lie as the rule {pattern!r} says: {why}. "
            "Change the mesh, or give the rule one more PartitionSpec to fall back on: PartitionSpec() for a copy on "
            "every device"
        )
    raise ValueError(f"no rule says where {path} of shape {list(shape)} lies; end the rules with ('.*', ...)")


def _problem(shape: tuple[int, ...], spec: PartitionSpec, mesh: Mesh) -> str | None:
    """Why an array of this shape cannot be split as `spec` says, if it cannot."""
    for dimension, (size, axes) in enumerate(zip(shape, spec, strict=False)):
        axes = () if axes is None else axes if isinstance(axes, tuple) else (axes,)
        if unknown := set(axes) - set(mesh.axis_names):
            return f"the mesh has the axes {mesh.axis_names}, not {sorted(unknown)}"
        if size % (devices := math.prod(mesh.shape[axis] for axis in axes)):
            return f"dimension {dimension}, {size}, does not divide by the {devices} devices of {' x '.join(axes)}"
    return None


@checked()
def shardings(tree: PyTree, mesh: Mesh, rules: Rules = ENCODER_RULES) -> PyTree:
    """A tree of `NamedSharding`s like `tree`: the first rule whose pattern is found in a leaf's path decides.

    A rule's spec applies to a leaf's last dimensions, so that stacked layers (`[L, in, out]`) need no rules of their
    own, and rules also match the copies of the parameters inside an optimiser's state (so begin no pattern with "^").
    Leaves of fewer dimensions than it has are none of the rule's. Codes and scales of a quantised kernel, and one with
    an adapter beside it, lie as the kernel does.

    Raises:
      ValueError: naming the leaf, if no spec of its rule divides its shape, or no rule matches it.
    """
    whole = lambda name: _OF_KERNEL.sub("", name)
    return map_with_path(lambda name, leaf: NamedSharding(mesh, _spec(whole(name), np.shape(leaf), rules, mesh)), tree)


@checked()
def sharded_init(init: Callable[..., PyTree], *args: Any, mesh: Mesh | None, rules: Rules = ENCODER_RULES) -> PyTree:
    """What `init(*args)` returns, made where `rules` say: no device ever holds more than its share.

        model = sharded_init(lambda key: Transformer.init(key, config), jax.random.key(0), mesh=mesh)

    Args:
      init: a function that can be traced.
      args: its arguments; their arrays must lie on the mesh, or on no particular device.
      mesh: None for the default device.
      rules: path rules, of the paths in the result.

    Raises:
      TypeError: `init` does not take these arguments.
    """
    try:
        inspect.signature(init).bind(*args)
    except TypeError as error:
        raise TypeError(f"args must be those of init: {error}") from None
    if mesh is None:
        return jax.jit(init)(*args)
    return jax.jit(init, out_shardings=shardings(jax.eval_shape(init, *args), mesh, rules))(*args)


@checked(tree=numbers)
def place(tree: PyTree, mesh: Mesh, rules: Rules = ENCODER_RULES) -> PyTree:
    """Puts every leaf of `tree` where `rules` say; of several processes each brings the whole tree.

    Leaves that are there already stay. Raises ValueError as `shardings` does.
    """
    where = shardings(tree, mesh, rules)
    if jax.process_count() == 1:
        return jax.device_put(tree, where)

    def one(leaf, sharding: Sharding) -> jax.Array:
        is_key = isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        if is_key or (isinstance(leaf, jax.Array) and not leaf.is_fully_addressable):
            if leaf.sharding.is_equivalent_to(sharding, leaf.ndim):
                return leaf
            return jax.jit(lambda leaf: leaf, out_shardings=sharding)(leaf)  # only a program moves it
        return put(np.asarray(leaf), sharding)

    return jax.tree.map(one, tree, where)


@checked()
def lies_on(tree: PyTree, mesh: Mesh) -> bool:
    """Whether the arrays of the tree, but for those on no particular device, are spread over this mesh already."""
    arrays = [leaf for leaf in jax.tree.leaves(tree) if getattr(leaf, "committed", True)]
    on_mesh = lambda leaf: getattr(getattr(leaf, "sharding", None), "mesh", None) == mesh
    return bool(arrays) and all(map(on_mesh, arrays))


@checked(tree=numbers)
def put(tree: PyTree, sharding: Sharding | None) -> PyTree:
    """`jax.device_put` of arrays of the host; of several processes each brings the whole tree.

    Unlike `device_put`, it does not send them round to see that all processes bring the same.
    """
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda array: from_parts(array.shape, array.dtype, sharding, array.__getitem__), tree)


@checked()
def from_parts(
    shape: tuple[int, ...],
    dtype: np.dtype,
    sharding: Sharding | None,
    part: Callable[[tuple[slice, ...]], np.ndarray],
) -> jax.Array:
    """The array of which `part(index)` gives what `index`, a slice per dimension, says.

    As `jax.make_array_from_callback`, but the host holds one part at a time, and what several devices hold is asked
    for once. Each process is asked for what its own devices hold; under `jax.eval_shape`, nothing is.

    Args:
      shape, dtype: those of the array, and of its parts.
      sharding: None for the default device.
      part: makes a part.
    """
    if isinstance(jnp.zeros(()), jax.core.Tracer):
        return jnp.zeros(shape, dtype)
    if sharding is None:
        return jnp.asarray(part(tuple(slice(0, size) for size in shape)))
    devices_of: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        bounds = tuple(s.indices(size)[:2] for s, size in zip(index or (), shape, strict=True))
        devices_of.setdefault(bounds, []).append(device)

    def send(block: np.ndarray, devices: list[jax.Device]) -> list[jax.Array]:
        return jax.block_until_ready([jax.device_put(block, device) for device in devices])

    arrays: list[jax.Array] = []
    for bounds, devices in devices_of.items():
        arrays += send(part(tuple(slice(start, stop) for start, stop in bounds)), devices)
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays, dtype=dtype)


_axis = functools.partial(whole, least=0, most=63)


@checked(axis=_axis)
def shard_batch(batch: PyTree, mesh: Mesh, *, axis: int = 0) -> PyTree:
    """Splits `axis` of every array over `data` and `fsdp`; each process brings its own part of the batch.

    Raises:
      ValueError: if that axis does not divide by the number of shards.
    """
    sharding = NamedSharding(mesh, PartitionSpec(*[None] * axis, BATCH_AXES))
    shards = mesh.shape["data"] * mesh.shape["fsdp"] // jax.process_count()

    def one(name, array):
        if np.ndim(array) <= axis or np.shape(array)[axis] % shards:
            raise ValueError(
                f"batch: {name} of shape {np.shape(array)} does not split over {shards} local shards; let batch_size, "
                f"of packed rows row_multiple, be a multiple of {shards}, or take fewer: make_mesh(devices=...)"
            )
        return jax.make_array_from_process_local_data(sharding, np.asarray(array))

    return map_with_path(one, batch)
