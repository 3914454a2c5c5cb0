"""Processes that train as one: joining them, and ending when one of them is lost."""

import atexit
import os
import subprocess
import sys
import threading
from typing import NoReturn

import jax

LOST_AFTER = 30  # seconds without a sign of life from a process
_PATIENCE = 5  # seconds

# Reads the pipe that only the process it watches holds open: that one's end is the pipe's.
_WATCHER = "import sys; sys.stdin.buffer.read() or print(sys.argv[1], file=sys.stderr)"
_watcher: subprocess.Popen | None = None

# In errors of collectives and of JAX's coordination service when another process is gone.
_SIGNS_OF_LOSS = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "heartbeat", "Barrier failed")


def join(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None, *, advice: str
) -> None:
    """`jax.distributed.initialize`, after which the loss of another process ends this one within `LOST_AFTER` seconds.

    JAX aborts a process when another is lost, often before its program can say a word. So a small process of its own
    watches this one, and says `advice` if it ends neither by `end` nor by returning from its program.

    Raises:
      ValueError: if the arguments are None and there is no cluster from which to take them.
    """
    global _watcher
    jax.distributed.initialize(coordinator, num_processes, process_id, heartbeat_timeout_seconds=LOST_AFTER)
    message = f"jaxemb: error: a process was lost: this one was killed, or JAX ended it as another was lost; {advice}"
    # In a session of its own, as Ctrl-C is not for it.
    command = [sys.executable, "-IS", "-c", _WATCHER, message]
    _watcher = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    atexit.register(_dismiss, _watcher)


def _dismiss(watcher: subprocess.Popen) -> None:
    if watcher.poll() is None:
        watcher.communicate(b"all is well")


def end(code: int) -> NoReturn:
    """Ends this process, which has failed, in `_PATIENCE` seconds at most.

    An ordinary exit waits minutes for the others, of whom one may be lost or wait for this one. But those that fail
    alike should each come to say why, before the end of process 0 becomes theirs.
    """
    leaving = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    leaving.start()
    leaving.join(_PATIENCE)
    if _watcher is not None:
        _dismiss(_watcher)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def tells_of_loss(error: Exception) -> bool:
    """Whether the error is what another process's end looks like from here."""
    return (
        jax.process_count() > 1
        and isinstance(error, jax.errors.JaxRuntimeError)
        and any(sign in str(error) for sign in _SIGNS_OF_LOSS)
    )
