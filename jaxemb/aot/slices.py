"""TPU pod slices, to compile for without having one: chips, interconnect, and the compiler that comes in `libtpu`.

`tpu_slice("v5e:16x16")` needs the `tpu` extra (`libtpu`) but no TPU, and leaves the devices of the process alone.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one TPU chip can do at most.

    Attributes:
      flops: bf16 matrix FLOP/s.
      hbm: bytes of memory that programs may use, as the compiler of libtpu 0.0.42 says; a little less than is built in.
      hbm_bandwidth: bytes/s.
      ici_bandwidth: bytes/s that leave the chip over all its links together; as many come in at the same time.
      clock: cycles/s, from `flops` and the size of the matrix units.
      torus: number of chips from which an axis of a slice closes to a ring.
    """

    name: str
    flops: float
    hbm: float
    hbm_bandwidth: float
    ici_bandwidth: float
    clock: float
    torus: int


# Peak, bandwidths and matrix units: cloud.google.com/tpu/docs/{v5e,v5p,v6e}, where "bidirectional" ICI bandwidth counts
# both ways. Matrix units: v5e 4 and v5p 8 of 128 x 128, v6e 4 of 256 x 256; 2 FLOPs per cell and cycle.
CHIPS: Mapping[str, Chip] = {
    "v5e": Chip("v5e", 197e12, 15.75 * 2**30, 819e9, 200e9, 197e12 / (4 * 128**2 * 2), 16),
    "v5p": Chip("v5p", 459e12, 95.74 * 2**30, 2765e9, 600e9, 459e12 / (8 * 128**2 * 2), 4),
    "v6e": Chip("v6e", 918e12, 31.25 * 2**30, 1638e9, 400e9, 918e12 / (4 * 256**2 * 2), 16),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """Chips of one kind in a grid.

    Attributes:
      name: such as "v5e:16x16".
      chip: the kind.
      shape: chips along each axis of the interconnect.
      devices: what `make_mesh(devices=...)` takes, one per chip; programs can be compiled for them, not run on them.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]
    devices: tuple[jax.Device, ...]

    def bandwidth(self, devices: Sequence[jax.Device]) -> float:
        """Bytes/s out of a chip for a collective among these devices.

        It uses the links along the axes that the devices extend over, and half of them where an axis is no ring.
        """
        per_axis = self.chip.ici_bandwidth / len(self.shape)
        places = np.asarray([device.coords for device in devices])
        used = [size for axis, size in enumerate(self.shape) if np.ptp(places[:, axis])]
        return per_axis * sum(1.0 if size >= self.chip.torus else 0.5 for size in used or [1])

    @property
    def link_bandwidth(self) -> float:
        """Bytes/s from a chip to one neighbour."""
        return self.chip.ici_bandwidth / len(self.shape) / 2


@functools.cache
def tpu_slice(name: str) -> Slice:
    """The slice called so: kind, colon, chips along each axis (two for v5e and v6e, three for v5p).

    Raises:
      ValueError: for a name that is none.
      ModuleNotFoundError: without `libtpu`.
    """
    kind, _, grid = name.partition(":")
    axes = {"v5e": 2, "v6e": 2, "v5p": 3}
    if kind not in CHIPS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", grid) or grid.count("x") + 1 != axes[kind]:
        raise ValueError(
            f"a topology is v5e:AxB, v6e:AxB or v5p:AxBxC, the chips along each axis, such as v5e:16x16; got {name!r}"
        )
    shape = tuple(map(int, grid.split("x")))
    if importlib.util.find_spec("libtpu") is None:
        raise ModuleNotFoundError("the TPU compiler is in libtpu, which is not installed: pip install 'jaxemb[tpu]'")
    from jax.experimental import topologies

    try:
        with _compiler_alone():
            devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"there is no TPU slice {name}: {error}") from None
    assert len(devices) == math.prod(shape), (name, len(devices))
    return Slice(name, CHIPS[kind], shape, tuple(devices))


@functools.cache
def _log_directory() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="libtpu-")  # removed when the process ends


@contextlib.contextmanager
def _compiler_alone() -> Iterator[None]:
    """What libtpu reads of the environment when it is loaded, for a process that has no TPU."""
    wanted = {
        "TPU_SKIP_MDS_QUERY": "1",  # or it asks the cloud's metadata server who it is
        "TPU_ACCELERATOR_TYPE": "v5litepod-1",  # any: it complains if it cannot tell
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # or a second process that compiles is turned away
        "TPU_LOG_DIR": _log_directory().name,
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update({name: value for name, value in wanted.items() if before[name] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]


def compiler_log() -> str:
    """What libtpu has logged in this process as an error; it tells there how a program overflows the memory."""
    files = sorted(Path(_log_directory().name).glob("*.ERROR.*"))
    return "".join(file.read_text(errors="replace") for file in files)
