"""Takes a LoRA step of a random decoder, and says what was stated before and what the process held meanwhile.

python tests/train/lora_memory.py bfloat16|nf4 '{"hidden_size": ...}'  # prints JSON
"""

import ctypes
import json
import sys
from pathlib import Path

import jax
import numpy as np

# 0.49 B weights, those of Qwen2.5-0.5B.
HALF_BILLION = {
    "hidden_size": 896,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "intermediate_size": 4864,
    "max_position_embeddings": 512,
    "vocab_size": 151_936,
}


def at_rest() -> int:
    """Bytes of memory of this process, once what is free has gone back to the system; `highest` counts from here."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return highest()


def highest() -> int:
    """The most bytes of memory that this process has had since it was `at_rest`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def measure(param_dtype: str, sizes: dict, rows: int = 8, length: int = 64) -> dict:
    """Bytes: what `step_memory` stated of shapes alone, what came with the state, and the most that a step took."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models

    import jaxemb
    from jaxemb.losses import info_nce
    from jaxemb.objectives import on_columns
    from jaxemb.train import adamw, init_state, make_train_step, step_memory
    from jaxemb.transforms import lora
    from jaxemb.types import Tokens

    ids = np.random.default_rng(0).integers(3, sizes["vocab_size"], (2, rows, length)).astype(np.int32)
    columns = [Tokens.from_mask(column, np.ones(column.shape, bool)) for column in ids]
    batch = {"query": columns[0], "positive": columns[1], "id": np.arange(rows)}
    batch = jax.device_put(batch)
    objective = on_columns(info_nce, "query", "positive")
    optimizer, transform = adamw(1e-4, 10), lora(16, where=r"layers\..*\.kernel$", beside=True)
    step = make_train_step(objective, optimizer, transform)

    def make():
        backend = Backend(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "a": 2}, unk_token="[UNK]"))
        tokenizer = jaxemb.data.Tokenizer.of(backend)
        options = {"dtype": "bfloat16", "remat": "full", "param_dtype": param_dtype}
        return jaxemb.new("qwen2", sizes, tokenizer, key=jax.random.key(0), **options).model

    start = lambda model: init_state(jax.random.key(0), model, optimizer, transform)
    stated = step_memory(step, jax.eval_shape(lambda: start(make())), batch)
    before = at_rest()
    state = jax.block_until_ready(start(make()))
    came = at_rest() - before
    run = jax.jit(step, donate_argnums=0)
    state, _ = jax.block_until_ready(run(state, batch))  # compiles
    held = at_rest()
    state, metrics = jax.block_until_ready(run(state, batch))
    took = highest() - held
    assert bool(metrics["finite"])
    return {"arguments": stated.arguments, "temporaries": stated.temporaries, "came": came, "took": took}


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    print(json.dumps(measure(sys.argv[1], json.loads(sys.argv[2]))))
