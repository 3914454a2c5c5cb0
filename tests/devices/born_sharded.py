"""Loads a random model onto eight devices, starts to train it, and says what the devices and the host held meanwhile.

python tests/devices/born_sharded.py DIRECTORY CONFIG bfloat16  # writes 1 GB there, takes 4 GB of memory, prints JSON
"""

import contextlib
import gc
import json
import math
import sys
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import safetensors.numpy

# 0.5 B weights; of the stacked kernels of the feed-forward each is three tenths of them.
HALF_BILLION = {
    "model_type": "bert",
    "vocab_size": 50_000,
    "hidden_size": 1024,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
}


def write_random(directory: Path, config: dict) -> None:
    """A Hugging Face directory of bf16 weights, one file per layer, of which no more than one is in memory."""
    from jaxemb.checkpoints.weights import new_format
    from jaxemb.encoders.families import family_of

    family, noise = family_of(config), np.random.default_rng(0).standard_normal(2**20, np.float32)
    noise = (0.02 * noise).astype(ml_dtypes.bfloat16)
    format = new_format(family.config(config), family, config)

    def weight(tensor) -> np.ndarray:
        leaves = [format.shapes[leaf][tensor.layer is not None :] for leaf in tensor.weight.leaves]
        shape = (*leaves[0][:-1], sum(leaf[-1] for leaf in leaves))
        return np.resize(noise, shape[::-1] if tensor.weight.transpose else shape)

    weight_map = {}
    for number in (None, *range(config["num_hidden_layers"])):
        tensors = {tensor.name: weight(tensor) for tensor in format.stored if tensor.layer == number}
        safetensors.numpy.save_file(tensors, directory / f"{number}.safetensors", {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, f"{number}.safetensors")
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdef"]))


def on_devices() -> Counter:
    """Bytes of all live arrays by device."""
    held: Counter = Counter()
    for array in jax.live_arrays():
        size = math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize
        held.update(dict.fromkeys(array.sharding.addressable_devices, size))
    return held


def nbytes(tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@contextlib.contextmanager
def account(of: dict) -> Iterator[None]:
    """Adds to `of`: bytes on the devices that came, the most that numpy held, the most memory that the process took."""
    gc.collect()
    before, resident, stop = on_devices(), [_resident()], threading.Event()

    def watch() -> None:
        while not stop.is_set():
            resident.append(_resident())
            time.sleep(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    tracemalloc.start()
    try:
        yield
        of["host"] = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        stop.set()
        watcher.join()
    gc.collect()
    came = on_devices() - before
    of["devices"] = [came[device] for device in jax.devices()]
    of["process"] = max(resident) - resident[0]


def _resident() -> int:
    """Bytes of memory of this process that are no file's; 0 where the system does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def measure(directory: Path, param_dtype: str) -> dict:
    """What loading the model of `directory` and starting to train it took, in bytes; quantised, to train adapters."""
    import jaxemb
    from jaxemb import parallel, sentence_embedder  # noqa: F401 (whose import is no part of loading)
    from jaxemb.train import adamw, init_state
    from jaxemb.transforms import identity, lora

    mesh = parallel.make_mesh(fsdp=-1, data=1, devices=jax.devices()[:8])
    method = identity() if param_dtype == "bfloat16" else lora(1, where=r"query\.kernel$")
    key, optimizer = jax.random.key(0), adamw(1e-4, 10)
    loading: dict = {}
    with account(loading):
        model = jax.block_until_ready(jaxemb.load(directory, mesh=mesh, param_dtype=param_dtype).model)
    loading["whole"] = nbytes(model)

    starting: dict = {}
    with account(starting):
        state = jax.block_until_ready(init_state(key, model, optimizer, method, mesh=mesh))
    starting["whole"] = nbytes(state)
    start = lambda key, model: init_state(key, model, optimizer, method)
    where = parallel.shardings(jax.eval_shape(start, key, model), mesh)
    program = jax.jit(start, out_shardings=where).lower(key, model).compile().memory_analysis()
    starting |= {"outputs": program.output_size_in_bytes, "temporaries": program.temp_size_in_bytes}
    return {"weights": sum(leaf.size for leaf in jax.tree.leaves(model)), "loading": loading, "starting": starting}


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    write_random(Path(sys.argv[1]), json.loads(sys.argv[2]))
    print(json.dumps(measure(Path(sys.argv[1]), *sys.argv[3:])))
