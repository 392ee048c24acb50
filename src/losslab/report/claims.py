"""A paper's claims beside what a comparison found: in the terminal and for the page."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from losslab.analysis.analyse import request
from losslab.report.analyses.words import written
from losslab.report.numbers import NONE, aligned, finite, fixed, p_text, with_minus
from losslab.report.printing import Printer
from losslab.report.verdicts import Verdict

_MARKS = {
    "reproduced": Verdict("reproduced", "▲", "+", "better", "bold green", 0),
    "contradicted": Verdict("contradicted", "▼", "-", "worse", "bold red", 0),
}
_NOT_SHOWN = Verdict("not shown at this size", "?", "?", "unsure", "yellow", 1)


@dataclass(frozen=True)
class ClaimRow:
    """One claim, ready to be shown.

    ``here`` and ``published`` are the two values as means over seeds and as the paper has them.
    """

    text: str
    mark: Verdict
    difference: str
    interval: str
    p: str
    seeds: int
    here: str
    published: str


def claim_rows(summary: Mapping[str, Any]) -> list[ClaimRow]:
    """Every claim of a comparison's recipe; none where it has no recipe."""
    return [_row(claim) for claim in summary.get("claims", ())]


def print_claims(summary: Mapping[str, Any], console: Console) -> None:
    """Prints each claim with its mark, the difference that decides it, and the paper's figures."""
    rows = claim_rows(summary)
    if not rows:
        return
    printer = Printer(console)
    console.print(printer.text("Claims", "bold"))
    changes = ((summary.get("recipe") or {}).get("changes")) or ()
    if changes:
        console.print(printer.text(f"The recipe was changed: {', '.join(changes)}"))
    for row in rows:
        mark = f"{printer.symbol(row.mark)} {row.mark.word}: "
        lines = textwrap.wrap(mark + row.text, console.width, subsequent_indent="    ")
        found = f"difference {row.difference} {row.interval}".rstrip().replace("difference ×", "×")
        found += f"{'' if row.p == NONE else f', p = {row.p}'}; {row.here}"
        lines += textwrap.wrap(
            found.replace("p = <", "p < ") + (f"; paper: {row.published}" if row.published else ""),
            console.width,
            initial_indent="    ",
            subsequent_indent="    ",
        )
        first = printer.text(lines[0])
        first.stylize(row.mark.terminal, 0, len(mark))
        console.print(first)
        for line in lines[1:]:
            console.print(printer.text(line))


def _row(claim: Mapping[str, Any]) -> ClaimRow:
    unit = claim["unit"]
    sides = [claim["loss"], claim["against"]]
    if sides[0] == sides[1]:
        sides = _apart(claim["value"], claim["against_value"])
    how = written("", "", unit, None, claim["means"])
    ends = claim["mean"], claim["low"], claim["high"]
    difference, interval = _factors(*ends) if claim.get("ratio") else how.change(*ends)
    share = " %" if unit == "points" else ""
    return ClaimRow(
        text=claim["text"],
        mark=_mark(claim["mark"]),
        difference=difference
        if difference == NONE or claim.get("ratio")
        else f"{difference} {unit}".strip(),
        interval=interval,
        p=p_text(claim["p_adjusted"]),
        seeds=claim["n"],
        here=_labelled(sides[::-1], [how.text(mean) for mean in claim["means"][::-1]], share),
        published=_labelled(
            list(claim["published"]),
            [_as_printed(value, unit) for value in claim["published"].values()],
            share,
        ),
    )


def _apart(*values: str) -> list[str]:
    """What tells two values of the same models apart: their names, or their analyses' options."""
    names = [value.rpartition("/")[2] for value in values]
    if names[0] != names[1]:
        return names
    one, other = (request(value.rpartition("/")[0]).options for value in values)
    keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    told = [", ".join(f"{key}={of.get(key, 'default')}" for key in keys) for of in (one, other)]
    return told if keys else list(values)


def _factors(*factors: float | None) -> tuple[str, str]:
    """A ratio and its interval: ``×7.59``, ``[×7.55, ×7.65]``."""
    texts = aligned(list(map(finite, factors)))
    ratio, *ends = (text if text == NONE else f"×{text}" for text in texts)
    return ratio, "" if NONE in ends else f"[{', '.join(ends)}]"


def _mark(word: str) -> Verdict:
    if word.startswith("not measured"):
        return Verdict(word, "∅", "x", "refused", "magenta", 2)
    return _MARKS.get(word, _NOT_SHOWN)


def _labelled(labels: Sequence[str], numbers: Sequence[str], share: str) -> str:
    return ", ".join(
        f"{label} {number}{'' if number == NONE else share}"
        for label, number in zip(labels, numbers, strict=True)
    )


def _as_printed(value: Any, unit: str) -> str:
    """A published number: a share with two decimals, all others as they were given."""
    number = finite(value)
    if unit == "points" or number is None:
        return fixed([None if number is None else 100 * number], 2)[0]
    return with_minus(f"{number:g}")
