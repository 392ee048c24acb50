"""What a reader must know before believing a comparison: diverged and missing runs, refusals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from losslab.report.analyses.flags import folded
from losslab.report.folder import RunFolder, comparisons_of
from losslab.report.numbers import listing, metric, size_text, value_text


@dataclass(frozen=True)
class Notice:
    """One warning: its kind in a word or two (``diverged``, ``missing``, …) and what it says.

    Where that is several things, ``text`` says of whom, and ``points`` what.
    """

    kind: str
    text: str
    points: tuple[str, ...] = ()


def notices(folder: RunFolder) -> list[Notice]:
    """Every warning about a run folder, the gravest first."""
    reasons = {
        (record["loss"]["label"], record["seed"]): str(record["reason"])
        for record in folder.records
        if record["status"] == "diverged" and record.get("reason")
    }
    return [
        *summary_notices(folder.summary, reasons),
        *_mixed(folder),
        *_data(folder),
        *_unanalysed(folder),
        *_flagged(folder.summary),
    ]


def _data(folder: RunFolder) -> list[Notice]:
    """What was left out of the data, or read in a way that may surprise."""
    notes = tuple(str(note) for note in folder.configuration["task"].get("notes") or ())
    return [Notice("data", "What became of the columns and rows:", notes)] if notes else []


def summary_notices(
    summary: Mapping[str, Any], reasons: Mapping[tuple[str, int], str] | None = None
) -> list[Notice]:
    """The warnings that a summary holds by itself; ``reasons`` says why (label, seed) diverged."""
    return [
        *_optimistic(summary),
        *_coarse(summary),
        *_unlearned(summary),
        *_diverged(summary, reasons or {}),
        *_missing(summary),
        *_refused(summary),
        *_left_out(summary),
        *_skipped(summary),
    ]


def _optimistic(summary: Mapping[str, Any]) -> Iterable[Notice]:
    if summary["selection"] == "best_on_test":
        yield Notice(
            "optimistic",
            "The verdicts are about each run's best epoch on the test set itself: nobody can "
            "choose that epoch in use, and noise looks like gain.",
        )


def _coarse(summary: Mapping[str, Any]) -> Iterable[Notice]:
    step, row = (
        summary.get("resolution", {}).get(summary["metric"], 0),
        metric(summary["metric"], summary),
    )
    if step > summary["margin"]:
        yield Notice(
            "coarse",
            f"One test example is {size_text(row, step)}, more than the margin of "
            f"{size_text(row, summary['margin'])}: to show that there is no worthwhile difference "
            "takes very many seeds here, or a larger test set.",
        )


def _unlearned(summary: Mapping[str, Any]) -> Iterable[Notice]:
    """Losses none of whose models tells two classes apart: their balanced accuracy is chance."""
    chance = summary.get("diverged_count_as", {}).get("balanced_accuracy")
    table = summary["table"][summary["selection"]]
    constant = [
        label
        for label, row in table.items()
        if chance is not None
        and row["balanced_accuracy"]["n"]
        and not row["balanced_accuracy"]["sd"]
        and abs(row["balanced_accuracy"]["mean"] - chance) < 1e-9
        and len(summary["diverged"].get(label, ())) < row["balanced_accuracy"]["n"]
    ]
    if constant:
        yield Notice(
            "nothing learned",
            f"{listing(constant)}: every model answers one and the same class, so a difference of "
            "zero between such losses says nothing of them. Train longer, at another rate, or with "
            "more data.",
        )


def _diverged(
    summary: Mapping[str, Any], reasons: Mapping[tuple[str, int], str]
) -> Iterable[Notice]:
    counts_as = summary.get("diverged_count_as", {}).get("accuracy")
    accuracy = metric("accuracy")
    for label, seeds in summary["diverged"].items():
        why = listing(dict.fromkeys(reasons[label, s] for s in seeds if (label, s) in reasons))
        yield Notice(
            "diverged",
            f"{label}: {_extent(seeds, summary)} diverged{f' ({why})' if why else ''}. Each counts "
            f"for {value_text(accuracy, counts_as)} % accuracy, which is what always answering the "
            "commonest class scores; the other metrics and the figures of curves, margins and "
            "reliability do without it.",
        )


def _extent(seeds: list[int], summary: Mapping[str, Any]) -> str:
    total = len(summary["seeds"])
    share = "every run" if len(seeds) == total else f"{len(seeds)} of {total} runs"
    return f"{share} ({_seeds(seeds)})"


def _seeds(seeds: Iterable[int]) -> str:
    seeds = list(seeds)
    return f"seed{'s' if len(seeds) != 1 else ''} {listing(seeds)}"


def _missing(summary: Mapping[str, Any]) -> Iterable[Notice]:
    missing = summary["missing"]
    labels = summary["table"][summary["selection"]]
    count = sum(len(seeds) for seeds in missing.values())
    if not count:
        return
    groups: dict[tuple[int, ...], list[str]] = {}
    for label, seeds in missing.items():
        groups.setdefault(tuple(seeds), []).append(label)
    parts = [
        f"{_seeds(seeds)} of {'every loss' if len(of) == len(labels) else listing(of)}"
        for seeds, of in groups.items()
    ]
    yield Notice(
        "missing",
        f"{count} of {len(labels) * len(summary['seeds'])} runs are not finished: "
        f"{'; '.join(parts)}. The verdicts are about the pairs there are and may change; the same "
        "command makes the runs that are missing.",
    )


def _refused(summary: Mapping[str, Any]) -> Iterable[Notice]:
    groups: dict[str, list[str]] = {}
    for label, entry in comparisons_of(summary).items():
        if entry["verdict"] == "refused":
            groups.setdefault(entry["sentence"].removeprefix("refused: "), []).append(label)
    for sentence, labels in groups.items():
        yield Notice("no verdict", f"{listing(labels)}: {sentence}.")


def _left_out(summary: Mapping[str, Any]) -> Iterable[Notice]:
    title = metric(summary["metric"], summary).title
    for label, entry in comparisons_of(summary).items():
        if entry.get("left_out"):
            yield Notice(
                "left out",
                f"{label}: {_seeds(entry['left_out'])} left out of its verdict, since a run of the "
                f"pair has no {title}. What is left shows this loss at its best.",
            )


def _skipped(summary: Mapping[str, Any]) -> Iterable[Notice]:
    for label, why in (summary.get("skipped_controls") or {}).items():
        yield Notice("skipped control", f"{label}: {why}.")


def _mixed(folder: RunFolder) -> Iterable[Notice]:
    """Runs made under different versions or on different devices are not quite paired."""
    environments = [record.get("environment") or {} for record in folder.records]
    parts = []
    for key in ("losslab", "torch", "python", "device", "backend", "threads"):
        values = {str(environment.get(key)) for environment in environments}
        if len(values) > 1:
            parts.append(f"{key} ({listing(sorted(values))})")
    commits = {str((e.get("git") or {}).get("commit"))[:10] for e in environments}
    if len(commits) > 1:
        parts.append(f"git commit ({listing(sorted(commits))})")
    if parts:
        yield Notice(
            "mixed environment",
            f"The runs differ in {'; '.join(parts)}: that alone may change results.",
        )


def _unanalysed(folder: RunFolder) -> Iterable[Notice]:
    """Finished runs of which an analysis knows nothing: their pairs are left out of it."""
    groups: dict[str, list[str]] = {}
    for request, entry in folder.summary.get("analyses", {}).items():
        counts = {label: (entry["runs"].get(label, 0), len(folder.of(label))) for label in
                  folder.labels}  # fmt: skip
        lacking = [
            f"{there} of {count} runs of {label}"
            for label, (there, count) in counts.items()
            if there < count
        ]
        if lacking:
            groups.setdefault(listing(lacking), []).append(request)
    for runs, requests in groups.items():
        yield Notice(
            "not analysed",
            f"{listing(requests)} looked at only {runs}; pairs without are left out there. "
            "losslab analyse looks at the others.",
        )


def _flagged(summary: Mapping[str, Any]) -> Iterable[Notice]:
    """That analyses have warnings, which stand in full beside their numbers."""
    analyses = summary.get("analyses", {})
    counts = {request: len(folded(entry["flags"])) for request, entry in analyses.items()}
    told = [f"{request} ({count})" for request, count in counts.items() if count]
    if told:
        yield Notice(
            "analyses",
            f"{listing(told)} came with warnings, which stand beside their numbers below.",
        )
