"""The one exception that a user's mistake raises."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input: says what was expected, what came, and what to do about it.

    A ``ValueError``, so code that guards PyTorch calls keeps working. The command line prints its
    message without a traceback and exits with status 2.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the known name closest to ``name``, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def refuse_unknown(owner: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise for the first parameter that ``owner`` does not have, naming those it has."""
    known = list(known)
    for name in given:
        if name not in known:
            raise InputError(
                f"{owner} has no parameter {name!r}.{nearest(name, known)} "
                f"Its parameters: {', '.join(known) or 'none'}."
            )
