"""One mesh with named axes and one table of path rules say where every array lives.

The axes: `data` splits the batch, `fsdp` splits the batch and the parameters, `tensor` splits the parameters within
a layer. Programs are written for the global arrays; XLA inserts the collectives that the placement asks for.
"""

import contextlib
import contextvars
import math
import re
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from jaxemb.trees import PyTree, map_with_path

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")  # those that records are split over

Rules = Sequence[tuple[str, PartitionSpec]]

# Kernels are `[in, out]`; a leading axis for the stacked layers is added by `shardings` where a leaf has it.
ENCODER_RULES: Rules = (
    (r"embeddings\.tokens$", PartitionSpec("tensor", "fsdp")),
    (r"embeddings\.(positions|types)$", PartitionSpec(None, "fsdp")),
    (r"(query|key|value|up|gate)\.kernel$", PartitionSpec("fsdp", "tensor")),
    (r"(query|key|value|up|gate)\.bias$", PartitionSpec("tensor")),
    (r"(out|down)\.kernel$", PartitionSpec("tensor", "fsdp")),
    (r".*", PartitionSpec()),
)


_devices: contextvars.ContextVar[Sequence[jax.Device] | None] = contextvars.ContextVar("devices", default=None)


@contextlib.contextmanager
def default_devices(devices: Sequence[jax.Device]) -> Iterator[None]:
    """Where `make_mesh` finds its devices meanwhile: a config that makes its own mesh makes it for these."""
    token = _devices.set(devices)
    try:
        yield
    finally:
        _devices.reset(token)


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


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def _spec(path: str, shape: tuple[int, ...], rules: Rules, mesh: Mesh) -> PartitionSpec:
    spec = next(spec for pattern, spec in rules if re.search(pattern, path))
    axes = (None,) * (len(shape) - len(spec)) + tuple(spec) if spec else ()
    # An axis that does not divide its dimension is left whole rather than padded.
    fits = lambda axis, size: axis is not None and size % mesh.shape[axis] == 0
    return PartitionSpec(*(axis if fits(axis, size) else None for axis, size in zip(axes, shape, strict=False)))


def shardings(tree: PyTree, mesh: Mesh, rules: Rules = ENCODER_RULES) -> PyTree:
    """A tree of `NamedSharding`s like `tree`: the first rule whose pattern is found in a leaf's path decides.

    A rule's spec applies to a leaf's last dimensions, so that stacked layers (`[L, in, out]`) need no rules of their
    own, and rules also match the copies of the parameters inside an optimiser's state.
    """

    return map_with_path(lambda name, leaf: NamedSharding(mesh, _spec(name, np.shape(leaf), rules, mesh)), tree)


def place(tree: PyTree, mesh: Mesh, rules: Rules = ENCODER_RULES) -> PyTree:
    """Puts every leaf of `tree` where `rules` say; of several processes each brings the whole tree."""
    where = shardings(tree, mesh, rules)
    if jax.process_count() == 1:
        return jax.device_put(tree, where)
    return jax.jit(lambda tree: tree, out_shardings=where)(tree)  # what lies with other processes only a program makes


def lies_on(tree: PyTree, mesh: Mesh) -> bool:
    """Whether all arrays of the tree are spread over this mesh already, in whatever way."""
    on_mesh = lambda leaf: getattr(getattr(leaf, "sharding", None), "mesh", None) == mesh
    return all(on_mesh(leaf) for leaf in jax.tree.leaves(tree))


def put(tree: PyTree, sharding: Sharding | None) -> PyTree:
    """`jax.device_put` of arrays of the host; of several processes each brings the whole tree.

    Unlike `device_put`, it does not send them round to see that all processes bring the same.
    """
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    one = lambda array: jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
    return jax.tree.map(one, tree)


def shard_batch(batch: PyTree, mesh: Mesh, *, axis: int = 0) -> PyTree:
    """Splits `axis` of every array over `data` and `fsdp`; each process brings its own part of the batch.

    Raises:
      ValueError: if that axis does not divide by the number of shards.
    """
    sharding = NamedSharding(mesh, PartitionSpec(*[None] * axis, BATCH_AXES))
    shards = mesh.shape["data"] * mesh.shape["fsdp"] // jax.process_count()

    def one(name, array):
        if np.ndim(array) <= axis or np.shape(array)[axis] % shards:
            raise ValueError(f"batch: {name} of shape {np.shape(array)} does not split over {shards} local shards")
        return jax.make_array_from_process_local_data(sharding, np.asarray(array))

    return map_with_path(one, batch)
