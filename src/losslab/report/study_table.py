"""A study as tables, for the terminal and the page: our figures beside the published ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from losslab.report.numbers import (
    NONE,
    difference_text,
    fixed,
    interval_text,
    metric,
    p_text,
    value_text,
    with_minus,
)
from losslab.report.printing import Printer
from losslab.report.verdicts import verdict


@dataclass(frozen=True)
class StudyTable:
    """One model's table: headings, and a row of texts for each loss."""

    model: str
    heading: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    sentences: tuple[str, ...]
    notes: tuple[str, ...]


def study_tables(summary: Mapping[str, Any]) -> list[StudyTable]:
    """The tables of a summary, a model each; a model without enough data sets has no rows."""
    return [_table(summary, model, found) for model, found in summary["models"].items()]


def _table(summary: Mapping[str, Any], model: str, found: Mapping[str, Any]) -> StudyTable:
    row, across = metric(summary["metric"], summary), found["across"]
    notes, heading = _notes(found), found.get("heading", f"Model {model}")
    if across is None:
        few = "too few finished data sets for statistics"
        return StudyTable(model, heading, (), (), (), (*notes, few))
    published = ((summary["recipe"].get("published") or {}).get("models") or {}).get(model, {})
    unit = row.difference_unit.replace("percentage ", "% ")
    headings = ["Loss", "Verdict", f"Change\n{unit}", "p\n(corr.)", "Wins", "Mean\nplace",
                "Mean\nrank", f"{row.title}\n{row.unit}".strip()]  # fmt: skip
    if published:
        headings += ["Paper:\nchange", "\nwins", "\nplace"]
    rows = []
    for method in [across["baseline"], *(m for m in across["methods"] if m != across["baseline"])]:
        own, its = across["table"][method], across["mean_improvements"].get(method)
        mean = -own["mean"] if row.larger_is_better is False else own["mean"]
        cells = [method, *_change(row, its), str(own["wins"]), f"{own['mean_place']:.2f}",
                 f"{own['mean_rank']:.2f}", value_text(row, mean)]  # fmt: skip
        if published:
            cells += _published(published.get(method, {}))
        rows.append(tuple(cells))
    sentences = [
        f"{m}: {with_minus(e['sentence'])}" for m, e in across["mean_improvements"].items()
    ]
    return StudyTable(
        model,
        heading,
        tuple(headings),
        tuple(rows),
        (_friedman(across), *sentences),
        (*notes, *across["notes"]),
    )


def _change(row: Any, entry: Mapping[str, Any] | None) -> tuple[str, str, str]:
    if entry is None:
        return "baseline", NONE, NONE
    shown = verdict(entry["verdict"])
    interval = interval_text(row, entry["low"], entry["high"])
    change = f"{difference_text(row, entry['mean'])} {interval}"
    return f"{shown.symbol} {shown.word}", change, p_text(entry["p_adjusted"])


def _published(entry: Mapping[str, float]) -> list[str]:
    improvement = entry.get("improvement")
    wins, place = entry.get("wins"), entry.get("mean_rank")
    return [
        fixed([improvement], 2, "+")[0],
        NONE if wins is None else f"{wins:g}",
        fixed([place], 2)[0],
    ]


def _friedman(across: Mapping[str, Any]) -> str:
    friedman = across["friedman"]
    groups = "; ".join(" = ".join(group) for group in across["conover"]["groups"] if len(group) > 1)
    told = f"Not told apart by Conover's test: {groups}." if groups else "All are told apart."
    if any(found["verdict"] == "refused" for found in across["mean_improvements"].values()):
        told = "So few tell no losses apart."
    return (
        f"Friedman over {len(across['datasets'])} data sets: chi² = {friedman['chi_square']:.1f}, "
        f"p {_is(p_text(friedman['p_value']))}. {told}"
    )


def _is(p: str) -> str:
    return p if p.startswith("<") else f"= {p}"


def _notes(found: Mapping[str, Any]) -> list[str]:
    notes = []
    if len(set(found.get("judged", {}).values())) > 1:
        own = ", ".join(f"{name} by {title}" for name, title in found["judged"].items())
        notes.append(f"each task is judged by its own metric: {own}")
    if found["missing"]:
        names = ", ".join(found["missing"][:5]) + (", …" if len(found["missing"]) > 5 else "")
        notes.append(f"{len(found['missing'])} data sets left out, runs are missing: {names}")
    if found["diverged"]:
        counts = ", ".join(f"{label} {count}" for label, count in found["diverged"].items())
        notes.append(f"diverged runs, counted as always answering the commonest class: {counts}")
    return notes


def print_study(
    summary: Mapping[str, Any], console: Console, *, written: Sequence[object] = ()
) -> None:
    """Prints a table a model, the verdicts in words, notes, and where the report lies."""
    text = Printer(console).text
    runs = summary["runs"]
    console.print(text(summary["title"], "bold"))
    console.print(text(f"{runs['finished']} of {runs['planned']} runs finished"))
    for found in study_tables(summary):
        console.print()
        console.print(text(found.heading, "bold"))
        if found.rows:
            table = Table(box=None, pad_edge=False, show_edge=False)
            kept = [
                k for k in range(len(found.headings)) if console.width >= 110 or k not in (6, 7)
            ]
            for number in kept:
                table.add_column(
                    text(found.headings[number]),
                    justify="left" if number < 2 else "right",
                    no_wrap=number != 1,
                    max_width=13 if number == 1 else None,
                )
            for cells in found.rows:
                shown = [cell.replace(" [", "\n[") for cell in cells]
                table.add_row(*(text(shown[number]) for number in kept))
            console.print(table)
        for sentence in found.sentences:
            console.print(text(sentence), soft_wrap=not console.is_terminal)
        for note in found.notes:
            console.print(text(f"note: {note}", "dim"), soft_wrap=not console.is_terminal)
    for path in written:
        console.print(text(f"Written: {path}"), soft_wrap=True)
