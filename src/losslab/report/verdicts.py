"""What each verdict looks like: a word, a symbol, a colour class; and in which order they stand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from losslab.report.numbers import finite


@dataclass(frozen=True)
class Verdict:
    """One verdict's appearance; the symbol and the word carry it where colour is not seen."""

    word: str
    symbol: str
    ascii: str
    css: str
    terminal: str
    rank: int


_ROWS = (
    Verdict("better", "▲", "+", "better", "bold green", 0),
    Verdict("worse", "▼", "-", "worse", "bold red", 0),
    Verdict("no worthwhile difference", "≈", "=", "same", "cyan", 1),
    Verdict("cannot tell", "?", "?", "unsure", "yellow", 1),
    Verdict("descriptive", "·", ".", "unsure", "", 1),
    Verdict("refused", "∅", "x", "refused", "magenta", 2),
)
VERDICTS = {row.word: row for row in _ROWS}


def verdict(word: Any) -> Verdict:
    """The appearance of a verdict; an unknown word is shown as it is, in neutral dress."""
    return VERDICTS.get(str(word)) or Verdict(str(word), "•", "*", "unsure", "", 1)


def what_changed_most(comparisons: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Labels in reading order: established changes first, the largest first; refused last."""

    def key(label: str) -> tuple[int, float]:
        entry = comparisons[label]
        return verdict(entry.get("verdict")).rank, -abs(finite(entry.get("mean")) or 0.0)

    return sorted(comparisons, key=key)
