"""Placement: meshes, path rules and shardings; processes that train as one."""

from jaxemb.parallel.mesh import (
    AXES,
    BATCH_AXES,
    ENCODER_RULES,
    batch_axes,
    default_devices,
    in_force,
    lies_on,
    make_mesh,
    mesh_in_force,
    place,
    put,
    replicated,
    shard_batch,
    shardings,
)

__all__ = [
    "AXES",
    "BATCH_AXES",
    "ENCODER_RULES",
    "batch_axes",
    "default_devices",
    "in_force",
    "lies_on",
    "make_mesh",
    "mesh_in_force",
    "place",
    "put",
    "replicated",
    "shard_batch",
    "shardings",
]
