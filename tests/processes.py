"""Several processes of one JAX program, on this machine; shared by the tests that start them."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

TESTS = Path(__file__).resolve().parent


def start(*arguments: object) -> list[subprocess.Popen]:
    """Two processes of `python ARGUMENTS`, told where process 0 is and which they are, as `jaxemb train` takes it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, *map(str, arguments), "--coordinator", address, "--num-processes", "2", "--process-id"]
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    environment = os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return [subprocess.Popen([*command, number], env=environment, **pipes) for number in ("0", "1")]


def finish(processes: list[subprocess.Popen], timeout: float = 180, codes: Sequence[int] = (0, 0)) -> list[str]:
    """What they say on stderr; all must end with these codes, and none outlives the timeout."""
    try:
        said = [process.communicate(timeout=timeout)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == list(codes), said
    return said
