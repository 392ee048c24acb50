"""A run folder, read back: everything that a report is drawn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from losslab.experiment.findings import load_all
from losslab.experiment.records import read_json
from losslab.experiment.summary import load_planned, summarize, with_findings
from losslab.report.verdicts import what_changed_most

Json = dict[str, Any]


@dataclass(frozen=True)
class RunFolder:
    """The configuration, finished runs and summary of one comparison."""

    path: Path
    configuration: Json
    records: tuple[Json, ...]
    summary: Json
    findings: Mapping[str, Json] = field(default_factory=dict)  # by run_id, then by request

    @property
    def metric(self) -> str:
        """Name of the metric that the verdicts are about."""
        return str(self.summary["metric"])

    @property
    def selection(self) -> str:
        """Which epoch of each run the verdicts are about."""
        return str(self.summary["selection"])

    @property
    def baseline(self) -> str:
        """Label of the loss that the others are compared with."""
        return str(self.summary["baseline"])

    @property
    def seeds(self) -> list[int]:
        """The seeds asked for."""
        return list(self.summary["seeds"])

    @property
    def comparisons(self) -> dict[str, Json]:
        """The comparisons that the verdicts are about, by label, controls among them."""
        return comparisons_of(self.summary)

    @property
    def arms(self) -> dict[str, Json]:
        """Every loss and control by label, in the order they were asked for."""
        return {arm["label"]: arm for arm in self.configuration["losses"]}

    @property
    def labels(self) -> tuple[str, ...]:
        """Every loss and control, the baseline first."""
        return tuple(dict.fromkeys([self.baseline, *self.arms]))

    @property
    def controls(self) -> dict[str, str]:
        """Each control's label with the label of the loss it controls for."""
        return {
            label: str(arm["control_for"])
            for label, arm in self.arms.items()
            if arm.get("control_for")
        }

    @property
    def losses(self) -> tuple[str, ...]:
        """The labels that are not controls, the baseline first."""
        return tuple(label for label in self.labels if label not in self.controls)

    @property
    def ordered(self) -> list[str]:
        """The compared losses in the order of their verdicts, what changed most first."""
        compared = self.comparisons
        return what_changed_most({k: compared[k] for k in self.losses if k in compared})

    def of(self, label: str, status: str | None = "finished") -> list[Json]:
        """The runs of one loss, by seed; only the finished ones unless asked otherwise."""
        return [
            record
            for record in self.records
            if record["loss"]["label"] == label and status in (None, record["status"])
        ]


def comparisons_of(summary: Mapping[str, Any]) -> dict[str, Json]:
    """The comparisons that a summary's verdicts are about, by label."""
    return dict(summary["comparisons"][summary["selection"]][summary["metric"]])


def read_folder(path: Path, summary: Json | None = None) -> RunFolder:
    """Reads a run folder; an interrupted one is summed up from the runs it has.

    ``summary`` is that of `summarize_folder` where the folder was summed up a moment ago.

    Raises:
        InputError: If there is no comparison in the folder, or a file of it is damaged.
    """
    configuration, records = load_planned(path)
    known = load_all(Path(path), records)
    if summary is None:
        summary = _stored(Path(path) / "summary.json", configuration, records)
        summary = with_findings(summary, path, configuration, records, known)
    found = {run: one.findings for run, one in known.items()}
    return RunFolder(Path(path), configuration, tuple(records), summary, found)


def _stored(path: Path, configuration: Json, records: list[Json]) -> Json:
    """The summary as it was written if it is of these runs, or a new one."""
    if path.exists():
        remedy = "delete this file: it is made again from the finished runs."
        summary = read_json(path, remedy)
        if _is_of(summary, configuration, records):
            return summary
    return summarize(configuration, records)


def _is_of(summary: Json, configuration: Json, records: list[Json]) -> bool:
    ran = {(r["loss"]["label"], r["seed"]): r["status"] for r in records}
    labels, seeds = [arm["label"] for arm in configuration["losses"]], configuration["seeds"]
    missing = {label: [s for s in seeds if (label, s) not in ran] for label in labels}
    diverged = {label: [s for s in seeds if ran.get((label, s)) == "diverged"] for label in labels}
    same = ("baseline", "metric", "selection", "margin", "seeds")
    return (
        all(summary.get(key) == configuration[key] for key in same)
        and set(summary.get("table", {}).get("last", {})) == set(labels)
        and summary.get("missing") == {k: v for k, v in missing.items() if v}
        and summary.get("diverged") == {k: v for k, v in diverged.items() if v}
    )
