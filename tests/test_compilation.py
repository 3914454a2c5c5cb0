"""The compilation cache."""

import os
import subprocess
import sys

SCRIPT = """
import jax, warnings
from jaxemb.compilation import enable_persistent_cache
enable_persistent_cache()
jax.jit(lambda x: x + 41).lower(1).compile()
"""


def test_a_program_that_was_cut_is_removed_and_compiled_again(tmp_path):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAXEMB_CACHE": str(tmp_path)}

    def compile_() -> str:
        done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stderr

    assert "Error" not in compile_()
    (entry,) = (tmp_path / "xla").glob("*-cache")
    whole = entry.read_bytes()
    entry.write_bytes(whole[:100])
    assert "Error" not in compile_()
    assert len(entry.read_bytes()) > 100
    assert "Error" not in compile_()
