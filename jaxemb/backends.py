"""Which of JAX's backends a process is to try."""

import glob
import importlib.metadata
import importlib.util
import os

import jax

# What a machine with TPUs has: their device files, or the environment that its pods are given.
_TPU_FILES = ("/dev/accel*", "/dev/vfio/[0-9]*")
_TPU_ENVIRONMENT = ("TPU_NAME", "TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES", "TPU_ACCELERATOR_TYPE", "JAX_FORCE_TPU_INIT")


def without_absent_tpu() -> None:
    """Keeps JAX from trying a TPU that is not there, where `libtpu` is installed to compile for one.

    Trying fails quietly in JAX, but not in libtpu, which prints a screen of errors. Nothing is changed if the platforms
    are chosen already (by `JAX_PLATFORMS`, the program, or JAX itself, which looks for the chips), if there is any sign
    of a TPU, or if a plugin for other devices is installed.
    """
    chosen = jax.config.jax_platforms  # type: ignore[attr-defined]
    if chosen or importlib.util.find_spec("libtpu") is None:
        return
    has_tpu = any(map(glob.glob, _TPU_FILES)) or any(map(os.environ.get, _TPU_ENVIRONMENT))
    has_plugin = importlib.util.find_spec("jax_plugins") or importlib.metadata.entry_points(group="jax_plugins")
    if not has_tpu and not has_plugin:
        jax.config.update("jax_platforms", "cpu")
