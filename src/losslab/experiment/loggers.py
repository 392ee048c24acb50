"""Finished runs for those who live in TensorBoard or MLflow; neither is needed for anything else.

Both take the flat runs of a `Store` (or of a comparison's folder), and a function that gives a
run's details, for its curves. Runs that are there already are left alone, so a study that grew, or
an export that was killed, is exported by the same call again.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from losslab.errors import InputError
from losslab.experiment.any_runs import curves_of

Run = Mapping[str, Any]
Details = Callable[[str], Mapping[str, Any] | None]

_CHOICES = ("study", "dataset", "model", "loss", "spec", "lr", "seed", "epochs")
_RUN_TAG = "losslab.run_id"
_METRICS_AT_ONCE = 1000  # MLflow's own limit


def to_tensorboard(runs: Iterable[Run], details: Details, folder: str | Path) -> int:
    """Write runs as TensorBoard event files below ``folder``; how many were new.

    Each has its curves as scalars, and its choices and results in the HPARAMS tab. A run's own
    folder appears under its name when it is whole.

    Raises:
        InputError: If TensorBoard is not installed, or ``folder`` cannot be written to.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams
    except ImportError as error:
        raise _missing("TensorBoard", "tensorboard", error) from None

    new = 0
    for run in runs:
        place = Path(folder) / _folder_name(run)
        part = Path(folder) / f".part-{run['run_id']}"
        if place.exists():
            continue
        try:
            shutil.rmtree(part, ignore_errors=True)
            with SummaryWriter(str(part)) as writer:
                for summary in hparams(_choices(run), _results(run)):
                    writer._get_file_writer().add_summary(summary)
                for name, value in _results(run).items():
                    writer.add_scalar(name, value, run.get("epochs"))
                for name, value, epoch in _points(details(run["run_id"])):
                    writer.add_scalar(name.replace(".", "/"), value, epoch)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(part, place)
        except OSError as error:
            raise InputError(
                f"Expected to write TensorBoard's files in {folder}, but "
                f"{error.strerror or error}; choose another folder."
            ) from error
        new += 1
    return new


def to_mlflow(runs: Iterable[Run], details: Details, uri: str) -> int:
    """Log runs to the MLflow tracking server, or database, at ``uri``; how many were new.

    An experiment a study (of a comparison: a data set), with the run's choices as parameters, its
    results and curves as metrics, and its run_id as the tag ``losslab.run_id``.

    Raises:
        InputError: If MLflow is not installed, or there is none at ``uri``.
    """
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ImportError as error:
        raise _missing("MLflow", "mlflow", error) from None

    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # two lines a run
    new = 0
    there: dict[str, tuple[str, set[str]]] = {}  # experiment -> its number, its runs
    try:
        client = MlflowClient(tracking_uri=uri)
        for run in runs:
            name = run["study"] or run["dataset"]
            if name not in there:
                there[name] = _experiment(client, name)
            experiment, known = there[name]
            if run["run_id"] not in known:
                _log(client, experiment, run, details(run["run_id"]))
                known.add(run["run_id"])
                new += 1
    except MlflowException as error:
        raise InputError(
            f"Expected an MLflow tracking server or database at {uri!r}, but it says: {error}"
        ) from error
    return new


def _experiment(client: Any, name: str) -> tuple[str, set[str]]:
    """An experiment's number and the run_ids it has; what a kill left half-logged is deleted."""
    found = client.get_experiment_by_name(name)
    if found is None:
        return client.create_experiment(name), set()
    known, half, token = set(), [], None
    while True:
        page = client.search_runs([found.experiment_id], max_results=1000, page_token=token)
        for logged in page:
            if _RUN_TAG in logged.data.tags:
                if logged.info.status == "RUNNING":
                    half.append(logged.info.run_id)
                else:
                    known.add(logged.data.tags[_RUN_TAG])
        token = page.token
        if not token:
            for run in half:  # only now: pages are counted from the first run
                client.delete_run(run)
            return found.experiment_id, known


def _log(client: Any, experiment: str, run: Run, detail: Mapping[str, Any] | None) -> None:
    from mlflow.entities import Metric, Param

    end = _milliseconds(run.get("finished"))
    begin = None if end is None else end - round(1000 * (run.get("seconds") or 0))
    made = client.create_run(
        experiment, start_time=begin, tags={_RUN_TAG: run["run_id"]}, run_name=_run_name(run)
    ).info.run_id
    stamp = end or 0
    metrics = [Metric(name, value, stamp, 0) for name, value in _results(run).items()]
    metrics += [Metric(name, value, stamp, epoch) for name, value, epoch in _points(detail)]
    params = [Param(name, str(value)) for name, value in _choices(run).items()]
    for first in range(0, max(1, len(metrics)), _METRICS_AT_ONCE):
        client.log_batch(made, metrics[first : first + _METRICS_AT_ONCE], params)
        params = []
    client.set_terminated(made, "FINISHED" if run["status"] == "finished" else "FAILED", end)


def _choices(run: Run) -> dict[str, Any]:
    """What was chosen for a run, as far as it is known."""
    return {name: run[name] for name in _CHOICES if run.get(name) is not None}


def _results(run: Run) -> dict[str, float]:
    """A run's ``SELECTION.SPLIT.METRIC``, and the epochs they are of."""
    return {
        name: float(value)
        for name, value in run.items()
        if "." in name and isinstance(value, int | float)
    }


def _points(detail: Mapping[str, Any] | None) -> Iterator[tuple[str, float, int]]:
    """(curve, value, epoch) for all that a run's curves have numbers for."""
    curves = curves_of(detail)
    epochs = curves.pop("epoch", None)
    for name, values in curves.items():
        for epoch, value in zip(epochs or range(1, len(values) + 1), values, strict=False):
            if value is not None:
                yield f"curve.{name}", float(value), int(epoch)


def _folder_name(run: Run) -> Path:
    parts = (run["dataset"], run["model"], _run_name(run))
    return Path(*(re.sub(r"[^\w.=()+-]+", "_", str(part)).strip(".")[:80] for part in parts))


def _run_name(run: Run) -> str:
    return f"{run['loss']} lr={run['lr']} seed={run['seed']} {run['run_id']}"


def _milliseconds(moment: str | None) -> int | None:
    return None if moment is None else round(1000 * datetime.fromisoformat(moment).timestamp())


def _missing(what: str, package: str, error: ImportError) -> InputError:
    return InputError(
        f"Expected {what} to be installed, but its import failed ({error}). Install it: "
        f"pip install {package}"
    )
