"""Trained models, and what analyses found of them, beside the records of a comparison.

    FOLDER/models/RUN_ID.pt       the weights of the last epoch, and what was recorded on the way
    FOLDER/findings/RUN_ID.json   values, details and flags, by request; what failed, and why

A model is written before the run's record, the findings after it: a record in a folder that keeps
models has its model, and an analysis that is asked for later needs no training.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from losslab.analysis.analyse import analyse
from losslab.analysis.classifier import Data
from losslab.analysis.request import Request
from losslab.analysis.subject import Subject, Trace
from losslab.errors import InputError
from losslab.experiment import records
from losslab.experiment.own_loss import places_of, remade
from losslab.experiment.resample import resampled
from losslab.experiment.task import Task
from losslab.experiment.watch import TrainingResult
from losslab.experiment.weights import fill, read_weights

if TYPE_CHECKING:
    from losslab.experiment.tasks import TaskOptions

_REMEDY = "delete this file and repeat the command: only this run is made again."


def keep_model(folder: Path, run: str, result: TrainingResult) -> None:
    """Write down a run's weights and its trace."""
    state = {name: value.detach().cpu() for name, value in result.model.state_dict().items()}
    buffer = io.BytesIO()
    torch.save({"model": state, "trace": result.trace}, buffer)
    records.write_atomically(_model_path(folder, run), buffer.getvalue())


def has_model(folder: Path, run: str) -> bool:
    """Whether a run's model was kept."""
    return _model_path(folder, run).exists()


def load_model(folder: Path, run: str, task: Task) -> tuple[nn.Module, Trace | None]:
    """A run's model as it was after its last epoch, and its trace.

    Raises:
        InputError: If the file is damaged or not of this task's model.
    """
    path = _model_path(folder, run)
    kept = read_weights(path, _REMEDY)
    model = task.model()
    fill(model, kept["model"], path)
    return model, kept["trace"]


@dataclass(frozen=True)
class Known:
    """What is known of a run.

    Args:
        findings: By request, what was found.
        failed: By request, of those that could not be answered: name, options and ``reason``.
    """

    findings: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, dict[str, Any]] = field(default_factory=dict)


def load_known(folder: Path, run: str) -> Known:
    """What is known of a run; nothing if it was not analysed."""
    path = _findings_path(folder, run)
    if not path.exists():
        return Known()
    content = records.read_json(path, _REMEDY)
    return Known(content.get("findings", {}), content.get("failed", {}))


def load_findings(folder: Path, run: str) -> dict[str, dict[str, Any]]:
    """What was found of a run, by request; nothing if it was not analysed."""
    return load_known(folder, run).findings


def load_all(folder: Path, planned: Iterable[Mapping[str, Any]]) -> dict[str, Known]:
    """What is known of each of some runs, by run_id."""
    return {record["run_id"]: load_known(folder, record["run_id"]) for record in planned}


def missing(folder: Path, run: str, requests: Iterable[Request]) -> list[Request]:
    """The requests that were not yet answered for a run; one that failed is asked again."""
    known = load_findings(folder, run)
    return [request for request in requests if str(request) not in known]


def subject_of(
    task: Task,
    criterion: nn.Module,
    model: nn.Module,
    trace: Trace | None,
    *,
    seed: int,
    device: str | torch.device,
    data_by_name: Callable[[str], Data] | None = None,
) -> Subject:
    """A trained model of a task, as an analysis sees it."""

    def data(split: str) -> Data:
        dataset = getattr(task, split)
        if task.collate is None:
            return dataset
        return DataLoader(dataset, task.batch_size, collate_fn=task.collate)

    return Subject(
        model=model,
        criterion=criterion,
        train=data("train"),
        validation=data("validation"),
        test=data("test"),
        reading=task.reading,
        batch_size=task.batch_size,
        seed=seed,
        device=device,
        trace=trace,
        data_by_name=data_by_name,
    )


def subjects_of(
    folder: Path,
    only: Sequence[str] | None,
    *,
    data_dir: str | Path | None,
    device: str | torch.device = "cpu",
) -> dict[str, Callable[[], Subject]]:
    """What makes the subject of each finished run of a folder; ``only`` has beginnings of run_ids.

    Raises:
        InputError: If a model was not kept, the data are others than they were, or no run begins
            so.
    """
    from losslab.experiment.summary import load_planned

    comparison, planned = load_planned(folder)
    task_of = _tasks_of(folder, comparison, data_dir)
    finished = {r["run_id"]: r for r in planned if r["status"] == "finished"}
    for beginning in only or ():
        if not beginning:
            raise InputError(
                "Expected the beginning of a run_id, but got an empty text; leave --run out for "
                "all runs."
            )
        if not any(run.startswith(beginning) for run in finished):
            raise InputError(
                f"Expected the beginning of a run_id of {folder}, but no finished run begins with "
                f"{beginning!r}; losslab runs list {folder} --each lists them."
            )
    chosen = {
        run: record
        for run, record in finished.items()
        if not only or any(run.startswith(beginning) for beginning in only)
    }
    lacking = [run for run in chosen if not has_model(folder, run)]
    if lacking:
        raise InputError(
            f"Expected the models of the runs in {folder}, but {len(lacking)} of {len(chosen)} "
            "were not kept; repeat its command with --keep-models: these runs are made again."
        )

    data_by_name = DataFrom(data_dir)

    def maker(run: str, record: Mapping[str, Any]) -> Callable[[], Subject]:
        def make() -> Subject:
            task = task_of(record)
            return subject_of(
                task,
                _criterion(record, comparison),
                *load_model(folder, run, task),
                seed=record["seed"],
                device=device,
                data_by_name=data_by_name,
            )

        return make

    return {run: maker(run, record) for run, record in chosen.items()}


def _tasks_of(
    folder: Path, comparison: Mapping[str, Any], data_dir: str | Path | None
) -> Callable[[Mapping[str, Any]], Task]:
    """From a run's record to the task that it was made of, if that is the same still."""
    from losslab.experiment.tasks import TaskOptions, build_task

    source = comparison.get("source")
    if source is None:
        raise InputError(
            f"Expected {folder} to say how its task was made, but it does not: it was made in "
            "Python. Use losslab.experiment.findings.analyse_run there."
        )
    options = TaskOptions(**source["options"], data_dir=data_dir)
    build = partial(build_task, source["task"])
    own_split = resampled(build, options) if source.get("resample") else None
    shared = None if own_split is not None else build(options)

    def task_of(record: Mapping[str, Any]) -> Task:
        task = shared if own_split is None else own_split(record["seed"])
        assert task is not None
        if task.description.get("sha256") != record["task"].get("sha256"):
            raise InputError(
                f"Expected the data that {folder} was made from, but {source['task']} has other "
                "data or another model now; restore them, or repeat the comparison in another "
                "folder."
            )
        return task

    return task_of


def _criterion(record: Mapping[str, Any], comparison: Mapping[str, Any]) -> nn.Module:
    spec = record["loss"]["spec"]
    options = comparison["settings"].get("loss_options", {})
    places = places_of(comparison)
    if spec.startswith("custom(") and spec not in places:
        raise InputError(
            f"Expected a loss that a spec names, but {record['loss']['label']} was made in Python; "
            "analyse its runs there."
        )
    return remade(spec, places, **options)


@dataclass(frozen=True)
class DataFrom:
    """Other data by name: the test examples of any task, read from ``data_dir`` once."""

    data_dir: str | Path | None
    _read: dict[str, Data] = field(default_factory=dict)

    def __call__(self, name: str) -> Data:
        from losslab.experiment.tasks import TaskOptions, build_task

        if name not in self._read:
            self._read[name] = build_task(name, TaskOptions(data_dir=self.data_dir)).test
        return self._read[name]


def source_of(
    task: str,
    options: TaskOptions,
    resample: bool = False,
    own_losses: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """How a task was made, for JSON: what was written after ``--task``, and the options set.

    ``own_losses`` has the places of losses from the user's files, by their specs.
    """
    chosen = {key: value for key, value in asdict(options).items() if value is not None}
    chosen.pop("data_dir", None)  # where the data lie decides nothing
    source = {"task": task, "options": chosen, **({"resample": True} if resample else {})}
    return {**source, **({"own_losses": dict(own_losses)} if own_losses else {})}


def analyse_run(
    folder: Path, run: str, subject: Subject, requests: Sequence[Request]
) -> Iterator[tuple[str, str | None]]:
    """Answer ``requests`` for a run: each analysis's name, and why it failed if it did.

    An answer is on disk when its name is given out. A request that cannot be answered leaves the
    others alone.
    """
    known = load_known(folder, run)
    for request in requests:
        begun, asked = time.perf_counter(), str(request)
        entry = {"name": request.name, "options": dict(request.options)}
        reason = None
        try:
            finding = analyse(subject, request)
        except InputError as error:
            reason = str(error)
            known.failed[asked] = {**entry, "reason": reason}
        else:
            known.failed.pop(asked, None)
            known.findings[asked] = {
                **entry,
                "values": finding.values,
                "details": finding.details,
                "flags": list(finding.flags),
                "seconds": round(time.perf_counter() - begun, 3),
            }
        content = {"schema": records.SCHEMA, "run_id": run, "findings": known.findings}
        content |= {"failed": known.failed} if known.failed else {}
        records.write_json(_findings_path(folder, run), content)
        yield request.name, reason


def not_measured(name: str, reason: str) -> str:
    """The warning that stands in the place of an analysis that failed."""
    return f"not measured: {reason.removeprefix(f'{name}: ')}"


def _model_path(folder: Path, run: str) -> Path:
    return folder / "models" / f"{run}.pt"


def _findings_path(folder: Path, run: str) -> Path:
    return folder / "findings" / f"{run}.json"
