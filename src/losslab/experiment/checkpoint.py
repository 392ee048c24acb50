"""A run in the middle: everything that changes as it goes, put on disk and taken up again.

A checkpoint is written whole or not at all, and read by ``torch.load`` with ``weights_only=True``,
so it cannot run code. On a CPU, with the same number of threads, a run that goes on from one ends
with the bits that it would have ended with.
"""

from __future__ import annotations

import io
import pickle
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from losslab.errors import InputError
from losslab.experiment.averaging import WeightAverage
from losslab.experiment.batches import Batches, load_random_states, random_states
from losslab.experiment.launch import Machine
from losslab.experiment.records import write_atomically
from losslab.experiment.watch import Watch

SCHEMA = 1
_UNREADABLE = (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError)
_MISFIT = (RuntimeError, ValueError, KeyError, TypeError, AttributeError)


@dataclass
class Position:
    """Where a run stands: in which epoch, after how many steps of the whole run.

    ``lr`` is the rate of the epoch's first step, ``loss_sum`` the sum over its examples so far, and
    ``seconds`` is how long the run has taken.
    """

    epoch: int = 1
    step: int = 0
    lr: float = 0.0
    loss_sum: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Progress:
    """All that changes in a run. A model's or a loss's own part is what its state_dict holds."""

    position: Position
    model: nn.Module
    criterion: nn.Module
    optimizers: Sequence[Optimizer]
    schedulers: Sequence[LRScheduler]
    batches: Batches
    watch: Watch
    machine: Machine
    average: WeightAverage | None = None

    def state(self) -> dict[str, Any]:
        return {
            "position": asdict(self.position),
            "model": self.model.state_dict(),
            "criterion": self.criterion.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
            "batches": self.batches.state(),
            "watch": {name: getattr(self.watch, name) for name in self.watch.state},
            "machine": self.machine.state(),
            "average": None if self.average is None else self.average.state(),
            "random": random_states(self.machine.device),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.criterion.load_state_dict(state["criterion"])
        for name in ("optimizers", "schedulers"):
            for mine, saved in zip(getattr(self, name), state[name], strict=True):
                mine.load_state_dict(saved)
        self.batches.load_state(state["batches"])
        for name, value in state["watch"].items():
            setattr(self.watch, name, value)
        self.machine.load_state(state["machine"])
        if self.average is not None:
            self.average.load_state(state["average"])
        for name, value in state["position"].items():
            setattr(self.position, name, value)
        load_random_states(self.machine.device, state["random"])


class Checkpoint:
    """The place of one run's checkpoint, and when it is time for the next.

    Args:
        path: The file. `train` goes on from it if it is there, and leaves it there in the end:
            `remove` it when the result is safe.
        every: Seconds between two of them.
    """

    def __init__(self, path: str | Path, every: float = 60.0) -> None:
        self.path, self.every = Path(path), every
        self._last = time.monotonic()
        self._tried = False

    def due(self) -> bool:
        """Whether ``every`` seconds have passed since the last one."""
        return time.monotonic() - self._last >= self.every

    def save(self, run: Mapping[str, Any], progress: Progress) -> None:
        """Write ``progress`` of the run that ``run`` describes."""
        buffer = io.BytesIO()
        try:
            torch.save({"schema": SCHEMA, "run": dict(run), **progress.state()}, buffer)
            if not self._tried:  # schedulers and optimisers of the user's may hold anything
                buffer.seek(0)
                torch.load(buffer, map_location="cpu", weights_only=True)
        except (pickle.PicklingError, pickle.UnpicklingError, AttributeError, TypeError) as error:
            self.every = float("inf")
            warnings.warn(
                "no checkpoints of this run, which would begin anew after an interruption: its "
                f"state holds more than tensors, numbers and text ({_first_line(error)})",
                stacklevel=2,
            )
            return
        self._tried = True
        write_atomically(self.path, buffer.getbuffer())  # type: ignore[arg-type]
        self._last = time.monotonic()

    def load(self, run: Mapping[str, Any]) -> dict[str, Any] | None:
        """The state on disk, None if there is none.

        Raises:
            InputError: If the file is damaged, or of a run that ``run`` does not describe.
        """
        self._last = time.monotonic()
        if not self.path.exists():
            return None
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            schema, found = state["schema"], state["run"]
        except _UNREADABLE as error:
            raise InputError(
                f"Expected {self.path} to be the checkpoint of a run, but it cannot be read "
                f"({_first_line(error)}); {_REMEDY}"
            ) from None
        if schema != SCHEMA:
            raise InputError(
                f"Expected {self.path} to be a checkpoint of schema {SCHEMA}, but it has "
                f"{schema!r}; {_REMEDY}"
            )
        for key in sorted({*run, *found}):
            if run.get(key) != found.get(key):
                raise InputError(
                    f"Expected {self.path} to be a checkpoint of this run, but its {key} is "
                    f"{found.get(key)!r}, not {run.get(key)!r}; name another file, or {_REMEDY}"
                )
        return dict(state)

    def resume(self, run: Mapping[str, Any], progress: Progress) -> None:
        """Bring ``progress`` to where the checkpoint is, if there is one."""
        state = progress.machine.from_first(lambda: self.load(run))
        if state is None:
            return
        try:
            progress.load(state)
        except _MISFIT as error:
            raise InputError(
                f"Expected {self.path} to fit the task's model and optimiser, but it does not "
                f"({_first_line(error)}); {_REMEDY}"
            ) from None

    def remove(self) -> None:
        """Delete it, and what a kill may have left of the next."""
        self.path.unlink(missing_ok=True)
        self.path.with_name(self.path.name + ".tmp").unlink(missing_ok=True)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


_REMEDY = "delete it and repeat the command: this run begins anew."
