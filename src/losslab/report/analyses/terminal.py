"""What analyses found, in the terminal: the values that tell the most, and every warning."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from losslab.analysis.analyse import ANALYSES
from losslab.analysis.finding import Finding
from losslab.report.analyses.flags import folded
from losslab.report.analyses.words import Written, headline, written, written_entry
from losslab.report.numbers import NONE, finite, with_minus
from losslab.report.printing import Printer
from losslab.report.verdicts import verdict

Json = Mapping[str, Any]


def print_findings(
    chosen: Mapping[str, Json], baseline: str, console: Console, *, report: Path
) -> None:
    """Prints what analyses of a comparison found: for each, the values that tell the most.

    Args:
        chosen: By request, its part of the summary's ``analyses``.
        baseline: The label that the others are compared with.
        console: Where to print.
        report: Where the HTML report lies, which has all values and the pictures.

    Example:
        >>> print_findings(summary["analyses"], summary["baseline"], Console(),
        ...                report=page)  # doctest: +SKIP
    """
    print_analyses(chosen, baseline, console)
    printer = Printer(console)
    console.print(printer.text(f"All values and pictures: {report}"), soft_wrap=True)


def print_analyses(chosen: Mapping[str, Json], baseline: str, console: Console) -> None:
    """The tables and warnings alone, without where the report lies."""
    printer = Printer(console)
    for place, (request, entry) in enumerate(chosen.items()):
        if place:
            console.print()
        console.print(printer.text(request, "bold"))
        if entry["values"]:
            console.print(_compared(printer, entry, baseline))
        _warn(printer, (f"{flag.whose}: {flag.sentence}" for flag in folded(entry["flags"])))
    _warn(printer, _uneven(chosen))
    for line in _legend(printer, chosen):
        console.print(printer.text(textwrap.fill(line, console.width)))


def print_one_model(found: Mapping[str, Finding], console: Console, *, report: Path | None) -> None:
    """Prints what analyses of a single model found.

    Args:
        found: By request.
        console: Where to print.
        report: Where the HTML page with all values and the pictures lies, if it was written.

    Example:
        >>> print_one_model({"margins": Finding({"logits.mean": 3.0})},
        ...                 Console(width=60), report=None)
        margins
        Value          This model
        logits · mean       3.000
    """
    printer = Printer(console)
    for place, (request, finding) in enumerate(found.items()):
        if place:
            console.print()
        console.print(printer.text(request, "bold"))
        if finding.values:
            console.print(_alone(printer, request.partition("(")[0], finding))
        _warn(printer, map(with_minus, finding.flags))
    if report is not None:
        console.print(printer.text(f"All values and pictures: {report}"), soft_wrap=True)


def _table(printer: Printer) -> Table:
    return Table(box=box.SIMPLE_HEAD if printer.ruled else None, pad_edge=False, show_edge=False)


def _compared(printer: Printer, entry: Json, baseline: str) -> Table:
    """Each value with the baseline's mean, and the other losses' changes: beside it, or below."""
    names = headline(entry["name"], entry["values"])
    compared = {name: _numbers_of(entry["values"][name]["comparisons"]) for name in names}
    losses = list(dict.fromkeys(label for of in compared.values() for label in of))
    table, beside = _table(printer), len(losses) == 1
    table.add_column("Value", overflow="fold", min_width=12)
    heading = baseline if beside or not losses else f"{baseline}, and change"
    table.add_column(printer.text(heading), overflow="fold", min_width=8)
    if beside:
        table.add_column(printer.text(f"{losses[0]}, change"), overflow="fold", min_width=10)
    for name in names:
        value = entry["values"][name]
        how = written_entry(entry["name"], name, value)
        changes = {label: _change(how, one, printer) for label, one in compared[name].items()}
        mean = printer.text(how.mean_sd(value["table"].get(baseline, {})))
        if beside:
            change = changes.get(losses[0], printer.text(NONE))
            table.add_row(printer.text(how.heading), mean, change)
            continue
        bold = "bold" if losses else ""
        table.add_row(printer.text(how.heading, bold), printer.text("  ") + mean)
        for label, change in changes.items():
            table.add_row(printer.text(f"  {label}"), change)
    return table


def _numbers_of(comparisons: Mapping[str, Json]) -> dict[str, Json]:
    """Those with a difference: a loss that was not analysed has none."""
    return {k: one for k, one in comparisons.items() if finite(one["mean"]) is not None}


def _change(how: Written, compared: Json, printer: Printer) -> Text:
    shown = verdict(compared["verdict"])
    difference, interval = how.change(compared["mean"], compared["low"], compared["high"])
    end = f" {interval}" if printer.console.width >= 54 and interval else ""
    text = f"{printer.symbol(shown)} {difference}{end}"
    return printer.text(text, shown.terminal)


def _alone(printer: Printer, analysis: str, finding: Finding) -> Table:
    table, values = _table(printer), finding.values
    table.add_column("Value", overflow="fold")
    table.add_column("This model", justify="right", no_wrap=True)
    for name in headline(analysis, values):
        known = ANALYSES[analysis].quantity(name)
        of = known.told_of(finding.details)
        how = written(analysis, name, known.unit, known.better, [values[name]], of)
        table.add_row(printer.text(how.heading), printer.text(how.text(values[name])))
    return table


def _uneven(chosen: Mapping[str, Json]) -> Iterator[str]:
    """That of a loss fewer runs were analysed than of another, or none."""
    groups: dict[str, list[str]] = {}
    for request, entry in chosen.items():
        runs = entry["runs"]
        if len(set(runs.values())) > 1:
            told = ", ".join(f"{label} {count}" for label, count in runs.items())
            groups.setdefault(told, []).append(request)
    for told, requests in groups.items():
        yield f"{', '.join(requests)}: runs looked at: {told}; pairs without are left out"


def _legend(printer: Printer, chosen: Mapping[str, Json]) -> Iterator[str]:
    """What the signs in the tables mean."""
    met = dict.fromkeys(
        compared["verdict"]
        for entry in chosen.values()
        for name in headline(entry["name"], entry["values"])
        for compared in _numbers_of(entry["values"][name]["comparisons"]).values()
    )
    signs = [f"{printer.symbol(verdict(word))} {word}" for word in met]
    if signs:
        yield (
            f"{', '.join(signs)}. Changes are as they are: plus is more. "
            "Shares are in percent, changes in percentage points, intervals of 95 %."
        )


def _warn(printer: Printer, texts: Iterable[str]) -> None:
    for text in texts:
        printer.console.print(printer.text(f"warning: {text}", "yellow"))
