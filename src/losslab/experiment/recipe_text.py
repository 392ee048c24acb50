"""A recipe as text: TOML whose every key knows its line, read key by key with its type checked.

text = parse("study.toml", toml)          values, and the line of each key
section = text.section(known=(...))       the top level; an unknown key is refused here
section.whole("epochs", least=1)          a value of the right type, or an error with its line
"""

from __future__ import annotations

import copy
import math
import re
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from losslab.errors import InputError, nearest
from losslab.experiment.recipe_lines import KeyPath, key_lines, key_path

REQUIRED: Any = object()


@dataclass(frozen=True)
class RecipeText:
    """The values of a recipe, where each was written, and what the command line changed.

    Args:
        name: The file (or the name of a recipe that comes with losslab), for messages.
        values: What ``tomllib`` read, with the changes in it.
        lines: The line of every key.
        folder: Where files named in the recipe are looked for.
        given: Keys whose value came from ``--set``.
        removed: Keys that ``--set KEY=`` took out.
    """

    name: str
    values: dict[str, Any]
    lines: dict[KeyPath, int]
    folder: Path | None = None
    given: frozenset[KeyPath] = field(default=frozenset())
    removed: frozenset[KeyPath] = field(default=frozenset())

    def error(self, path: KeyPath, message: str) -> InputError:
        """The error to raise for what stands at ``path``."""
        return InputError(f"{self.where(path)}: {message}")

    def where(self, path: KeyPath) -> str:
        """``FILE, line N``, or ``--set KEY`` where the value came from the command line."""
        parts = [path[:length] for length in range(len(path), 0, -1)]
        for part in parts:
            if part in self.given:
                return f"{self.name} with --set {written(part)}"
        for key in self.given:  # a table that only a change has made
            if key[: len(path)] == path and path not in self.lines:
                return f"{self.name} with --set {written(key)}"
        for part in parts:
            if part in self.lines:
                return f"{self.name}, line {self.lines[part]}"
        return f"{self.name}, line 1"

    def section(self, known: Collection[str]) -> Section:
        """The top level of the recipe."""
        return Section(self, (), self.values, known)

    def changed(self, changes: Mapping[str, Any]) -> RecipeText:
        """A recipe with the values of ``{"training.epochs": 5}`` put in; None takes a key out."""
        values, given, removed = copy.deepcopy(self.values), set(self.given), set(self.removed)
        for key, value in changes.items():
            path = key_path(key)
            if path is None:
                raise InputError(
                    f'--set {key}: expected a key such as training.epochs or losses."CE + EL"; '
                    "quote a part that holds anything but letters, digits, - and _."
                )
            if value is None:
                self._take_out(values, path)
                removed.add(path)
            else:
                self._put_in(values, path, copy.deepcopy(value))
                given.add(path)
                removed.discard(path)
        return replace(self, values=values, given=frozenset(given), removed=frozenset(removed))

    def _put_in(self, values: dict[Any, Any], path: KeyPath, value: Any) -> None:
        for part in path[:-1]:
            values = values.setdefault(part, {})
            if not isinstance(values, dict):
                raise InputError(
                    f"--set {written(path)}: {part!r} in {self.name} is a value and has no keys."
                )
        values[path[-1]] = value

    def _take_out(self, values: dict[Any, Any], path: KeyPath) -> None:
        for depth, part in enumerate(path):
            if not isinstance(values, dict) or part not in values:
                known = values if isinstance(values, dict) else ()
                raise InputError(
                    f"--set {written(path)}= takes a key out, but {self.name} has no "
                    f"{written(path[: depth + 1])}.{nearest(str(part), known)}"
                )
            if depth == len(path) - 1:
                del values[part]
            else:
                values = values[part]


def parse(name: str, toml: str, folder: Path | None = None) -> RecipeText:
    """The recipe in a TOML text; `InputError` with the line where it is not TOML."""
    try:
        values = tomllib.loads(toml)
    except tomllib.TOMLDecodeError as error:
        message, line = str(error), re.search(r"at line (\d+), column (\d+)", str(error))
        number = line[1] if line else str(toml.count("\n") + 1)
        reason = message.partition(" (at ")[0]
        column = f", column {line[2]}" if line else ""
        raise InputError(
            f"{name}, line {number}{column}: this is not TOML: {reason}. Text stands in quotes, "
            'lists in brackets: key = "text", key = [1, 2].'
        ) from None
    return RecipeText(name, values, key_lines(toml), folder)


def read_changes(texts: Sequence[str]) -> dict[str, Any]:
    """``["training.epochs=5", "losses.EL="]`` as `RecipeText.changed` takes it.

    A value is written as in the recipe; text needs no quotes. Nothing after ``=`` removes the key.

    Example:
        >>> read_changes(["training.epochs=5", "seeds=[0]", "training.optimizer=adam", "title="])
        {'training.epochs': 5, 'seeds': [0], 'training.optimizer': 'adam', 'title': None}
    """
    changes: dict[str, Any] = {}
    for text in texts:
        key, equals, value = _divided(text)
        if not equals or not key:
            raise InputError(f"--set takes KEY=VALUE, such as training.epochs=5; got {text!r}.")
        changes[key] = _value(value)
    return changes


def _divided(text: str) -> tuple[str, str, str]:
    """Key, ``=`` and value; an ``=`` inside quotes belongs to the key."""
    quoted = re.match(r"""(?:"(?:[^"\\]|\\.)*"|'[^']*'|[^='"])*""", text)
    end = quoted.end() if quoted else 0
    return text[:end].strip(), text[end : end + 1], text[end + 1 :].strip()


def _value(text: str) -> Any:
    if not text:
        return None
    try:
        found = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        if text[0] in "[{":
            raise InputError(
                f"--set: {text} is not a TOML value; names inside a list stand in quotes: "
                """'data.sets=["iris", "wine"]'."""
            ) from None
        return text
    return found["value"] if set(found) == {"value"} else text


def written(path: KeyPath) -> str:
    """``training.epochs``; parts that need quotes get them, an element of a list its number."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            bare = re.fullmatch(r"[A-Za-z0-9_-]+", part)
            text += ("." if text else "") + (part if bare else f'"{part}"')
    return text


def as_float(number: float) -> float:
    """``float(number)``; infinity for a whole number that is too large for one."""
    try:
        return float(number)
    except OverflowError:
        return math.inf


class Section:
    """One table of a recipe. Each method takes one key; a wrong value raises with its line."""

    def __init__(
        self, text: RecipeText, path: KeyPath, values: Mapping[str, Any], known: Collection[str]
    ) -> None:
        self.text, self.path, self.values = text, path, values
        for key in values:
            if known and key not in known:
                raise self.error(key, f"{self._no_such(key, known)} Its keys: {', '.join(known)}.")

    def _no_such(self, key: str, known: Collection[str]) -> str:
        """What is not there, with the nearest that is; a table in its brackets."""
        if isinstance(self.values[key], Mapping):
            section = written((*self.path, key))
            meant = nearest(section, [written((*self.path, name)) for name in known])
            meant = re.sub(r"'(.*)'", r"[\1]", meant)
            return f"a recipe has no section [{section}].{meant}"
        owner = f"[{written(self.path)}]" if self.path else "a recipe"
        return f"{owner} has no key {key!r}.{nearest(key, known)}"

    def error(self, key: str | None, message: str, *more: str | int) -> InputError:
        """The error for a key of this table (and what is in it), or for the table itself."""
        path = self.path if key is None else (*self.path, key, *more)
        return self.text.error(path, message)

    def value(self, key: str, default: Any, kind: type | tuple[type, ...], expected: str) -> Any:
        """The value as it stands, if it is of a kind (true and false are no numbers)."""
        if key not in self.values:
            if default is REQUIRED:
                owner = f"[{written(self.path)}]" if self.path else "the recipe"
                raise self.error(None, f"{owner} lacks {key!r}: expected {expected}.")
            return default
        found = self.values[key]
        if not isinstance(found, kind) or (isinstance(found, bool) and kind is not bool):
            raise self.wrong(key, expected, found)
        return found

    def wrong(self, key: str, expected: str, found: Any, *more: str | int) -> InputError:
        """The error for a value that is not what was expected."""
        shown = written((key, *more))
        return self.error(key, f"expected {shown} to be {expected}; got {found!r}.", *more)

    def string(self, key: str, default: Any = REQUIRED, choices: Collection[str] = ()) -> str:
        """Text that is not empty; one of ``choices`` where there are any."""
        quoted = ", ".join(repr(choice) for choice in choices)
        expected = f"one of {quoted}" if choices else "text in quotes"
        found = self.value(key, default, str, expected)
        if key not in self.values:
            return found
        if choices and found not in choices:
            raise self.error(
                key, f"expected {key} to be {expected}; got {found!r}.{nearest(found, choices)}"
            )
        if not found.strip():
            raise self.wrong(key, f"{expected}, not empty", found)
        return found

    def whole(self, key: str, default: Any = REQUIRED, *, least: int) -> int:
        """A whole number of at least ``least``."""
        expected = f"a whole number of at least {least}"
        found = self.value(key, default, int, expected)
        if key in self.values and not least <= found < 2**63:
            raise self.wrong(key, expected, found)
        return found

    def number(
        self,
        key: str,
        default: Any = REQUIRED,
        *,
        fits: Callable[[float], bool] = lambda number: True,
        expected: str = "a finite number",
    ) -> float:
        """A finite number that ``fits``."""
        found = self.value(key, default, (int, float), expected)
        if key in self.values and not (math.isfinite(as_float(found)) and fits(found)):
            raise self.wrong(key, expected, found)
        return as_float(found)

    def each(self, key: str, default: Any, kind: type | tuple[type, ...], expected: str) -> list:
        """A list whose elements are all of a kind, none of them twice."""
        found = self.value(key, default, list, f"a list, each {expected}")
        for place, element in enumerate(found):
            if not isinstance(element, kind) or isinstance(element, bool):
                raise self.wrong(key, expected, element, place)
            if element in found[:place]:
                raise self.error(key, f"{key} names {element!r} twice; once is enough.", place)
        return list(found)

    def inner(self, key: str, known: Collection[str], *, required: bool = True) -> Section | None:
        """The table under a key."""
        expected = f"a table, [{written((*self.path, key))}]"
        found = self.value(key, REQUIRED if required else None, dict, expected)
        return None if found is None else Section(self.text, (*self.path, key), found, known)

    def table(self, key: str, known: Collection[str]) -> Section:
        """The table under a key that must be there."""
        found = self.inner(key, known)
        assert found is not None
        return found
