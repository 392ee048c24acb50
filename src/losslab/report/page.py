"""A run folder as the words and tables of the page: everything but the drawings and the HTML."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from losslab.report.folder import Json, RunFolder
from losslab.report.meanings import meaning
from losslab.report.numbers import (
    NONE,
    SELECTIONS,
    Metric,
    difference_text,
    finite,
    interval_text,
    listing,
    mean_sd_text,
    metric,
    metrics_of,
    p_text,
    seconds_text,
    share_text,
    size_text,
    value_text,
    with_minus,
)
from losslab.report.pooled import result
from losslab.report.verdicts import Verdict, verdict


@dataclass(frozen=True)
class Change:
    """One comparison, ready to be shown: a verdict and a difference with its interval."""

    verdict: Verdict
    difference: str
    interval: str
    unit: str
    value: float | None


@dataclass(frozen=True)
class Card:
    """One loss's verdict with its sentence and its other numbers."""

    label: str
    change: Change
    sentence: str
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Cell:
    """A table cell: its text, what it is sorted by (None sorts last), and a smaller second line."""

    text: str
    value: float | str | None = None
    detail: str = ""


@dataclass(frozen=True)
class Table:
    """A sortable table: a caption, headings, and rows of (label, cells)."""

    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    about: str = ""


def change(row: Metric, entry: Mapping[str, Any]) -> Change:
    """A comparison of the summary, in the metric's unit."""
    return Change(
        verdict(entry["verdict"]),
        difference_text(row, entry["mean"]),
        interval_text(row, entry["low"], entry["high"]),
        row.short_unit,
        finite(entry["mean"]),
    )


def cards(folder: RunFolder) -> list[Card]:
    """The verdicts in reading order, what changed most first."""
    row = metric(folder.metric, folder.summary)
    return [_card(label, row, folder.comparisons[label]) for label in folder.ordered]


def _card(label: str, row: Metric, entry: Mapping[str, Any]) -> Card:
    detectable = size_text(row, entry["detectable"])
    facts = (
        ("corrected p", p_text(entry["p_adjusted"])),
        ("P(improvement)", _improvement(entry)),
        ("detectable", detectable if detectable == NONE else f"{detectable} {row.short_unit}"),
        ("seeds", str(entry["n"])),
    )
    return Card(label, change(row, entry), with_minus(str(entry["sentence"])), facts)


def _improvement(entry: Mapping[str, Any]) -> str:
    ends = [share_text(entry[f"improvement_{end}"]).removesuffix(" %") for end in ("low", "high")]
    share = share_text(entry["improvement_probability"])
    return share if share == NONE else f"{share} [{listing(ends)}]"


def headline(shown: Sequence[Card]) -> str:
    """The verdicts counted: ``1 better, 2 cannot tell``."""
    counts = Counter(card.change.verdict.word for card in shown)
    return ", ".join(f"{count} {word}" for word, count in counts.items())


def title(folder: RunFolder) -> str:
    """The page's title: ``digits: 4 losses against cross_entropy``."""
    others = [label for label in folder.losses if label != folder.baseline]
    what = others[0] if len(others) == 1 else f"{len(others)} losses"
    return f"{folder.configuration['task']['name']}: {what} against {folder.baseline}"


def facts(folder: RunFolder) -> list[tuple[str, str]]:
    """The line under the title: task, metric, seeds, date."""
    row, seeds = metric(folder.metric, folder.summary), len(folder.seeds)
    ends = [str((r.get("timing") or {}).get("finished") or "") for r in folder.records]
    named = [
        ("Task", str(folder.configuration["task"]["name"])),
        ("Baseline", folder.baseline),
        ("Metric", f"test {row.title.lower()}, {SELECTIONS[folder.selection].lower()}"),
        ("Seeds", "1" if seeds == 1 else f"{seeds}, paired"),
        ("Margin", margin_text(folder)),
        ("Date", max(ends, default="")[:10]),
    ]
    return [(name, text) for name, text in named if text]


def margin_text(folder: RunFolder) -> str:
    """The margin with its unit: ``±0.50 percentage points``."""
    row = metric(folder.metric, folder.summary)
    return f"±{size_text(row, folder.summary['margin'])} {row.difference_unit}".strip()


def results(folder: RunFolder) -> list[Table]:
    """One table a metric: the three ways to choose an epoch side by side, mean ± sd over seeds."""
    first = metric(folder.metric, folder.summary)
    rows = [first, *(row for row in metrics_of(folder.summary).values() if row.name != first.name)]
    return [_results(folder, row) for row in rows]


def _results(folder: RunFolder, row: Metric) -> Table:
    table, seeds = folder.summary["table"], len(folder.seeds)
    lines = []
    for label in folder.labels:
        entries = [table[selection][label][row.name] for selection in SELECTIONS]
        lines.append((label, tuple(_mean_cell(row, entry, seeds) for entry in entries)))
    headings = ("Loss", *SELECTIONS.values())
    caption = f"{row.heading} ({row.direction})"
    return Table(caption, headings, tuple(lines), meaning(row.name))


def _mean_cell(row: Metric, entry: Mapping[str, Any], seeds: int) -> Cell:
    """Mean ± sd, and of how many runs where some are missing."""
    count = "" if entry["n"] in (0, seeds) else f"{entry['n']} of {seeds} seeds"
    return Cell(mean_sd_text(row, entry), finite(entry["mean"]), count)


def other_metrics(folder: RunFolder) -> Table:
    """Every loss's change in each of the other metrics, at the selection of the verdicts."""
    known = metrics_of(folder.summary).values()
    rows = [row for row in known if row.name != folder.metric]
    compared = folder.summary["comparisons"][folder.selection]
    lines = []
    for label in folder.ordered:
        changes = [change(row, compared[row.name][label]) for row in rows]
        lines.append((label, tuple(_change_cell(c) for c in changes)))
    headings = tuple(f"{row.title}, {row.short_unit}".strip(", ") for row in rows)
    return Table(f"Change against {folder.baseline}", ("Loss", *headings), tuple(lines))


def _change_cell(shown: Change) -> Cell:
    detail = "" if shown.interval == NONE else shown.interval
    return Cell(f"{shown.verdict.symbol} {shown.difference}", shown.value, detail)


def per_seed(folder: RunFolder) -> Table:
    """Every run in one line, diverged ones too."""
    row = metric(folder.metric, folder.summary)
    lines = [
        (label, _run_cells(row, record))
        for label in folder.labels
        for record in folder.of(label, None)
    ]
    titles = [f"{title}, {row.unit}".strip(", ") for title in SELECTIONS.values()]
    headings = ("Loss", "Seed", "Status", *titles, "Selected epoch", "NLL, last", "Time", "Run")
    return Table(f"Test {row.title.lower()} of every run", headings, tuple(lines))


def _run_cells(row: Metric, record: Json) -> tuple[Cell, ...]:
    values = [result(record, selection, row.name) for selection in SELECTIONS]
    nll = result(record, "last", "nll")
    epoch = finite((record["results"].get("validation_selected") or {}).get("epoch"))
    seconds = finite((record.get("timing") or {}).get("seconds"))
    reason = record.get("reason")
    status = f"{record['status']}: {reason}" if reason else str(record["status"])
    return (
        Cell(str(record["seed"]), record["seed"]),
        Cell(status, status),
        *(Cell(value_text(row, value), value) for value in values),
        Cell(NONE if epoch is None else f"{epoch:g}", epoch),
        Cell(value_text(metric("nll"), nll), nll),
        Cell(seconds_text(seconds), seconds),
        Cell(record["run_id"], record["run_id"]),
    )


@dataclass(frozen=True)
class ControlRow:
    """A loss and its matched-gradient control: each against the baseline, and one on the other."""

    label: str
    control: str
    lr_scale: str
    of_loss: Change
    of_control: Change
    between: Change


def controls(folder: RunFolder) -> list[ControlRow]:
    """Each loss that has a control, beside it."""
    row, against = metric(folder.metric, folder.summary), folder.summary["against_control"]
    direct = against[folder.selection][folder.metric]
    return [
        ControlRow(
            label,
            control,
            _scale_text(folder.arms[control]["lr_scale"]),
            change(row, folder.comparisons[label]),
            change(row, folder.comparisons[control]),
            change(row, direct[label]),
        )
        for control, label in folder.controls.items()
    ]


def _scale_text(scale: Any) -> str:
    """The factor on the learning rate: ``× 0.333``; first and last where a schedule moves it."""
    ends = [scale[0], scale[-1]] if isinstance(scale, list) else [scale]
    return "× " + " → ".join(f"{end:.3g}" for end in ends)


def configuration(folder: RunFolder) -> list[tuple[str, str]]:
    """The configuration in lines of (dotted name, value), without the list of runs."""
    return _flat({key: value for key, value in folder.configuration.items() if key != "runs"})


def _flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    for key, inner in value.items():
        name = f"{prefix}{key}"
        if isinstance(inner, Mapping) and inner:
            lines += _flat(inner, f"{name}.")
        elif isinstance(inner, list) and inner and all(isinstance(x, Mapping) for x in inner):
            for i, item in enumerate(inner):
                lines += _flat(item, f"{name}[{i}].")
        else:
            text = inner if isinstance(inner, str) else json.dumps(inner, ensure_ascii=False)
            lines.append((name, text))
    return lines


def environment(folder: RunFolder) -> list[tuple[str, str]]:
    """Versions, machine and git state of the runs; several values are counted."""
    counted: dict[str, Counter[str]] = {}
    for record in folder.records:
        for name, value in _flat(record.get("environment") or {}):
            counted.setdefault(name, Counter())[value] += 1
    return [(name, _counts(values)) for name, values in counted.items()]


def _counts(values: Counter[str]) -> str:
    if len(values) == 1:
        return next(iter(values))
    return "; ".join(f"{value} ({count} runs)" for value, count in sorted(values.items()))


def timings(folder: RunFolder) -> list[tuple[str, str]]:
    """When the runs ran and how long they took."""
    times = [record.get("timing") or {} for record in folder.records]
    started = [str(t["started"]) for t in times if t.get("started")]
    finished = [str(t["finished"]) for t in times if t.get("finished")]
    lines = [
        ("first run started", min(started, default=NONE)),
        ("last run finished", max(finished, default=NONE)),
        ("all runs together", seconds_text(sum(finite(t.get("seconds")) or 0.0 for t in times))),
    ]
    for label in folder.labels:
        of = [finite((r.get("timing") or {}).get("seconds")) for r in folder.of(label)]
        known = [seconds for seconds in of if seconds is not None]
        mean = seconds_text(statistics.fmean(known)) if known else NONE
        lines.append((f"one run of {label}, on average", mean))
    return lines
