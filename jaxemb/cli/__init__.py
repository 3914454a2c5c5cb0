"""The `jaxemb` command. What a subcommand needs is imported when it runs, so help and usage errors are instant."""

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Sequence

from jaxemb.cli.parser import parsed

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

# What these say is about what the user gave; everything else is a failure of the work.
_INPUT_ERRORS = (
    ValueError,
    TypeError,
    SyntaxError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command with `arguments` (by default those of the process) and returns its exit code."""
    try:
        args = parsed(arguments)
    except SystemExit as exit_:  # argparse has printed help or the usage error
        return int(exit_.code or OK)
    logging.basicConfig(level=logging.WARNING, format="jaxemb: %(levelname)s: %(message)s")
    try:
        _prepare_jax(args)
        args.command(args)
        sys.stdout.flush()
        return OK
    except KeyboardInterrupt:
        print("jaxemb: interrupted", file=sys.stderr)
        return _exit_code(INTERRUPTED)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _exit_code(FAILED) if _has_joined() else OK  # others wait for what this process was about to do
    except Exception as error:
        if args.debug:
            if not _has_joined():
                raise
            traceback.print_exc()
        print(f"jaxemb: error: {_one_line(error)}", file=sys.stderr)
        return _exit_code(BAD_INPUT if isinstance(error, _INPUT_ERRORS) else FAILED)


def _exit_code(code: int) -> int:
    """The code, to return; one of several processes that fails ends here and now."""
    if _has_joined():
        from jaxemb.parallel import processes

        processes.end(code)
    return code


def _has_joined() -> bool:
    return (jax := sys.modules.get("jax")) is not None and jax.distributed.is_initialized()


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or "no message"
    return text if isinstance(error, _INPUT_ERRORS) else f"{type(error).__name__}: {text}"


def _prepare_jax(args: argparse.Namespace) -> None:
    from jaxemb.backends import without_absent_tpu

    without_absent_tpu()
    if args.name != "info":
        from jaxemb.compilation import enable_persistent_cache

        enable_persistent_cache()
