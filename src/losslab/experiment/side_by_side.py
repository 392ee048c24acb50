"""Runs of a comparison made side by side, in several processes of this machine.

The comparison goes to the processes once, in a file that each reads when it begins; what they tell
comes back while they work. Each writes down the runs that it makes, as one process alone would.
"""

from __future__ import annotations

import pickle
import sys
import tempfile
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import cloudpickle
import torch

from losslab.errors import InputError
from losslab.experiment import findings
from losslab.experiment.events import EpochDone, Event, RunFinished
from losslab.experiment.executors import Processes, tell_parent
from losslab.experiment.maker import Clock, Maker
from losslab.experiment.python_file import MODULES
from losslab.logodds.select import requested, set_backend


@dataclass(frozen=True)
class _Job:
    """Make run ``number`` of all, or only analyse it where it has none."""

    packed: Path
    run: str
    number: int | None
    settings: _Settings


@dataclass(frozen=True)
class _Settings:
    """What was set in this process for all that it computes, and is to hold in the others."""

    threads: int
    backend: str
    dtype: torch.dtype
    matmul_precision: str | None  # None where it was set by PyTorch's newer names
    deterministic: int

    @classmethod
    def here(cls, threads: int) -> _Settings:
        try:
            precision = torch.get_float32_matmul_precision()
        except RuntimeError:
            precision = None
        deterministic = torch.get_deterministic_debug_mode()
        return cls(threads, requested(), torch.get_default_dtype(), precision, deterministic)

    def take(self) -> None:
        torch.set_num_threads(self.threads)
        set_backend(self.backend)
        torch.set_default_dtype(self.dtype)
        if self.matmul_precision is not None:
            torch.set_float32_matmul_precision(self.matmul_precision)
        torch.set_deterministic_debug_mode(self.deterministic)


def make_side_by_side(maker: Maker, done: list[str], todo: list[str], workers: int) -> None:
    """Analyse the runs in ``done``, and make those of ``todo``, ``workers`` at a time."""
    asked = maker.comparison.analyses
    lacking = [run for run in done if findings.missing(maker.folder, run, asked)]
    wanted = len(lacking) + len(todo)
    if not wanted:
        return
    workers = min(workers, wanted)
    settings = _Settings.here(threads=max(1, torch.get_num_threads() // workers))

    def tell(event: Event) -> None:
        """The time left is that of all processes, which each of them cannot know."""
        if isinstance(event, EpochDone):
            event = replace(event, seconds_left=maker.clock.after_epoch(event.number))
        elif isinstance(event, RunFinished):
            event = replace(event, seconds_left=maker.clock.after_run(event.number))
        maker.tell(event)

    with tempfile.TemporaryDirectory(prefix="losslab-") as place:
        packed = Path(place) / "comparison"
        _pack(maker, packed)
        jobs = [_Job(packed, run, None, settings) for run in lacking]
        first = len(done) + 1
        jobs += [_Job(packed, run, n, settings) for n, run in enumerate(todo, start=first)]
        with Processes(workers, told=tell) as processes:
            for _ in processes.run(_work, jobs):
                pass


def _pack(maker: Maker, place: Path) -> None:
    for name in MODULES & sys.modules.keys():
        cloudpickle.register_pickle_by_value(sys.modules[name])  # not importable by name there
    try:
        made = replace(maker.comparison, task_of=None)  # the plan has the tasks
        # Not cloudpickle.dump: that would write every view of a tensor with the whole of it.
        torch.save((made, maker.plan, maker.folder), place, pickle_module=cloudpickle)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(
            f"the comparison cannot be handed to other processes: {reason}. Use one worker, or "
            "make that inside the task's functions."
        ) from error


@cache
def _unpacked(place: Path) -> tuple[Any, ...]:
    # Mapped, the data lie in memory once, however many processes read them.
    return torch.load(place, mmap=True, weights_only=False)


def _work(job: _Job) -> None:
    job.settings.take()
    comparison, plan, folder = _unpacked(job.packed)
    maker = Maker(comparison, plan, folder, tell_parent, Clock(plan.task.epochs, 1))
    if job.number is None:
        maker.analyse([job.run])
    else:
        maker.alone(job.number, job.run)
