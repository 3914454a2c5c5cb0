"""The memory of a step is stated before it runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from lora_memory import HALF_BILLION
from tiny_run import PAIRWISE, pair_batch, tiny_model

from jaxemb.train import Runner, adamw, init_state, make_train_step, step_memory
from jaxemb.transforms import identity

SMALL = HALF_BILLION | {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "vocab_size": 20_000}


def test_arguments_are_state_and_batch_and_the_program_is_that_of_the_first_step():
    optimizer, transform = adamw(1e-3, 10), identity()
    state = init_state(jax.random.key(0), tiny_model(), optimizer, transform)
    step, batch = make_train_step(PAIRWISE, optimizer, transform), jax.device_put(pair_batch(range(8)))
    stated = step_memory(step, jax.eval_shape(lambda: state), batch)
    of = lambda leaf: 8 if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.nbytes
    exact = sum(map(of, jax.tree.leaves((state, batch))))
    assert 0.98 * exact < stated.arguments <= exact  # but for columns that the step does not read
    assert stated.temporaries > 0 and "on each device" in str(stated)

    compiled = []
    listen = lambda event, *_, **__: compiled.append(event) if event.endswith("backend_compile_duration") else None
    runner = Runner(step, state)
    jax.monitoring.register_event_duration_secs_listener(listen)
    assert runner.memory(batch) == stated
    count = len(compiled)
    runner.start(batch)
    runner.wait()
    assert len(compiled) == count


def measured(param_dtype: str, sizes: dict) -> dict:
    here = Path(__file__).resolve()
    command = [sys.executable, str(here.with_name("lora_memory.py")), param_dtype, json.dumps(sizes)]
    environment = os.environ | {"PYTHONPATH": str(here.parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads what a process holds from /proc")
@pytest.mark.parametrize("param_dtype", ["bfloat16", "nf4"])
@pytest.mark.parametrize("sizes", [SMALL, HALF_BILLION], ids=["small", "half a billion"])
def test_what_a_process_holds_in_a_lora_step_is_what_was_stated(param_dtype, sizes):
    found = measured(param_dtype, sizes)
    total = found["arguments"] + found["temporaries"]
    assert abs(found["took"] - found["temporaries"]) < 0.1 * total
