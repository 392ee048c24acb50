"""The verdicts as a table in the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from losslab.report.analyses.terminal import print_analyses
from losslab.report.claims import print_claims
from losslab.report.folder import comparisons_of
from losslab.report.notices import summary_notices
from losslab.report.numbers import (
    NONE,
    Metric,
    difference_text,
    interval_text,
    mean_sd_text,
    metric,
    p_text,
)
from losslab.report.printing import Printer
from losslab.report.verdicts import verdict, what_changed_most


def print_table(
    summary: Mapping[str, Any], console: Console, *, report: Path | str | None = None
) -> None:
    """Prints each loss's verdict, difference, p-value and accuracy; then what else got better or
    worse, what analyses found, warnings, and where the report lies.

    Colours and rules are left out where the output is not a terminal, symbols are spelled in ASCII
    where its encoding has no others, and what a narrow terminal has no room for (accuracy, then p)
    is left to the report.

    Args:
        summary: The content of ``summary.json``.
        console: Where to print.
        report: Where the HTML report lies, printed last.
    """
    printer = _Printer(console, summary)
    console.print(printer.table())
    for line in [*printer.against_controls(summary), *printer.elsewhere(summary)]:
        console.print(printer.text(textwrap.fill(line, console.width, subsequent_indent="    ")))
    if summary.get("analyses"):
        print_analyses(summary["analyses"], printer.baseline, console)
    print_claims(summary, console)
    for notice in summary_notices(summary):
        console.print(printer.text(f"{notice.kind}: {notice.text}", "yellow"))
    if report is not None:
        console.print(printer.text(f"Report: {report}"), soft_wrap=True)


class _Printer(Printer):
    """Turns a summary into rich's objects."""

    def __init__(self, console: Console, summary: Mapping[str, Any]) -> None:
        super().__init__(console)
        self.numbers = 3 if console.width >= 72 else 2 if console.width >= 54 else 1
        self.metric = metric(summary["metric"], summary)
        self.comparisons = comparisons_of(summary)
        self.means = summary["table"][summary["selection"]]
        self.baseline = str(summary["baseline"])
        self.controls = list(summary["controls"].values())

    def table(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD if self.ruled else None, pad_edge=False, show_edge=False)
        table.add_column("Loss", overflow="fold", min_width=10)
        table.add_column("Verdict", max_width=14)
        unit = self.metric.difference_unit.replace("percentage ", "% ")
        own = f"{self.metric.title}\n{self.metric.unit}"
        headings = (f"Difference\n{unit}".rstrip(), "p\n(corr.)", own.rstrip())
        for heading in headings[: self.numbers]:
            table.add_column(self.text(heading), justify="right", no_wrap=True)
        ordered = what_changed_most(self.comparisons)
        losses = [label for label in ordered if label not in self.controls]
        for label in [self.baseline, *losses, *self.controls]:
            table.add_row(*self._cells(label))
        return table

    def against_controls(self, summary: Mapping[str, Any]) -> list[str]:
        """Each loss against the baseline at its matched learning rate."""
        entries = summary["against_control"][summary["selection"]][self.metric.name]
        lines = [
            f"  {label}: {entry['verdict']}, {difference_text(self.metric, entry['mean'])} "
            f"{interval_text(self.metric, entry['low'], entry['high'])}"
            for label, entry in entries.items()
        ]
        return ["Against the baseline at the matched learning rate:", *lines] if lines else []

    def elsewhere(self, summary: Mapping[str, Any]) -> list[str]:
        """For each loss the other metrics that got better or worse, which one alone would hide."""
        by_metric = summary["comparisons"][summary["selection"]]
        lines = []
        for label in what_changed_most(self.comparisons):
            changes = [
                self._change(metric(name, summary), label, entries[label]["verdict"])
                for name, entries in by_metric.items()
                if name != self.metric.name and entries[label]["verdict"] in ("better", "worse")
            ]
            if changes:
                lines.append(f"  {label}: {'; '.join(changes)}")
        return ["Other metrics:", *lines] if lines else []

    def _change(self, row: Metric, label: str, word: str) -> str:
        before, after = (
            mean_sd_text(row, self.means[which][row.name]) for which in (self.baseline, label)
        )
        unit = "" if row.unit in ("", "nats") else row.unit
        return f"{row.title} {word} ({before} to {after}{' ' if unit else ''}{unit})"

    def _cells(self, label: str) -> list[Text]:
        entry = self.comparisons.get(label, {})  # the baseline has none
        change = difference_text(self.metric, entry.get("mean"))
        interval = interval_text(self.metric, entry.get("low"), entry.get("high"))
        numbers = (
            change if interval == NONE else f"{change}\n{interval}",
            p_text(entry.get("p_adjusted")),
            mean_sd_text(self.metric, self.means[label][self.metric.name]),
        )
        shown = [self.text(number) for number in numbers[: self.numbers]]
        return [self.text(label), self._verdict(label, entry), *shown]

    def _verdict(self, label: str, entry: Mapping[str, Any]) -> Text:
        if label == self.baseline:
            return self.text("baseline", "dim")
        shown = verdict(entry["verdict"])
        more = f"\n(~{entry['needed']} seeds)" if entry["needed"] else ""
        return self.text(f"{self.symbol(shown)} {shown.word}{more}", shown.terminal)
