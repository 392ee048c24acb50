"""On which line of a TOML text each key stands: ``tomllib`` reads the values but does not say.

The text is known to be TOML when it comes here, so this only has to find keys, and to pass over
values without being misled by what stands in strings and comments.
"""

from __future__ import annotations

import re
import tomllib

KeyPath = tuple[str | int, ...]
"""``("training", "epochs")``; an element of a list goes by its number: ``("seeds", 1)``."""

_KEY_PART = re.compile(r"""[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'""")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}(?!")'
    + r"|'''.*?'{3,5}(?!')"
    + r'|"(?:[^"\\\n]|\\.)*"'
    + r"|'[^'\n]*'",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\]}#\n]*")
_SPACE = re.compile(r"[ \t]*")
_GAP = re.compile(r"(?:[ \t\n]|#[^\n]*)*")


def key_lines(toml: str) -> dict[KeyPath, int]:
    """The line of every key and every list element; of a key met twice (a table), the first.

    Example:
        >>> key_lines('seeds = [0]\\n[training]\\nepochs = 5\\n')
        {('seeds',): 1, ('seeds', 0): 1, ('training',): 2, ('training', 'epochs'): 3}
    """
    return _Scanner(toml).scan()


def key_path(text: str) -> KeyPath | None:
    """``training.epochs`` or ``losses."CE + EL"`` as a path; None if it is no TOML key."""
    scanner = _Scanner(text.strip())
    try:
        path = scanner.key()
    except ValueError:
        return None
    return path if scanner.at == len(scanner.toml) else None


class _Scanner:
    def __init__(self, toml: str) -> None:
        self.toml, self.at = toml, 0
        self.lines: dict[KeyPath, int] = {}
        self.elements: dict[KeyPath, int] = {}  # of [[tables]]: how many so far

    def scan(self) -> dict[KeyPath, int]:
        table: KeyPath = ()
        while self.skip(_GAP) and self.at < len(self.toml):
            if self.toml[self.at] == "[":
                table = self.header()
            else:
                self.pair(table)
        return self.lines

    def skip(self, pattern: re.Pattern[str]) -> bool:
        """Pass over what the pattern matches here; always true, for use in a condition."""
        found = pattern.match(self.toml, self.at)
        assert found is not None  # the patterns match an empty text, or TOML's grammar holds
        self.at = found.end()
        return True

    def note(self, path: KeyPath, start: int) -> None:
        line = self.toml.count("\n", 0, start) + 1
        for length in range(1, len(path) + 1):  # a dotted key makes the tables on its way
            self.lines.setdefault(path[:length], line)

    def header(self) -> KeyPath:
        start, several = self.at, self.toml.startswith("[[", self.at)
        self.at += 1 + several
        path = self.placed(self.key())
        self.at += 1 + several
        if several:
            number = self.elements.get(path, 0)
            self.elements[path] = number + 1
            path = (*path, number)
        self.note(path, start)
        return path

    def placed(self, path: KeyPath) -> KeyPath:
        """The path with the number of the latest element after each list of tables on the way."""
        placed: KeyPath = ()
        for part in path[:-1]:
            placed = (*placed, part)
            if placed in self.elements:
                placed = (*placed, self.elements[placed] - 1)
        return (*placed, path[-1])

    def key(self) -> KeyPath:
        parts: list[str | int] = []
        while True:
            self.skip(_SPACE)
            found = _KEY_PART.match(self.toml, self.at)
            if found is None:
                raise ValueError(f"no key at {self.at}")
            self.at = found.end()
            quoted = found[0][0] in "\"'"
            parts.append(tomllib.loads(f"k = {found[0]}")["k"] if quoted else found[0])
            self.skip(_SPACE)
            if self.toml[self.at : self.at + 1] != ".":
                return tuple(parts)
            self.at += 1

    def pair(self, table: KeyPath) -> None:
        start = self.at
        path = (*table, *self.key())
        self.note(path, start)
        self.at += 1  # the equals sign
        self.skip(_SPACE)
        self.any_value(path)

    def any_value(self, path: KeyPath) -> None:
        first = self.toml[self.at]
        if first == "[":
            self.list_elements(path)
        elif first == "{":
            self.inline_table(path)
        else:
            self.skip(_STRING if first in "\"'" else _SCALAR)

    def list_elements(self, path: KeyPath) -> None:
        self.at += 1
        number = 0
        while self.skip(_GAP) and self.toml[self.at] != "]":
            self.note((*path, number), self.at)
            self.any_value((*path, number))
            number += 1
            self.skip(_GAP)
            self.at += self.toml[self.at] == ","
        self.at += 1

    def inline_table(self, path: KeyPath) -> None:
        self.at += 1
        while self.skip(_GAP) and self.toml[self.at] != "}":
            self.pair(path)
            self.skip(_GAP)
            self.at += self.toml[self.at] == ","
        self.at += 1
