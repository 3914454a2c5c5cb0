"""Writes bitsandbytes.npz: what bitsandbytes makes of small matrices in NF4. Run where it and torch are installed."""

from pathlib import Path

import bitsandbytes
import numpy as np
import torch
from bitsandbytes import functional

RNG = np.random.default_rng(0)


def quantised(weight, double):
    """A matrix `[out, in]`: its codes, two in a byte, its scales and what they stand for."""
    codes, state = functional.quantize_4bit(
        torch.tensor(weight), blocksize=64, quant_type="nf4", compress_statistics=double
    )
    found = {"weight": weight, "codes": codes.reshape(len(weight), -1), "scales": state.absmax}
    found |= {"values": functional.dequantize_4bit(codes, state)}
    found |= {"steps": state.state2.absmax, "mean": state.offset} if double else {}
    return {name: np.asarray(value) for name, value in found.items()}


if __name__ == "__main__":
    single = RNG.standard_t(3, size=(24, 128)).astype(np.float32)
    single[3] = 0
    double = RNG.standard_t(3, size=(512, 64)).astype(np.float16).astype(np.float32)
    found = {f"single/{name}": value for name, value in quantised(single, False).items()}
    found |= {f"double/{name}": value for name, value in quantised(double, True).items()}
    tables = {"nf4": functional.get_4bit_type("nf4", device="cpu"), "float8": functional.create_dynamic_map()}
    found |= {name: np.asarray(table) for name, table in tables.items()}
    path = Path(__file__).with_name("bitsandbytes.npz")
    np.savez_compressed(path, version=bitsandbytes.__version__, **found)
