"""Several comparisons of the same losses, each on a task of its own, taken together.

What holds on one task may be luck of that task. The tasks' mean differences go through the
statistics of `losslab.experiment.across`: wins, ranks, performance profile, mean improvement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from losslab.errors import InputError, nearest
from losslab.experiment import records
from losslab.experiment.across import summarize_across
from losslab.experiment.study_summary import FEWEST_DATASETS
from losslab.experiment.summary import COUNTED, load_planned, metric_rows, run_value, stored
from losslab.metrics import Metric

OWN = Metric("score", "Score")
"""Stands for each task's own metric where they differ."""


def summarize_folders(
    folders: Sequence[str | Path], metric: str | None = None, margin: float | None = None
) -> dict[str, Any]:
    """The statistics over the comparisons of some folders; ready for JSON, and for the pages.

    Losses are those that all comparisons have under the same label; the first one's baseline is
    theirs. Of each comparison the seeds count for which all of these losses have finished with a
    value; a diverged run has one where the metric is an accuracy. A comparison without such a seed
    is left out. Both are named.

    Args:
        folders: Of comparisons, finished or not.
        metric: What is compared; None takes each comparison's own, which must then all be better
            when larger and lie between −1 and 1, as GLUE's do (accuracy, F1, Matthews correlation).
        margin: The largest mean difference not worth having; None takes the metric's.

    Raises:
        InputError: If a folder is no comparison's, two are of one task, fewer than two losses are
            in all of them, or fewer than two comparisons have finished runs.
    """
    loaded = [load_planned(folder) for folder in folders]
    if len(loaded) < FEWEST_DATASETS:
        raise InputError(f"Expected two or more folders of comparisons, but got {len(loaded)}.")
    comparisons = [comparison for comparison, _ in loaded]
    names = _names(folders, comparisons)
    losses, baseline = _common(folders, comparisons)
    rows = [_row(folder, one, metric) for folder, one in zip(folders, comparisons, strict=True)]
    row = rows[0] if len({one.name for one in rows}) == 1 else _mixed(names, rows)
    used, scores, lacking = [], [], []
    diverged: dict[str, int] = {}
    without: list[str] = []
    for name, (comparison, planned), own in zip(names, loaded, rows, strict=True):
        found = _scores(comparison, planned, list(losses), own)
        if found:
            used.append(name)
            scores.append(found)
        else:
            lacking.append(name)
        for label, count in _diverged(planned, list(losses)).items():
            if own.name in COUNTED:
                diverged[label] = diverged.get(label, 0) + count
            else:
                without.append(f"{label} on {name} ({count})")
        if row is OWN:
            _refuse_other_scale(name, own, found)
    if len(used) < FEWEST_DATASETS:
        raise InputError(
            "Expected two or more comparisons with a seed for which every loss has finished, but "
            f"got {', '.join(used) or 'none'}; lacking: {', '.join(lacking)}. Go on with those."
        )
    margin = row.margin if margin is None else margin
    share = row.unit == "share"
    across = summarize_across(
        _cube(scores),
        list(losses),
        baseline,
        margin,
        datasets=used,
        unit="points" if share else "",
        scale=100.0 if share else 1.0,
    )
    if across["seeds"] is None:
        across["notes"][0] = (
            "The comparisons have different numbers of seeds: their means were taken, and nothing "
            "is said of a single task's spread."
        )
    if without:
        across["notes"].append(
            f"Seeds with a diverged run, which has no value, were left out: {', '.join(without)}. "
            "What is left shows these losses at their best."
        )
    judged = {name: own.title for name, own in zip(names, rows, strict=True)}
    return {
        "schema": records.SCHEMA,
        "name": "across",
        "title": f"{' · '.join(label for label in losses)}: {len(used)} tasks together",
        "recipe": {
            "source": "",
            "differs": [],
            "losses": losses,
            "statistics": {"baseline": baseline, "metric": row.name, "margin": margin},
        },
        "metric": row.name,
        "metrics": [stored(row)],
        "runs": {
            "finished": sum(len(planned) for _, planned in loaded),
            "planned": sum(len(c["losses"]) * len(c["seeds"]) for c in comparisons),
            "seconds": sum(r["timing"]["seconds"] for _, planned in loaded for r in planned),
        },
        "models": {
            "all": {
                "heading": f"Over {len(used)} tasks",
                "missing": lacking,
                "diverged": diverged,
                "rates": {},
                "across": across,
                "judged": judged,
            }
        },
    }


def _names(folders: Sequence[str | Path], comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    """The tasks' names, or with their folders' where two are called alike."""
    tasks = [str(comparison["task"]["name"]) for comparison in comparisons]
    names = [
        task if tasks.count(task) == 1 else f"{task} ({Path(folder).name})"
        for task, folder in zip(tasks, folders, strict=True)
    ]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"Expected each comparison once, but got {twice} twice.")
    return names


def _common(
    folders: Sequence[str | Path], comparisons: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, str], str]:
    """Spec by label of the losses that all comparisons have, and their baseline."""
    specs = [
        {arm["label"]: arm["spec"] for arm in comparison["losses"] if arm["role"] == "loss"}
        for comparison in comparisons
    ]
    losses = {
        label: spec for label, spec in specs[0].items() if all(label in more for more in specs[1:])
    }
    baseline = comparisons[0]["baseline"]
    if len(losses) < 2 or baseline not in losses:
        each = "; ".join(
            f"{folder}: {', '.join(its)}" for folder, its in zip(folders, specs, strict=True)
        )
        raise InputError(
            "Expected a baseline and at least one more loss under the same label in all "
            f"comparisons, but got {each}."
        )
    return losses, str(baseline)


def _row(folder: str | Path, comparison: Mapping[str, Any], metric: str | None) -> Metric:
    known = metric_rows(comparison)
    name = metric or comparison["metric"]
    if name not in known or known[name].better is None:
        judged = [row.name for row in known.values() if row.better is not None]
        raise InputError(
            f"{folder}: has no metric {name!r} that is judged.{nearest(name, judged)} "
            f"Known: {', '.join(judged)}."
        )
    return known[name]


def _mixed(names: Sequence[str], rows: Sequence[Metric]) -> Metric:
    if all(row.better and row.unit in ("share", "") for row in rows):
        return OWN
    each = ", ".join(f"{name} {row.name}" for name, row in zip(names, rows, strict=True))
    raise InputError(
        f"Expected metrics that can be put together, shares of which larger is better, but got "
        f"{each}. Name one metric for all."
    )


def _refuse_other_scale(name: str, row: Metric, scores: Sequence[Sequence[float]]) -> None:
    """BLEU, of 100, beside accuracies would be all that a mean sees."""
    largest = max((abs(value) for of_seed in scores for value in of_seed), default=0.0)
    if largest > 1:
        raise InputError(
            f"Expected metrics that can be put together, between −1 and 1, but {name} has "
            f"{row.name} up to {largest:.3g}. Name one metric for all."
        )


def _scores(
    comparison: Mapping[str, Any],
    planned: Sequence[Mapping[str, Any]],
    labels: Sequence[str],
    row: Metric,
) -> list[list[float]]:
    """(seeds, losses), larger is better; the seeds that have a value of every loss."""
    found = {(r["seed"], r["loss"]["label"]): r for r in planned}
    sign = 1.0 if row.better else -1.0
    table = []
    for seed in comparison["seeds"]:
        runs = [found[seed, label] for label in labels if (seed, label) in found]
        measured = [run_value(run, comparison["selection"], row.name, comparison) for run in runs]
        values = [sign * value for value in measured if value is not None]
        if len(values) == len(labels):
            table.append(values)
    return table


def _diverged(planned: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> dict[str, int]:
    """How many runs of each loss diverged, of those that did."""
    broken = [run["loss"]["label"] for run in planned if run["status"] == "diverged"]
    return {label: broken.count(label) for label in labels if label in broken}


def _cube(scores: Sequence[list[list[float]]]) -> list[Any]:
    """(tasks, seeds, losses) where all have as many seeds, else (tasks, losses), their means."""
    if len({len(of_task) for of_task in scores}) == 1:
        return list(scores)
    return [[sum(column) / len(column) for column in zip(*task, strict=True)] for task in scores]
