"""`python -m jaxemb` and the `jaxemb` command, which Ctrl-C ends with one line from its first import on."""

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

_INTERRUPTED = 130
_IMPORTS = "<frozen importlib._bootstrap>"


def main() -> int:
    """Runs the command with the arguments of the process, and returns its exit code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # and not ignored, as in a background job
        signal.signal(signal.SIGINT, _interrupt)
    from jaxemb.cli import main

    try:
        return main()
    except KeyboardInterrupt:  # before or after what the command does
        _end()


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raises a KeyboardInterrupt, but ends the process in the midst of imports: modules in C lose it, or show it."""
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTS:
            _end()
        frame = frame.f_back
    raise KeyboardInterrupt


def _end() -> NoReturn:
    os.write(2, b"jaxemb: interrupted\n")
    os._exit(_INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
