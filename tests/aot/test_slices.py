"""TPU slices: names, sizes, bandwidths. What needs the TPU compiler is skipped without it."""

import dataclasses
import importlib.util
import os

import numpy as np
import pytest

from jaxemb.aot.slices import CHIPS, Slice, tpu_slice


@pytest.fixture
def libtpu():
    pytest.importorskip("libtpu", reason="the TPU compiler is absent: pip install 'jaxemb[tpu]'")


@pytest.mark.parametrize(
    ("name", "chips"), [("v5e:8x8", 64), ("v5e:16x16", 256), ("v6e:16x16", 256), ("v5p:4x4x4", 64)]
)
def test_slices_have_one_device_per_chip(libtpu, name, chips):
    found = tpu_slice(name)
    assert len(found.devices) == chips and {device.platform for device in found.devices} == {"tpu"}
    assert {tuple(device.coords[: len(found.shape)]) for device in found.devices} == set(np.ndindex(found.shape))


def test_the_environment_is_left_as_it_was(libtpu):
    before = dict(os.environ)
    tpu_slice.cache_clear()
    tpu_slice("v5e:4x4")
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    "name", ["v5e", "v5e:", "v5e:8", "v5e:8x8x8", "v5p:4x4", "v4:2x2x2", "v5e:0x8", "h100:8x8", "v5e:8x"]
)
def test_names_that_are_none(name):
    with pytest.raises(ValueError, match="a topology is v5e:AxB"):
        tpu_slice(name)


def test_a_slice_that_is_not_made(libtpu):
    with pytest.raises(ValueError, match="there is no TPU slice v5e:3x5"):
        tpu_slice("v5e:3x5")


def test_without_the_compiler(monkeypatch):
    tpu_slice.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'jaxemb\[tpu\]'"):
        tpu_slice("v5e:8x8")


def test_peaks_follow_from_the_matrix_units():
    """Clocks of real chips: between 1 and 2 GHz."""
    assert all(1e9 < chip.clock < 2e9 for chip in CHIPS.values())


@dataclasses.dataclass(frozen=True)
class At:
    """A device that is nothing but a place."""

    coords: tuple[int, ...]


@pytest.mark.parametrize(
    ("name", "shape", "across", "share"),
    [
        ("v5e", (16, 16), (16, 16), 1.0),
        ("v5e", (16, 16), (1, 16), 0.5),  # one of the two axes
        ("v5e", (8, 16), (8, 16), 0.75),  # 8 chips are no ring
        ("v5e", (8, 8), (8, 8), 0.5),
        ("v5p", (4, 4, 4), (4, 4, 4), 1.0),
        ("v5p", (4, 4, 4), (2, 1, 1), 1 / 3),
        ("v5p", (2, 2, 1), (2, 2, 1), 1 / 3),
    ],
)
def test_a_collective_uses_the_links_along_its_axes(name, shape, across, share):
    chips = Slice("any", CHIPS[name], shape, ())
    group = [At(place) for place in np.ndindex(across)]
    assert chips.bandwidth(group) == pytest.approx(share * CHIPS[name].ici_bandwidth)


def test_a_link_is_one_way_along_one_axis():
    assert Slice("v5e:8x8", CHIPS["v5e"], (8, 8), ()).link_bandwidth == 50e9
