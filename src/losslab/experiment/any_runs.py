"""The runs of a comparison as a study would have them, and the runs of any folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from losslab.errors import InputError
from losslab.experiment import records
from losslab.experiment.records import SELECTIONS
from losslab.experiment.run_table import run_table
from losslab.experiment.store import Store, by_time
from losslab.metrics import METRICS

if TYPE_CHECKING:
    import pandas

_LONGER = ("run_id", "curves", "margin_histogram", "reliability", "environment")


class ComparisonRuns:
    """The runs of a comparison's folder, as `Store` would give them."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @cached_property
    def _records(self) -> dict[str, dict[str, Any]]:
        return {record["run_id"]: record for record in records.load_all(self.folder)}

    def runs(self) -> list[dict[str, Any]]:
        """The finished runs by time."""
        return sorted(map(flatten_record, self._records.values()), key=by_time)

    def frame(self, columns: Sequence[str] | None = None) -> pandas.DataFrame:
        """The same as a table."""
        return run_table(self.runs(), columns)

    def finished(self) -> set[str]:
        """The run_id of every finished run."""
        return set(self._records)

    def run(self, run_id: str) -> dict[str, Any] | None:
        """One finished run."""
        return flatten_record(self._records[run_id]) if run_id in self._records else None

    def detail(self, run_id: str) -> dict[str, Any] | None:
        """What is longer of one finished run."""
        record = self._records.get(run_id)
        return record and {key: record[key] for key in _LONGER if key in record}


def flatten_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a comparison's run as the flat line that a study would have for it."""
    task, loss, timing = record["task"], record["loss"], record.get("timing") or {}
    rate, scale = (task.get("optimizer") or {}).get("lr"), loss["lr_scale"]
    flat = {
        "run_id": record["run_id"],
        "study": None,
        "dataset": task["name"],
        "model": (task.get("model") or {}).get("name"),
        "loss": loss["label"],
        "spec": loss["spec"],
        "lr": None if rate is None or isinstance(scale, list) else rate * scale,
        "seed": record["seed"],
        "status": record["status"],
        "reason": record.get("reason"),
        "seconds": timing.get("seconds"),
        "finished": timing.get("finished"),
        "epochs": record["settings"]["epochs"],
    }
    for selection in SELECTIONS:
        result = record["results"][selection] or {}
        flat[f"{selection}.epoch"] = result.get("epoch")
        for split in ("validation", "test"):
            scores = result.get(split) or {}
            names = {**METRICS, **scores}  # a task may record more of its own
            flat |= {f"{selection}.{split}.{name}": scores.get(name) for name in names}
    return flat


def open_runs(folder: str | Path) -> Store | ComparisonRuns:
    """The runs of a folder, of a study or of a comparison.

    Raises:
        InputError: If it is neither.
    """
    runs = Path(folder) / "runs"
    study, comparison = any(runs.glob("*.jsonl")), any(runs.glob("*.json"))
    if study and comparison:
        raise InputError(
            f"Expected {runs} to hold the runs of a study (.jsonl) or of a comparison (.json), but "
            "it holds both; move the files of one of them to another folder."
        )
    if not runs.is_dir():
        raise InputError(
            f"Expected {folder} to be the folder of a study or a comparison, but it has no runs in "
            "it; pass the folder that `losslab study` or `losslab compare` wrote."
        )
    return ComparisonRuns(folder) if comparison else Store(folder)


def curves_of(detail: Mapping[str, Any] | None) -> dict[str, list[Any]]:
    """A run's curves by name, one number an epoch: ``epoch``, ``lr``, ``test.accuracy``, …"""
    found: dict[str, list[Any]] = {}
    for name, values in ((detail or {}).get("curves") or {}).items():
        if isinstance(values, Mapping):
            found |= {f"{name}.{inner}": list(of) for inner, of in values.items()}
        else:
            found[name] = list(values)
    return found
