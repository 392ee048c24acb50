"""Trained models, and what analyses found of them, beside the records of a comparison.

    FOLDER/models/RUN_ID.pt       the weights of the last epoch, and what was recorded on the way
    FOLDER/findings/RUN_ID.json   values, details and flags, by request

A model is written before the run's record, the findings after it: a record in a folder that keeps
models has its model, and an analysis that is asked for later needs no training.
"""

from __future__ import annotations

import io
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from losslab.analysis.analyse import analyse
from losslab.analysis.classifier import Data
from losslab.analysis.from_logits import NOISE
from losslab.analysis.request import Request
from losslab.analysis.subject import Subject, Trace
from losslab.errors import InputError
from losslab.experiment import records
from losslab.experiment.task import Task
from losslab.experiment.watch import TrainingResult

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


def read_weights(path: Path, remedy: str) -> Any:
    """What a file of weights holds; tensors only, so that it cannot run code."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"Expected a file of weights at {path}, but there is none.") from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} cannot be read as weights ({first}); {remedy}") from None


def fill(model: nn.Module, state: Mapping[str, Any], path: Path) -> None:
    """Give ``model`` the weights of a file.

    Raises:
        InputError: If they are those of another model.
    """
    own = model.state_dict()
    lacking, strange = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if lacking or strange:
        raise InputError(
            f"{path} holds the weights of another model: "
            + "; ".join(
                f"{what} {', '.join(names[:3])}{' …' if len(names) > 3 else ''}"
                for what, names in (("it lacks", lacking), ("the model has no", strange))
                if names
            )
            + ". Name the model that it was trained with."
        )
    for name, value in own.items():
        if value.shape != state[name].shape:
            raise InputError(
                f"{path} holds the weights of another model: {name} is "
                f"{tuple(state[name].shape)} there, {tuple(value.shape)} in the model. Name the "
                "model that it was trained with."
            )
    model.load_state_dict(state)


def weights_into(model: nn.Module, path: Path) -> nn.Module:
    """``model`` with the weights of a file: a state dict, or one under ``model``/``state_dict``.

    Raises:
        InputError: If the file cannot be read, or holds another model's weights.
    """
    kept = read_weights(path, "save them by torch.save(model.state_dict(), FILE).")
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(kept, Mapping) and isinstance(kept.get(key), Mapping):
            kept = kept[key]
    if not isinstance(kept, Mapping) or not all(map(torch.is_tensor, kept.values())):
        raise InputError(
            f"Expected {path} to hold weights by name, but it holds a {type(kept).__name__}; save "
            "them by torch.save(model.state_dict(), FILE)."
        )
    fill(model, kept, path)
    return model


def load_findings(folder: Path, run: str) -> dict[str, dict[str, Any]]:
    """What is known of a run, by request; nothing if it was not analysed."""
    path = _findings_path(folder, run)
    if not path.exists():
        return {}
    found: dict[str, dict[str, Any]] = records.read_json(path, _REMEDY).get("findings", {})
    return found


def missing(folder: Path, run: str, requests: Iterable[Request]) -> list[Request]:
    """The requests that were not yet answered for a run."""
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
    return Subject(
        model=model,
        criterion=criterion,
        train=task.train,
        validation=task.validation,
        test=task.test,
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
    task = _task_of(folder, comparison, data_dir)
    finished = {r["run_id"]: r for r in planned if r["status"] == "finished"}
    for beginning in only or ():
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

    data_by_name = data_from(data_dir)

    def maker(run: str, record: Mapping[str, Any]) -> Callable[[], Subject]:
        def make() -> Subject:
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


def _task_of(folder: Path, comparison: Mapping[str, Any], data_dir: str | Path | None) -> Task:
    from losslab.experiment.tasks import TaskOptions, build_task

    source = comparison.get("source")
    if source is None:
        raise InputError(
            f"Expected {folder} to say how its task was made, but it does not: it was made in "
            "Python. Use losslab.experiment.findings.analyse_run there."
        )
    task = build_task(source["task"], TaskOptions(**source["options"], data_dir=data_dir))
    now, then = task.description.get("sha256"), comparison["task"].get("sha256")
    if now != then:
        raise InputError(
            f"Expected the data that {folder} was made from, but {source['task']} has other data "
            "or another model now; restore them, or repeat the comparison in another folder."
        )
    return task


def _criterion(record: Mapping[str, Any], comparison: Mapping[str, Any]) -> nn.Module:
    spec = record["loss"]["spec"]
    if spec.startswith("custom("):
        raise InputError(
            f"Expected a loss that a spec names, but {record['loss']['label']} was made in Python; "
            "analyse its runs there."
        )
    import losslab

    return losslab.loss(spec, **comparison["settings"].get("loss_options", {}))


def data_from(data_dir: str | Path | None) -> Callable[[str], Data]:
    """Other data by name: the test examples of any task, read from ``data_dir`` once."""
    from losslab.experiment.tasks import TaskOptions, build_task

    return cache(lambda name: build_task(name, TaskOptions(data_dir=data_dir)).test)


def refuse_unready(requests: Sequence[Request], data_by_name: Callable[[str], Data]) -> None:
    """Raise `InputError` for what can be told to fail before any model is trained."""
    for asked in requests:
        if asked.name == "ood":
            out = asked.options.get("out", NOISE)
            for name in [out] if isinstance(out, str) else out:
                if name != NOISE:
                    data_by_name(name)


def source_of(task: str, options: TaskOptions) -> dict[str, Any]:
    """How a task was made, for JSON: what was written after ``--task``, and the options set."""
    chosen = {key: value for key, value in asdict(options).items() if value is not None}
    chosen.pop("data_dir", None)  # where the data lie decides nothing
    return {"task": task, "options": chosen}


def analyse_run(
    folder: Path, run: str, subject: Subject, requests: Sequence[Request]
) -> Iterator[str]:
    """Answer ``requests`` for a run; each answer is on disk when its name is given out."""
    found = load_findings(folder, run)
    for request in requests:
        begun = time.perf_counter()
        finding = analyse(subject, request)
        found[str(request)] = {
            "name": request.name,
            "options": dict(request.options),
            "values": finding.values,
            "details": finding.details,
            "flags": list(finding.flags),
            "seconds": round(time.perf_counter() - begun, 3),
        }
        content = {"schema": records.SCHEMA, "run_id": run, "findings": found}
        records.write_json(_findings_path(folder, run), content)
        yield request.name


def _model_path(folder: Path, run: str) -> Path:
    return folder / "models" / f"{run}.pt"


def _findings_path(folder: Path, run: str) -> Path:
    return folder / "findings" / f"{run}.json"
