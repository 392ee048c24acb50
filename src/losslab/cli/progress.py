"""What a comparison tells while it runs: bars on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

_SECONDS_BETWEEN_LINES = 15


class ComparisonProgress:
    """Bars over runs and epochs on standard error, with the time left; silent when asked."""

    def __init__(self, silent: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self.console = Console(stderr=True)
        self.silent = silent
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            transient=True,
            disable=silent or not self.console.is_terminal,
        )
        self.plain = not silent and not self.console.is_terminal
        self.spoke = time.monotonic()
        self.told: set[str] = set()

    def __enter__(self) -> ComparisonProgress:
        self.bars.start()
        self.runs = self.bars.add_task("runs", total=None, note="")
        self.epochs = self.bars.add_task("epochs", total=None, note="")
        self.at_once, self.left = 1, 0
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def __call__(self, event: Any) -> None:
        from losslab.experiment import (
            Analysed,
            EpochDone,
            RunFinished,
            RunStarted,
            Started,
            TogetherEpochDone,
            TogetherStarted,
        )

        match event:
            case Started():
                self._started(event)
            case RunStarted():
                if self.at_once > 1:  # all runs' epochs in one bar
                    self.bars.update(self.epochs, total=event.epochs * self.left)
                else:
                    name = f"{event.label}, seed {event.seed}"
                    self.bars.update(self.epochs, total=event.epochs, completed=0, note=name)
            case EpochDone():
                self.bars.update(self.epochs, advance=1)
                self.bars.update(self.runs, note=f"{_time(event.seconds_left)} left")
                self._speak(event, f"epoch {event.measured.epoch} of {event.measured.epochs}")
            case TogetherStarted():
                name = f"{event.runs} runs as one"
                self.bars.update(self.epochs, total=event.epochs, completed=0, note=name)
            case TogetherEpochDone():
                self.bars.update(self.epochs, completed=event.epoch)
                self.bars.update(self.runs, note=f"{_time(event.seconds_left)} left")
                self._speak(event, f"epoch {event.epoch} of {event.epochs}")
            case RunFinished():
                self.bars.update(self.runs, advance=1)
                self._finished(event)
            case Analysed():
                name = f"{event.label}, seed {event.seed}: {event.analysis} analysed"
                self.bars.update(self.epochs, note=name)
                if event.reason is not None:
                    self._failed(event)
                elif self.plain and time.monotonic() - self.spoke > _SECONDS_BETWEEN_LINES:
                    self.spoke = time.monotonic()
                    self.console.print(name, markup=False, soft_wrap=True)

    def _started(self, event: Any) -> None:
        self.bars.update(self.runs, total=event.total, completed=event.done)
        self.at_once, self.left = event.workers, event.total - event.done
        if self.silent:
            return
        known = f", {event.done} already finished" if event.done else ""
        pace = f", {self.at_once} at a time" if self.at_once > 1 and self.left else ""
        self.console.print(
            f"{event.total} runs{known}{pace}, in {event.folder}", markup=False, soft_wrap=True
        )
        if event.done < event.total and event.together > 1:
            self.console.print("note: the runs are trained together, as one computation")
        elif event.done < event.total and event.apart:
            self.console.print(
                f"note: the runs are trained one at a time: {event.apart}",
                markup=False,
                soft_wrap=True,
            )
        for label, reason in event.skipped_controls.items():
            self.console.print(f"note: {label}: {reason}", markup=False, soft_wrap=True)

    def _finished(self, event: Any) -> None:
        if event.status != "finished" and not self.silent:
            self.console.print(
                f"warning: {event.label}, seed {event.seed} diverged: {event.reason}",
                markup=False,
                soft_wrap=True,
            )
        else:
            self._speak(event, "done", now=event.number == event.total)

    def _failed(self, event: Any) -> None:
        """Of an analysis that fails on every run, the first tells."""
        if not self.silent and event.reason not in self.told:
            self.told.add(event.reason)
            self.console.print(
                f"warning: {event.label}, seed {event.seed}: {event.reason}",
                markup=False,
                soft_wrap=True,
            )

    def _speak(self, event: Any, what: str, now: bool = False) -> None:
        """A line now and then where there is no terminal to draw bars on."""
        if self.plain and (now or time.monotonic() - self.spoke > _SECONDS_BETWEEN_LINES):
            self.spoke = time.monotonic()
            runs = getattr(event, "runs", 1)
            if runs == 1:
                which, whose = f"run {event.number}", f" ({event.label}, seed {event.seed})"
            else:
                which, whose = f"runs {event.number} to {event.number + runs - 1}", ""
            self.console.print(
                f"{which} of {event.total}{whose}, {what}; {_time(event.seconds_left)} left",
                markup=False,
                soft_wrap=True,
            )


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def stopped(done: int, total: int, folder: str | Path) -> str:
    """What a person is told whose work was interrupted."""
    if done:
        return (
            f"Stopped with {done} of {total} runs finished; they are kept in {folder}. "
            "The same command goes on from there."
        )
    return (
        f"Stopped before any of the {total} runs was finished. The same command starts them again: "
        "from a checkpoint where there is one (a run of its own leaves one every minute), from the "
        "beginning where small models are trained together."
    )
