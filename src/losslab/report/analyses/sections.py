"""What analyses found, as the words, tables and charts of a page: one section a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from losslab.analysis.analyse import ANALYSES
from losslab.report.analyses.charts import CHARTS
from losslab.report.analyses.flags import folded
from losslab.report.analyses.pool import Findings
from losslab.report.analyses.view import View
from losslab.report.analyses.words import Written, about, headline, written, written_entry
from losslab.report.charts import Chart
from losslab.report.folder import RunFolder
from losslab.report.notices import Notice
from losslab.report.numbers import finite, with_minus
from losslab.report.style import Looks
from losslab.report.verdicts import Verdict, verdict

Json = Mapping[str, Any]


@dataclass(frozen=True)
class ValueCell:
    """One loss's value; if it is compared, its verdict and its difference with the interval.

    ``order`` is what the column is sorted by: how clear the difference is, or the value itself.
    ``count`` says of how many seeds it is, where not of all.
    """

    text: str
    order: float | None
    count: str = ""
    verdict: Verdict | None = None
    difference: str = ""
    interval: str = ""


@dataclass(frozen=True)
class ValueRow:
    """One value of all losses."""

    value: Written
    cells: tuple[ValueCell, ...]


@dataclass(frozen=True)
class ValueTable:
    """Values down, losses across."""

    caption: str
    labels: tuple[str, ...]
    rows: tuple[ValueRow, ...]


@dataclass(frozen=True)
class Section:
    """One request: warnings first, then the values that tell the most, all of them, the charts."""

    name: str
    analysis: str
    request: str
    title: str
    about: str
    notices: tuple[Notice, ...]
    headline: ValueTable
    everything: ValueTable | None
    charts: tuple[Chart, ...]


def sections(folder: RunFolder, looks: Looks) -> list[Section]:
    """The sections of a comparison's page, in the order of the catalogue."""
    analyses = folder.summary.get("analyses", {})
    order = [*ANALYSES, *(entry["name"] for entry in analyses.values())]
    requests = sorted(analyses, key=lambda request: order.index(analyses[request]["name"]))
    runs = {
        label: [folder.findings.get(record["run_id"], {}) for record in folder.of(label)]
        for label in folder.losses
    }
    specs = {label: str(folder.arms[label]["spec"]) for label in folder.losses}
    made = []
    for place, request in enumerate(requests, 1):
        entry = analyses[request]
        found = {
            label: [one[request] for one in of if request in one] for label, of in runs.items()
        }
        view = View(
            f"analysis-{place}",
            {label: of for label, of in found.items() if of},
            looks,
            specs,
            masked(entry["flags"]),
        )
        rows = _compared(folder, entry)
        warnings = _warnings(entry["flags"])
        made.append(_section(view, request, entry["name"], warnings, folder.labels, rows))
    return made


def section_of_one(
    request: str, values: Json, details: Json, flags: Sequence[str], name: str, looks: Looks
) -> Section:
    """The section of one request about a single model, the only label of ``looks``."""
    analysis = request.partition("(")[0]
    (label,) = looks
    findings: Findings = {label: [{"values": values, "details": details}]}
    notices = tuple(Notice("warning", with_minus(flag)) for flag in flags)
    suspected = masked({label: [{"text": flag} for flag in flags]})
    view = View(name, findings, looks, masked=suspected)
    return _section(view, request, analysis, notices, (label,), _alone(analysis, values, details))


def _warnings(flags: Mapping[str, Sequence[Json]]) -> tuple[Notice, ...]:
    """A warning for each group of runs that have any."""
    told: dict[str, list[str]] = {}
    for flag in folded(flags):
        told.setdefault(flag.whose, []).append(flag.sentence)
    return tuple(
        Notice("warning", f"{whose}: {texts[0]}")
        if len(texts) == 1
        else Notice("warning", f"{whose}:", tuple(texts))
        for whose, texts in told.items()
    )


def masked(flags: Mapping[str, Sequence[Json]]) -> tuple[str, ...]:
    """Labels with a warning that gradients are masked."""
    return tuple(k for k, of in flags.items() if any("masking" in flag["text"] for flag in of))


def _section(
    view: View,
    request: str,
    analysis: str,
    notices: tuple[Notice, ...],
    labels: tuple[str, ...],
    rows: list[ValueRow],
) -> Section:
    chosen = headline(analysis, [row.value.name for row in rows])
    by_name = {row.value.name: row for row in rows}
    first = tuple(by_name[name] for name in chosen)
    more = len(rows) > len(first)
    drawn = CHARTS[analysis](view) if analysis in CHARTS and view.findings else ()
    return Section(
        view.name,
        analysis,
        request,
        analysis.capitalize() if analysis != "ood" else "OOD detection",
        about(analysis),
        notices,
        ValueTable(f"Values of {request}", labels, first),
        ValueTable(f"All values of {request}", labels, tuple(rows)) if more else None,
        tuple(drawn),
    )


def _compared(folder: RunFolder, entry: Json) -> list[ValueRow]:
    seeds = len(folder.seeds)
    return [
        ValueRow(
            how := written_entry(entry["name"], name, value),
            tuple(_cell(how, value, label, seeds) for label in folder.labels),
        )
        for name, value in entry["values"].items()
    ]


def _cell(how: Written, value: Json, label: str, seeds: int) -> ValueCell:
    there = value["table"].get(label, {"mean": None, "sd": None, "n": 0})
    text = how.mean_sd(there)
    count = "" if there["n"] in (0, seeds) else f"{there['n']} of {seeds} seeds"
    compared = value["comparisons"].get(label)
    if compared is None:  # the baseline
        return ValueCell(text, finite(there["mean"]), count)
    if finite(compared["mean"]) is None:
        return ValueCell(text, None, count)
    change = how.change(compared["mean"], compared["low"], compared["high"])
    return ValueCell(text, clarity(compared), count, verdict(compared["verdict"]), *change)


def clarity(compared: Json) -> float | None:
    """The difference in half-widths of its interval: beyond ±1 the interval leaves out zero."""
    mean, low, high = (finite(compared[key]) for key in ("mean", "low", "high"))
    if mean is None or low is None or high is None:
        return None
    return mean / (0.5 * (high - low)) if high > low else None


def _alone(analysis: str, values: Json, details: Json) -> list[ValueRow]:
    rows = []
    for name, value in values.items():
        known = ANALYSES[analysis].quantity(name)
        of = known.told_of(details)
        how = written(analysis, name, known.unit, known.better, [value], of)
        rows.append(ValueRow(how, (ValueCell(how.text(value), finite(value)),)))
    return rows
