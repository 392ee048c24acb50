"""What moved most between the baseline and the other losses, over all that was measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from losslab.report.analyses.sections import Section, clarity
from losslab.report.folder import RunFolder
from losslab.report.numbers import (
    difference_text,
    finite,
    interval_text,
    mean_sd_text,
    metrics_of,
)
from losslab.report.verdicts import Verdict, verdict

SHOWN = 8  # the rest stands in the tables


@dataclass(frozen=True)
class Moved:
    """A value that differs clearly, as it was and as it is."""

    label: str
    what: str
    where: str  # the id of the section that has it
    before: str
    after: str
    difference: str
    interval: str
    verdict: Verdict
    clarity: float


def most_moved(folder: RunFolder, sections: Sequence[Section]) -> list[Moved]:
    """Everything shown to be better or worse, the clearest first.

    Clear is what is large beside its interval; the verdicts are those of the tables, with p-values
    corrected over the losses, not over the values.
    """
    found = [*_metrics(folder), *_analyses(folder, sections)]
    return sorted(found, key=lambda moved: -abs(moved.clarity))


def _metrics(folder: RunFolder) -> Iterator[Moved]:
    table = folder.summary["table"][folder.selection]
    compared = folder.summary["comparisons"][folder.selection]
    for row in metrics_of(folder.summary).values():
        if row.name == folder.metric or row.larger_is_better is None:
            continue
        sign = 1 if row.larger_is_better else -1  # comparisons are turned so that plus is better
        for label in folder.ordered:
            entry = compared[row.name][label]
            how_clear = clarity(entry)
            if entry["verdict"] not in ("better", "worse") or how_clear is None:
                continue
            yield Moved(
                label,
                row.heading,
                "others",
                mean_sd_text(row, table[folder.baseline][row.name]),
                mean_sd_text(row, table[label][row.name]),
                f"{difference_text(row, sign * entry['mean'])} {row.short_unit}".strip(),
                interval_text(row, *sorted((sign * entry["low"], sign * entry["high"]))),
                verdict(entry["verdict"]),
                how_clear,
            )


def _analyses(folder: RunFolder, sections: Sequence[Section]) -> Iterator[Moved]:
    for section in sections:
        labels = section.headline.labels
        for row in section.headline.rows:
            before = row.cells[labels.index(folder.baseline)].text
            for label, cell in zip(labels, row.cells, strict=True):
                if cell.verdict is None or cell.verdict.word not in ("better", "worse"):
                    continue
                yield Moved(
                    label,
                    f"{section.title}: {row.value.heading}",
                    section.name,
                    before,
                    cell.text,
                    cell.difference,
                    cell.interval,
                    cell.verdict,
                    finite(cell.order) or 0.0,
                )
