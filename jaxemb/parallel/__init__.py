"""Placement: meshes, path rules and shardings."""

from jaxemb.parallel.mesh import (
    AXES,
    ENCODER_RULES,
    default_devices,
    make_mesh,
    place,
    replicated,
    shard_batch,
    shardings,
)

__all__ = ["AXES", "ENCODER_RULES", "default_devices", "make_mesh", "place", "replicated", "shard_batch", "shardings"]
