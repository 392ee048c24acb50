"""From records to verdicts: pairs by seed, oriented differences, and what was left out.

- A **pair** is a loss and the baseline with the same seed. A seed that one of them lacks (the
  comparison was interrupted) is left out for that loss and listed under ``missing``.
- **Orientation**: differences are loss − baseline for accuracies, baseline − loss for NLL, Brier
  score and ECE, so that larger is better.
- **Margin and energy are descriptive.** A loss with a bonus widens margins by its very definition,
  so a larger margin is neither good nor bad: their differences are loss − baseline with interval
  and p-value, but their verdict reads ``descriptive``.
- **Diverged runs are not averaged away.** A diverged run counts, in both accuracies, for what
  always answering the commonest training class scores on the test set, since that is what its user
  is left with. The other metrics do not exist for it: the pair is left out and counted in
  ``left_out``, as is a pair of which both diverged. The seeds are listed under ``diverged``.
- **Controls** (the baseline at a matched learning rate) are compared with the baseline as a family
  of their own, so that they do not weaken the correction over the losses; ``against_control`` holds
  each loss − its control, another family.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from losslab.errors import InputError
from losslab.experiment import records
from losslab.experiment.findings import Known, load_all
from losslab.experiment.findings_summary import summarize_findings
from losslab.experiment.judge import Judge, Yardstick, mean_and_sd
from losslab.metrics import METRICS, Metric

DEFAULT_MARGINS = {row.name: row.margin for row in METRICS.values() if row.better is not None}
"""The largest difference not worth having, by metric: half a point, a hundredth of a nat, …"""

SMALLER_IS_BETTER = frozenset(row.name for row in METRICS.values() if row.better is False)
PERCENT = frozenset(row.name for row in METRICS.values() if row.unit == "share")
_UNITS = {"share": "points", "nats": "nats"}

Records = Mapping[str, Mapping[int, dict[str, Any]]]


def summarize_folder(folder: str | Path) -> dict[str, Any]:
    """The summary of whatever a folder holds so far; writes nothing."""
    comparison, planned = load_planned(folder)
    return with_findings(summarize(comparison, planned), folder, comparison, planned)


def with_findings(
    summary: dict[str, Any],
    folder: str | Path,
    comparison: Mapping[str, Any],
    planned: list[dict[str, Any]],
    known: Mapping[str, Known] | None = None,
) -> dict[str, Any]:
    """The summary, and under ``analyses`` what was found of the runs, if anything was.

    ``known`` is what is known of the runs, by run_id, where it has been read already.
    """
    from losslab.experiment.claims import judge_claims

    known = load_all(Path(folder), planned) if known is None else known
    found = summarize_findings(Path(folder), comparison, planned, known)
    claims = judge_claims(Path(folder), comparison, planned, known)
    more = {"analyses": found, "claims": claims, "recipe": comparison.get("recipe")}
    return {**summary, **{key: value for key, value in more.items() if value}}


def load_planned(folder: str | Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A folder's configuration, and the finished runs that belong to it, in the order of the plan.

    Other runs that the folder may hold (a loss since dropped from the command) are left out. Each
    record carries the label that the configuration gives its loss now.
    """
    folder = Path(folder)
    comparison = records.load_comparison(folder)
    if comparison is None:
        raise InputError(
            f"Expected {folder} to be the folder of a comparison, but it has no comparison.json; "
            "pass one that losslab compare wrote, by default below losslab-runs/."
        )
    arms = {arm["label"]: arm for arm in comparison["losses"]}
    planned = []
    for position in range(len(comparison["seeds"])):
        for label, runs in comparison["runs"].items():
            record = records.find_record(folder, runs[position])
            if record is not None:
                planned.append({**record, "loss": arms[label]})
    return comparison, planned


def summarize(comparison: Mapping[str, Any], planned: list[dict[str, Any]]) -> dict[str, Any]:
    """The summary of a configuration and its records (see the module's text for the rules)."""
    seeds, baseline = comparison["seeds"], comparison["baseline"]
    runs: dict[str, dict[int, dict[str, Any]]] = {arm["label"]: {} for arm in comparison["losses"]}
    for record in planned:
        runs[record["loss"]["label"]][record["seed"]] = record
    controls = {a["control_for"]: a["label"] for a in comparison["losses"] if a["control_for"]}
    losses = [label for label in runs if label not in controls.values() and label != baseline]

    rows = metric_rows(comparison)
    broken = {
        (label, seed)
        for label, of in runs.items()
        for seed in of
        if of[seed]["status"] == "diverged"
    }
    comparisons: dict[str, dict[str, Any]] = {}
    against_control: dict[str, dict[str, Any]] = {}
    table: dict[str, dict[str, Any]] = {}
    for selection in records.SELECTIONS:
        comparisons[selection], against_control[selection] = {}, {}
        table[selection] = {label: {} for label in runs}
        for metric in rows:
            values = {
                label: {seed: run_value(of[seed], selection, metric, comparison) for seed in of}
                for label, of in runs.items()
            }
            judge = Judge(yardstick(comparison, metric), values, broken)
            comparisons[selection][metric] = {
                **judge.compare({label: baseline for label in losses}),
                **judge.compare({label: baseline for label in controls.values()}),
            }
            against_control[selection][metric] = judge.compare(controls)
            for label in runs:
                table[selection][label][metric] = mean_and_sd(values[label])

    diverged = {
        label: [seed for seed in of if of[seed]["status"] == "diverged"]
        for label, of in runs.items()
    }
    missing = {label: [seed for seed in seeds if seed not in of] for label, of in runs.items()}
    return {
        "schema": records.SCHEMA,
        **{key: comparison[key] for key in _COPIED},
        "margins": {
            name: _margin(comparison, row) for name, row in rows.items() if row.better is not None
        },
        "metrics": comparison.get("metrics", []),
        "controls": controls,
        "comparisons": comparisons,
        "against_control": against_control,
        "table": table,
        "diverged": {label: found for label, found in diverged.items() if found},
        "diverged_count_as": {metric: comparison["chance"][metric] for metric in COUNTED},
        "missing": {label: found for label, found in missing.items() if found},
    }


_COPIED = (
    "task",
    "baseline",
    "metric",
    "selection",
    "margin",
    "seeds",
    "resolution",
    "command",
    "skipped_controls",
)
COUNTED = ("accuracy", "balanced_accuracy")


def run_value(
    record: Mapping[str, Any], selection: str, metric: str, comparison: Mapping[str, Any]
) -> float | None:
    """A run's test metric; of a diverged one, what it counts for, or None."""
    if record["status"] == "diverged":
        return comparison["chance"][metric] if metric in COUNTED else None
    value: float | None = record["results"][selection]["test"].get(metric)
    return value


def metric_rows(comparison: Mapping[str, Any]) -> dict[str, Metric]:
    """What a comparison's runs record, by name: the metrics of all, and those of its task."""
    return {**METRICS, **{row["name"]: Metric(**row) for row in comparison.get("metrics", ())}}


def stored(metric: Metric) -> dict[str, Any]:
    """A metric as a comparison's configuration has it."""
    names = ("name", "title", "better", "unit", "margin")
    return {name: getattr(metric, name) for name in names}


def _margin(comparison: Mapping[str, Any], metric: Metric) -> float:
    chosen: float = comparison["margin"]
    return chosen if metric.name == comparison["metric"] else metric.margin


def yardstick(comparison: Mapping[str, Any], metric: str) -> Yardstick:
    """How differences in a metric are judged in a comparison."""
    row = metric_rows(comparison)[metric]
    margin = row.margin if row.better is None else _margin(comparison, row)
    unit = _UNITS.get(row.unit, "")
    return Yardstick(row.better, unit, margin, comparison["resolution"].get(metric, 0.0))
