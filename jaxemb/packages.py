"""What is said where a package is missing that only some functions need."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def remedy() -> Iterator[None]:
    """Makes a failed import of a package say how to install it.

        with remedy():
            import grain

    Raises:
      ModuleNotFoundError: "grain is not installed: pip install grain".
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        raise ModuleNotFoundError(f"{package} is not installed: pip install {package}", name=error.name) from None
