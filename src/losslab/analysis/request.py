"""What to analyse, in one line of text: ``margins``, ``ood(fashion-mnist)``,
``robustness(epsilons=[0.1, 0.3], examples=200)``.

A name, and in parentheses its options: numbers, words, texts in quotes, lists of such. The first
may stand without its name where an analysis has one that everybody gives.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from losslab.errors import InputError, nearest

_WHOLE = re.compile(r"\s*([A-Za-z_]\w*)\s*(?:\((.*)\))?\s*", re.DOTALL)
_KEY = re.compile(r"\s*([A-Za-z_]\w*)\s*=(?!=)(.*)", re.DOTALL)
_WORD = re.compile(r"[^\s\"'\[\]{},=][^\"'\[\]{},=]*")


@dataclass(frozen=True)
class Request:
    """An analysis by name, with its options.

    Args:
        name: One of `losslab.analysis.analyse.ANALYSES`.
        options: What is not as usual.

    Example:
        >>> str(read_request("robustness(epsilons=[0.1, 0.3], steps=20)", {"robustness": ()}))
        'robustness(epsilons=[0.1, 0.3], steps=20)'
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        inside = ", ".join(f"{key}={_text(value)}" for key, value in sorted(self.options.items()))
        return f"{self.name}({inside})" if inside else self.name


def read_request(text: str, first: Mapping[str, tuple[str, ...]]) -> Request:
    """The request that a line of text makes.

    Args:
        text: Such as ``ood(fashion-mnist)``.
        first: The known names, each with the options that may stand unnamed, in their order.

    Raises:
        InputError: If the text cannot be read, or names no analysis.
    """
    found = _WHOLE.fullmatch(text)
    if found is None:
        raise InputError(
            f"Cannot read the analysis {text!r}; write a name with options, such as "
            "'robustness(epsilons=[0.1, 0.3])'."
        )
    name, inside = found[1], found[2] or ""
    if name not in first:
        raise InputError(
            f"Unknown analysis {name!r}.{nearest(name, first)} Known: {', '.join(first)}."
        )
    options: dict[str, Any] = {}
    unnamed = iter(first[name])
    for part in _parts(inside):
        named = _KEY.fullmatch(part)
        key = named[1] if named else next(unnamed, None)
        if key is None:
            raise InputError(f"Cannot read {part.strip()!r} in {text!r}; write OPTION=VALUE.")
        if key in options:
            raise InputError(f"Expected {key} once in {text!r}, but got it twice.")
        options[key] = _value(named[2] if named else part, text)
    return Request(name, options)


def _parts(inside: str) -> list[str]:
    """Split at the commas that are in no bracket and in no quotes."""
    parts, depth, quote, begin = [], 0, "", 0
    for place, sign in enumerate(inside):
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'":
            quote = sign
        elif sign in "[(":
            depth += 1
        elif sign in "])":
            depth -= 1
        elif sign == "," and depth == 0:
            parts.append(inside[begin:place])
            begin = place + 1
    parts.append(inside[begin:])
    return [part for part in parts if part.strip()]


def _value(written: str, text: str) -> Any:
    written = written.strip()
    for candidate in (written, _WORD.sub(_quoted, written)):
        try:
            return tomllib.loads(f"value = {candidate}")["value"]
        except tomllib.TOMLDecodeError:
            continue
    raise InputError(
        f"Cannot read {written!r} in the analysis {text!r}; expected a number, a word, true, false "
        "or a list such as [0.1, 0.3]."
    )


def _quoted(word: re.Match[str]) -> str:
    """A bare word as TOML's text; what TOML reads by itself (numbers, true) stays."""
    try:
        tomllib.loads(f"value = {word[0].strip()}")
    except tomllib.TOMLDecodeError:
        return json.dumps(word[0].strip())
    return word[0]


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value if _plain(value) else json.dumps(value, ensure_ascii=False)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_text, value))}]"
    return repr(value)


def _plain(text: str) -> bool:
    """Whether a text reads back as itself without quotes."""
    try:
        return _value(text, text) == text and not set(text) & set("()")
    except InputError:
        return False


def refuse_unknown_options(request: Request, accepts: Callable[..., Any], given: int) -> None:
    """Raise `InputError` for an option that ``accepts`` (but for its first ``given``) has not."""
    import inspect

    parameters = list(inspect.signature(accepts).parameters.values())[given:]
    known = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    for key in request.options:
        if key not in known:
            raise InputError(
                f"{request.name} has no option {key!r}.{nearest(key, known)} "
                + (f"Options: {', '.join(known)}." if known else "It takes none.")
            )
    for parameter in parameters:
        if parameter.default is parameter.empty and parameter.name not in request.options:
            raise InputError(
                f"{request.name} needs its option {parameter.name}: write "
                f"{request.name}({parameter.name}=…)."
            )
