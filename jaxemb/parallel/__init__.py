"""Placement: meshes, path rules and shardings; processes that train as one."""

from jaxemb.backends import without_absent_tpu
from jaxemb.parallel.mesh import (
    AXES,
    BATCH_AXES,
    ENCODER_RULES,
    REPLICATED,
    Rules,
    batch_axes,
    default_devices,
    default_mesh,
    from_parts,
    in_force,
    lies_on,
    make_mesh,
    mesh_in_force,
    place,
    put,
    replicated,
    shard_batch,
    sharded_init,
    shardings,
)

without_absent_tpu()  # before anything asks JAX for a device

__all__ = [
    "AXES",
    "BATCH_AXES",
    "ENCODER_RULES",
    "REPLICATED",
    "Rules",
    "batch_axes",
    "default_devices",
    "default_mesh",
    "from_parts",
    "in_force",
    "lies_on",
    "make_mesh",
    "mesh_in_force",
    "place",
    "put",
    "replicated",
    "shard_batch",
    "sharded_init",
    "shardings",
]
