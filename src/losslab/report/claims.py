"""A paper's claims beside what a comparison found: in the terminal and for the page."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from losslab.report.numbers import NONE, finite, p_text
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
        found = f"difference {row.difference} {row.interval}".rstrip()
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
    if sides[0] == sides[1]:  # two values of the same models
        values = claim["value"], claim["against_value"]
        sides = [value.rpartition("/")[2] for value in values]
        if sides[0] == sides[1]:
            sides = list(values)
    means = [_number(mean, unit) for mean in claim["means"]]
    ends = [_number(claim[end], unit, signed=True) for end in ("low", "high")]
    share = " %" if unit == "points" else ""
    return ClaimRow(
        text=claim["text"],
        mark=_mark(claim["mark"]),
        difference=_difference(claim["mean"], unit),
        interval="" if NONE in ends else f"[{', '.join(ends)}]",
        p=p_text(claim["p_adjusted"]),
        seeds=claim["n"],
        here=", ".join(_labelled(sides[::-1], means[::-1], share)),
        published=", ".join(
            _labelled(
                list(claim["published"]),
                [_number(value, unit) for value in claim["published"].values()],
                share,
            )
        ),
    )


def _mark(word: str) -> Verdict:
    if word.startswith("not measured"):
        return Verdict(word, "∅", "x", "refused", "magenta", 2)
    return _MARKS.get(word, _NOT_SHOWN)


def _difference(mean: Any, unit: str) -> str:
    text = _number(mean, unit, signed=True)
    return text if text == NONE else f"{text} {unit}".strip()


def _labelled(labels: Sequence[str], numbers: Sequence[str], share: str) -> list[str]:
    return [
        f"{label} {number}{'' if number == NONE else share}"
        for label, number in zip(labels, numbers, strict=True)
    ]


def _number(value: Any, unit: str, signed: bool = False) -> str:
    number = finite(value)
    if number is None:
        return NONE
    sign = "+" if signed else ""
    text = f"{100 * number:{sign}.2f}" if unit == "points" else f"{number:{sign}.4g}"
    return text.replace("-", "−")
