"""A comparison from start to end: losses × seeds, in an order and a form that survive interruption.

Runs go seed by seed, and within a seed loss by loss, so that wherever a comparison stops, the pairs
it has are complete. A finished run is on disk before the next begins; the same comparison in the
same folder goes on where it stopped, after Ctrl-C as after kill -9.

Where a model is so small that overhead outweighs arithmetic, the runs of some seeds are trained
together, as one computation (`losslab.experiment.batched`), and are on disk before the next begin.
A run by itself leaves a checkpoint in ``FOLDER/checkpoints`` now and then, and goes on from it.
Such runs can be made side by side, in several processes (`losslab.experiment.side_by_side`).

Where analyses are asked for, a run's model is kept and analysed as soon as its record is written;
what a folder's finished runs lack of them is caught up on first.

Of several processes that share every batch (``torchrun``) all train, and the first alone reads,
writes and tells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from itertools import groupby
from pathlib import Path
from typing import Any

from losslab.errors import InputError
from losslab.experiment import findings, records
from losslab.experiment.batched import pays, why_not
from losslab.experiment.events import Event, Started
from losslab.experiment.launch import Machine, machine_for
from losslab.experiment.maker import Clock, Maker, forget_checkpoint, members_of
from losslab.experiment.plan import Comparison, Plan, make_plan
from losslab.experiment.readiness import refuse_unready
from losslab.experiment.side_by_side import make_side_by_side
from losslab.experiment.summary import summarize_folder

MOST_TOGETHER = 64


class Interrupted(Exception):
    """Ctrl-C: ``done`` of ``total`` runs are finished and kept; the same call goes on there."""

    def __init__(self, done: int, total: int) -> None:
        super().__init__(f"interrupted with {done} of {total} runs finished; they are kept")
        self.done, self.total = done, total


def run(
    comparison: Comparison,
    on_event: Callable[[Event], None] | None = None,
    *,
    workers: int = 1,
) -> dict[str, Any]:
    """Make the runs that the folder lacks, then write and return the summary.

    Args:
        on_event: Called with what happens, see `losslab.experiment.events`.
        workers: Processes that make runs side by side, with the processor's cores shared out among
            them, where runs are not trained together. A script that asks for several must start
            under ``if __name__ == "__main__":``, since each process imports it.

    Raises:
        InputError: If the folder is in use, damaged, or that of a different comparison, or the
            device cannot do what the comparison's `Training` asks for, or the comparison cannot be
            handed to other processes.
        Interrupted: On Ctrl-C; everything finished stays.
    """
    if type(workers) is not int or workers < 1:
        raise InputError(
            f"Expected workers to be a whole number of at least 1, but got {workers!r}."
        )
    refuse_unready(comparison.analyses, comparison.task, comparison.data_by_name)
    machine = machine_for(comparison.training, comparison.device)
    if workers > 1 and machine.ranks > 1:
        raise InputError(
            f"Expected one worker where {machine.ranks} processes share each batch, but got "
            f"{workers}; leave out either torchrun or the workers."
        )
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
        workers = workers if together == 1 else 1
        tell(Started(folder, len(plan.runs), len(done), skipped, together, apart, workers))
        clock = Clock(plan.task.epochs, len(plan.runs) - len(done))
        maker = Maker(comparison, plan, folder, tell, clock, machine.first)
        if len(done) < len(plan.runs) or comparison.analyses:
            try:
                _make_runs(maker, done, together, workers)
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
        forget_checkpoint(folder, run)
    return done


def _is_done(comparison: Comparison, folder: Path, run: str) -> bool:
    record = records.find_record(folder, run)
    if record is None or record["status"] == "diverged":
        return record is not None
    lacking = comparison.keep_models or findings.missing(folder, run, comparison.analyses)
    return not lacking or findings.has_model(folder, run)


def _summarized(folder: Path) -> dict[str, Any]:
    summary = summarize_folder(folder)
    records.write_json(folder / "summary.json", summary)
    with suppress(OSError):  # it is not there, or not empty
        (folder / "checkpoints").rmdir()
    return summary


def _make_runs(maker: Maker, done: set[str], together: int, workers: int) -> None:
    """Analyse what is in ``done``, then make the runs that are not, ``together`` at a time."""
    runs = maker.plan.runs
    todo = [run for run in runs if run not in done]
    first = len(done) + 1
    if workers > 1:
        make_side_by_side(maker, [run for run in runs if run in done], todo, workers)
        return
    if maker.first:
        maker.analyse(done)
    if together == 1:
        for number, run in enumerate(todo, start=first):
            maker.alone(number, run)
        return
    for as_one in _stacks(maker.plan, todo, together):
        maker.together(first, as_one)
        first += len(as_one)


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
    reason = why_not(plan.task, members_of(plan, plan.runs), comparison.device)
    if reason is not None:
        return 1, reason
    a_seed = max(1, len(plan.runs) // len(comparison.seeds))
    return a_seed * (1 if plan.resampled else max(1, MOST_TOGETHER // a_seed)), None


def _stacks(plan: Plan, runs: list[str], together: int) -> Iterator[list[str]]:
    """``together`` runs at a time; where every seed has its own split, of one seed each."""
    for _, of_task in groupby(runs, key=lambda run: id(plan.tasks[plan.runs[run][1]])):
        same = list(of_task)
        yield from (same[start : start + together] for start in range(0, len(same), together))


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
