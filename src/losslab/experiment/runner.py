"""A comparison from start to end: losses × seeds, in an order and a form that survive interruption.

Runs go seed by seed, and within a seed loss by loss, so that wherever a comparison stops, the pairs
it has are complete. A finished run is on disk before the next begins; the same comparison in the
same folder goes on where it stopped, after Ctrl-C as after kill -9.

Where a model is so small that overhead outweighs arithmetic, the runs of some seeds are trained
together, as one computation (`losslab.experiment.batched`), and are on disk before the next begin.
A run by itself leaves a checkpoint in ``FOLDER/checkpoints`` now and then, and goes on from it.

Where analyses are asked for, a run's model is kept and analysed as soon as its record is written;
what a folder's finished runs lack of them is caught up on first.

Of several processes (``torchrun``) all train, and the first alone reads, writes and tells.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from losslab.analysis.analyse import ANALYSES
from losslab.errors import InputError
from losslab.experiment import findings, records
from losslab.experiment.batched import Member, pays, train_together, why_not
from losslab.experiment.checkpoint import Checkpoint
from losslab.experiment.environment import describe_environment
from losslab.experiment.launch import Machine, machine_for
from losslab.experiment.plan import Comparison, Plan, make_plan
from losslab.experiment.readiness import refuse_unready
from losslab.experiment.summary import summarize_folder
from losslab.experiment.train import train
from losslab.experiment.watch import Epoch, TrainingResult


@dataclass(frozen=True)
class Started:
    """The comparison begins: ``done`` of its ``total`` runs were finished earlier.

    ``together``: so many runs at once are trained as one computation, 1 if each by itself; then
    ``apart`` says why where that could have paid.
    """

    folder: Path
    total: int
    done: int
    skipped_controls: Mapping[str, str]
    together: int = 1
    apart: str | None = None


@dataclass(frozen=True)
class RunStarted:
    """Run ``number`` of ``total`` begins."""

    number: int
    total: int
    label: str
    seed: int
    epochs: int


@dataclass(frozen=True)
class EpochDone:
    """An epoch of run ``number`` is over; ``seconds_left`` is for the whole comparison."""

    number: int
    total: int
    label: str
    seed: int
    measured: Epoch
    seconds_left: float


@dataclass(frozen=True)
class TogetherStarted:
    """``runs`` runs, from number ``number`` of ``total`` on, begin as one computation."""

    number: int
    total: int
    runs: int
    epochs: int


@dataclass(frozen=True)
class TogetherEpochDone:
    """All of them have done an epoch."""

    number: int
    total: int
    runs: int
    epoch: int
    epochs: int
    seconds_left: float


@dataclass(frozen=True)
class RunFinished:
    """Run ``number`` is on disk; ``test_accuracy`` is the last epoch's, None if it diverged."""

    number: int
    total: int
    label: str
    seed: int
    status: str
    reason: str | None
    test_accuracy: float | None
    seconds: float
    seconds_left: float


@dataclass(frozen=True)
class Analysed:
    """An analysis of a finished run is on disk, or has failed: ``reason`` says why."""

    total: int
    label: str
    seed: int
    analysis: str
    reason: str | None = None


Event = (
    Started | RunStarted | EpochDone | TogetherStarted | TogetherEpochDone | RunFinished | Analysed
)
MOST_TOGETHER = 64


class Interrupted(Exception):
    """Ctrl-C: ``done`` of ``total`` runs are finished and kept; the same call goes on there."""

    def __init__(self, done: int, total: int) -> None:
        super().__init__(f"interrupted with {done} of {total} runs finished; they are kept")
        self.done, self.total = done, total


def run(comparison: Comparison, on_event: Callable[[Event], None] | None = None) -> dict[str, Any]:
    """Make the runs that the folder lacks, then write and return the summary.

    Raises:
        InputError: If the folder is in use, damaged, or that of a different comparison, or the
            device cannot do what the comparison's `Training` asks for.
        Interrupted: On Ctrl-C; everything finished stays.
    """
    refuse_unready(comparison.analyses, comparison.task, comparison.data_by_name)
    machine = machine_for(comparison.training, comparison.device)
    tell = on_event if on_event is not None and machine.first else _silence
    folder = Path(comparison.out)
    plan = make_plan(comparison)
    with ExitStack() as stack:

        def begin() -> set[str]:
            stack.enter_context(records.working_in(folder))
            return _begin(comparison, plan, folder)

        if not machine.alike(list(plan.runs)):
            raise InputError(
                f"Expected all {machine.ranks} processes to see the same data and losses, but they "
                "plan different runs; let all read the same files."
            )
        done = machine.from_first(begin)
        skipped = plan.configuration["skipped_controls"]
        together, apart = _together(comparison, plan, machine)
        tell(Started(folder, len(plan.runs), len(done), skipped, together, apart))
        if len(done) < len(plan.runs) or comparison.analyses:
            try:
                if machine.first:
                    _analyse(comparison, plan, folder, done, tell)
                _make_runs(comparison, plan, folder, done, together, tell, machine)
            except KeyboardInterrupt:
                finished = [run for run in plan.runs if records.find_record(folder, run)]
                raise Interrupted(len(finished), len(plan.runs)) from None
        return machine.from_first(lambda: _summarized(folder))


def _silence(event: Event) -> None:
    pass


def _begin(comparison: Comparison, plan: Plan, folder: Path) -> set[str]:
    """Write down what is to be done; the runs that are finished.

    A run that is to be analysed and whose model was not kept is made again, with the same numbers.
    """
    _refuse_other_comparison(folder, plan.configuration)
    records.write_json(folder / "comparison.json", plan.configuration)
    done = {run for run in plan.runs if _is_done(comparison, folder, run)}
    if len(done) < len(plan.runs):
        (folder / "summary.json").unlink(missing_ok=True)  # it would not be of these runs
    for run in done:  # a kill came between its record and this
        _forget_checkpoint(folder, run)
    return done


def _is_done(comparison: Comparison, folder: Path, run: str) -> bool:
    record = records.find_record(folder, run)
    if record is None or record["status"] == "diverged":
        return record is not None
    lacking = comparison.keep_models or findings.missing(folder, run, comparison.analyses)
    return not lacking or findings.has_model(folder, run)


def _followed(comparison: Comparison) -> tuple[str, ...]:
    """The splits whose examples are followed over the epochs, for analyses that need that."""
    need = any(ANALYSES[request.name].trace for request in comparison.analyses)
    return ("train", "test") if need else ()


def _analyse(
    comparison: Comparison,
    plan: Plan,
    folder: Path,
    runs: Iterable[str],
    tell: Callable[[Event], None],
) -> None:
    """Answer what is asked of finished runs and not yet known."""
    for run in runs:
        lacking = findings.missing(folder, run, comparison.analyses)
        if lacking and findings.has_model(folder, run):
            arm, seed = plan.runs[run]
            subject = findings.subject_of(
                plan.tasks[seed],
                arm.make(),
                *findings.load_model(folder, run, plan.tasks[seed]),
                seed=seed,
                device=comparison.device,
                data_by_name=comparison.data_by_name,
            )
            for name, reason in findings.analyse_run(folder, run, subject, lacking):
                tell(Analysed(len(plan.runs), arm.label, seed, name, reason))


def _summarized(folder: Path) -> dict[str, Any]:
    summary = summarize_folder(folder)
    records.write_json(folder / "summary.json", summary)
    return summary


def _checkpoint(folder: Path, run: str, every: float) -> Checkpoint:
    return Checkpoint(folder / "checkpoints" / f"{run}.ckpt", every)


def _forget_checkpoint(folder: Path, run: str) -> None:
    """Delete a run's checkpoint, and the folder with the last one."""
    kept = folder / "checkpoints"
    if kept.is_dir():
        _checkpoint(folder, run, math.inf).remove()
        if not any(kept.iterdir()):
            kept.rmdir()


def _make_runs(
    comparison: Comparison,
    plan: Plan,
    folder: Path,
    done: set[str],
    together: int,
    tell: Callable[[Event], None],
    machine: Machine,
) -> None:
    """Make the runs that are not in ``done``, ``together`` at a time."""
    clock = _Clock(plan.task.epochs, len(plan.runs) - len(done))
    shared = {
        "schema": records.SCHEMA,
        "settings": plan.configuration["settings"],
        "environment": describe_environment(comparison.device),
    }
    todo = [run for run in plan.runs if run not in done]
    write = partial(_write, comparison, folder, shared, plan, clock, tell)
    if together > 1:
        first = len(done) + 1
        for runs in _stacks(plan, todo, together):
            _make_together(comparison, plan, runs, first, clock, tell, write)
            first += len(runs)
        return
    for number, run in enumerate(todo, start=len(done) + 1):
        arm, seed = plan.runs[run]
        at = (number, len(plan.runs), arm.label, seed)
        tell(RunStarted(*at, plan.task.epochs))

        def report(measured: Epoch, at: tuple[int, int, str, int] = at) -> None:
            tell(EpochDone(*at, measured, clock.after_epoch()))

        started = _now()
        result = train(
            plan.tasks[seed],
            arm.make(),
            seed,
            lr_scale=arm.scale_at,
            device=comparison.device,
            progress_callback=report,
            training=comparison.training,
            follow=_followed(comparison),
            checkpoint=_checkpoint(folder, run, comparison.training.checkpoint_every),
        )
        if machine.first:
            write(number, run, started, result, 1)


def _write(
    comparison: Comparison,
    folder: Path,
    shared: Mapping[str, Any],
    plan: Plan,
    clock: _Clock,
    tell: Callable[[Event], None],
    number: int,
    run: str,
    started: str,
    result: TrainingResult,
    together: int,
) -> None:
    """Put a finished run on disk, and say so."""
    arm, seed = plan.runs[run]
    task = plan.tasks[seed]
    timing = {"started": started, "finished": _now(), "seconds": result.seconds}
    own = {
        "run_id": run,
        "task": {**task.description, "name": task.name, "num_classes": task.num_classes},
        "loss": arm.described(),
        "seed": seed,
        "timing": {**timing, "together": together},
    }
    if (comparison.keep_models or comparison.analyses) and result.status == "finished":
        findings.keep_model(folder, run, result)
    records.write_record(folder, {**shared, **own, **result.recorded()}, result.examples)
    _forget_checkpoint(folder, run)
    at = (number, len(plan.runs), arm.label, seed)
    left = clock.after_run()
    tell(RunFinished(*at, result.status, result.reason, result.accuracy, result.seconds, left))
    _analyse(comparison, plan, folder, [run], tell)


def _together(comparison: Comparison, plan: Plan, machine: Machine) -> tuple[int, str | None]:
    """How many runs to train as one, and why not more where it could have paid.

    Asked of all planned runs, finished or not: a comparison that goes on makes the runs that it
    would have made at once.
    """
    if not pays(plan.task, len(plan.runs)):
        return 1, None
    if machine.ranks > 1:
        return 1, "several processes share each batch"
    if asked := comparison.training.settings():
        return 1, f"{', '.join(asked)}: only the ordinary loop has that"
    reason = why_not(plan.task, _members(plan, plan.runs), comparison.device)
    if reason is not None:
        return 1, reason
    a_seed = max(1, len(plan.runs) // len(comparison.seeds))
    return a_seed * (1 if plan.resampled else max(1, MOST_TOGETHER // a_seed)), None


def _stacks(plan: Plan, runs: list[str], together: int) -> Iterator[list[str]]:
    """``together`` runs at a time; where every seed has its own split, of one seed each."""
    for _, of_task in groupby(runs, key=lambda run: id(plan.tasks[plan.runs[run][1]])):
        same = list(of_task)
        yield from (same[start : start + together] for start in range(0, len(same), together))


def _members(plan: Plan, runs: Iterable[str]) -> list[Member]:
    pairs = [plan.runs[run] for run in runs]
    return [Member(arm.make(), seed, arm.scale) for arm, seed in pairs]


def _make_together(
    comparison: Comparison,
    plan: Plan,
    runs: list[str],
    first: int,
    clock: _Clock,
    tell: Callable[[Event], None],
    write: Callable[[int, str, str, TrainingResult, int], None],
) -> None:
    total, epochs, count = len(plan.runs), plan.task.epochs, len(runs)
    tell(TogetherStarted(first, total, count, epochs))
    told = 0

    def report(_: int, measured: Epoch) -> None:
        nonlocal told
        if measured.epoch > told:
            told = measured.epoch
            left = clock.after_epoch(count)
            tell(TogetherEpochDone(first, total, count, told, epochs, left))

    started = _now()
    members = _members(plan, runs)
    results = train_together(
        plan.tasks[members[0].seed],
        members,
        device=comparison.device,
        progress_callback=report,
        follow=_followed(comparison),
    )
    for number, (run, result) in enumerate(zip(runs, results, strict=True), start=first):
        write(number, run, started, result, count)


def _refuse_other_comparison(folder: Path, configuration: Mapping[str, Any]) -> None:
    """Runs of two tasks or two settings do not belong into one folder."""
    before = records.load_comparison(folder)
    if before is None or not any((folder / "runs").glob("*.json")):
        return
    new = records.jsonable(configuration)
    for part in ("task", "settings"):
        old = before.get(part) or {}
        resampled = old.get("resampled") and new[part].get("resampled")
        # of splits that vary the shared part may shrink with every seed
        keys = old.keys() & new[part].keys() if resampled else {*old, *new[part]}
        for key in sorted(keys):
            if old.get(key) != new[part].get(key):
                raise InputError(
                    f"The folder {folder} holds a comparison with another {key} ({part}): "
                    f"{_short(old.get(key))} there, {_short(new[part].get(key))} now. Choose "
                    "another folder, or delete this one."
                )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


class _Clock:
    """Guesses the time left from the epochs done since it was made."""

    def __init__(self, epochs: int, runs: int) -> None:
        self.epochs, self.total = epochs, epochs * runs
        self.done = self.runs_done = 0
        self.begun = time.perf_counter()

    def after_epoch(self, runs: int = 1) -> float:
        self.done += runs
        return self._left()

    def after_run(self) -> float:
        self.runs_done += 1
        self.done = self.runs_done * self.epochs  # a diverged run leaves epochs out
        return self._left()

    def _left(self) -> float:
        return (time.perf_counter() - self.begun) / self.done * (self.total - self.done)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
