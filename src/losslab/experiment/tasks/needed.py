"""Heavy libraries that some tasks need, imported when they are; a missing one is told in a line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from losslab.errors import InputError


@contextmanager
def needed(library: str, extra: str) -> Iterator[None]:
    """Import ``library`` inside; where that fails, say which command installs it.

    A library that is there and broken raises what it likes, which is told as well.

    Args:
        extra: What brings it: ``losslab[text]``, or a package.

    Raises:
        InputError: If it cannot be imported.
    """
    try:
        yield
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"this task needs {library}, which cannot be imported ({type(error).__name__}: "
            f"{reason}). Install it: pip install '{extra}'"
        ) from None
