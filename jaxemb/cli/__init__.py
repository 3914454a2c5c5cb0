"""The `jaxemb` command. What a subcommand needs is imported when it runs, so help and usage errors are instant."""

import argparse
import contextlib
import errno
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO, cast

from jaxemb.cli.parser import parsed
from jaxemb.progress import Audience

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
    _open_standard_files()
    with (
        contextlib.redirect_stdout(cast(TextIO, Audience(sys.stdout))),
        contextlib.redirect_stderr(cast(TextIO, Audience(sys.stderr))),
    ):
        code = _run(arguments)
        if code == OK and isinstance(sys.stdout, Audience) and sys.stdout.lost is not None:
            print(f"jaxemb: error: the result could not be printed: {sys.stdout.lost}", file=sys.stderr)
            code = _exit_code(FAILED)
    if arguments is None:  # the work is done, and Python takes a moment to end
        signal.signal(signal.SIGINT, signal.SIG_DFL if code == INTERRUPTED else signal.SIG_IGN)
    return code


def _open_standard_files() -> None:
    """Opens those of the files 0, 1 and 2 that are closed, lest one that is opened later is taken for them."""
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(number)
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115


def _run(arguments: Sequence[str] | None) -> int:
    try:
        args = parsed(arguments)
    except SystemExit as exit_:  # argparse has printed help or the usage error
        return int(exit_.code or OK)
    logging.basicConfig(level=logging.WARNING, format="jaxemb: %(levelname)s: %(message)s")
    if not args.debug:
        for handler in logging.getLogger().handlers:
            handler.addFilter(_is_not_of_orbax)
        if arguments is None:
            sys.unraisablehook = _show_what_is_not_late
    trains_alone = args.name == "train" and not args.distributed
    try:
        with _quitting(is_process=arguments is None) if trains_alone else contextlib.nullcontext():
            _prepare_jax(args)
            args.command(args)
        sys.stdout.flush()
        return OK
    except KeyboardInterrupt:
        print("jaxemb: interrupted", file=sys.stderr)
        return _exit_code(INTERRUPTED)
    except BaseException as error:  # a config file may have exceptions of its own
        if isinstance(error, SystemExit) and _was_asked_for(error):
            raise
        if args.debug:
            if isinstance(error, Exception) and not _has_joined():
                raise
            traceback.print_exc()
        print(f"jaxemb: error: {_in_config(error, args)}{_one_line(error)}{_by_limit(error, args)}", file=sys.stderr)
        return _exit_code(BAD_INPUT if _is_of_input(error) else FAILED)


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    """Its threads log, with a traceback each, the error of which `fit` says what it means."""
    return record.name != "absl"


def _show_what_is_not_late(unraisable) -> None:
    """All but what orbax's writers tell a loop that has ended, once the first of them has failed."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


@contextlib.contextmanager
def _quitting(*, is_process: bool) -> Iterator[None]:
    """Ctrl-C ends the process at once, as long as `fit`, which handles it while it trains, has nothing to save.

    An exception would be lost, or shown, by what the config file imports and compiles. Another program that calls the
    command, and handles Ctrl-C in its own way, is let alone.
    """

    def end(number, frame):
        os.write(2, b"jaxemb: interrupted\n")
        os._exit(INTERRUPTED)

    before = signal.getsignal(signal.SIGINT)
    is_ours = before is signal.default_int_handler or (is_process and callable(before))
    if not is_ours or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _was_asked_for(error: SystemExit) -> bool:
    """Whether a run ends as a signal asked, and not because a config file does not go on."""
    from jaxemb.train.stopping import Stopped

    return isinstance(error, Stopped)


def _exit_code(code: int) -> int:
    """The code, to return; one of several processes that fails ends here and now."""
    if _has_joined():
        from jaxemb.parallel import processes

        processes.end(code)
    return code


def _has_joined() -> bool:
    return (jax := sys.modules.get("jax")) is not None and jax.distributed.is_initialized()


def _in_config(error: BaseException, args: argparse.Namespace) -> str:
    """Where in the user's config file an error arose, as "config.py:3: "; nothing if it did not arise there."""
    frames = traceback.extract_tb(error.__traceback__) if "config" in args else []
    lines = [frame.lineno for frame in frames if Path(frame.filename) == Path(args.config)]
    return f"{args.config}:{lines[-1]}: " if lines else ""


def _is_of_input(error: BaseException) -> bool:
    """Whether it is about what the user gave; a directory that somebody else uses is that, too."""
    from jaxemb.files import InUseError

    if isinstance(error, OSError) and error.errno is not None and error.filename is None:  # of no file of the user's
        return False
    is_of_path = isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ELOOP)
    return is_of_path or isinstance(error, (*_INPUT_ERRORS, InUseError))


def _by_limit(error: BaseException, args: argparse.Namespace) -> str:
    """What the limit of the size of files has to do with it: that is also why there is no temporary directory."""
    from jaxemb.files import size_limit

    no_room = isinstance(error, OSError) and (error.errno == errno.EFBIG or _is_without_temporary(error))
    if not no_room or (limit := size_limit()) is None:
        return ""
    out = getattr(args, "out", None)
    return f"; {out or 'a file'} may have {limit:,} bytes, as all files of this process (ulimit -f)"


def _is_without_temporary(error: OSError) -> bool:
    """Whether it is what `tempfile` raises, which libraries ask when they are imported, if nothing can be written."""
    return error.errno == errno.ENOENT and error.filename is None


def _one_line(error: BaseException) -> str:
    try:
        text = " ".join(str(error).split()) or "no message"
    except Exception:  # of a class that was not tried before
        text = "no message"
    return text if _is_of_input(error) else f"{type(error).__name__}: {text}"


def _prepare_jax(args: argparse.Namespace) -> None:
    from jaxemb.backends import without_absent_tpu

    without_absent_tpu()
    if args.name != "info":
        from jaxemb.compilation import enable_persistent_cache

        enable_persistent_cache()
