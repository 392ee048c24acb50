"""How a built-in task trains its model: optimiser, learning rate over time, epochs, batch size.

All use SGD: it lets a loss's gradient have the size it has. Adam divides that size out again, and
with it what a control at a matched learning rate is there to show.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from losslab.experiment.tasks.options import TaskOptions

WARM_UP = 0.1  # share of the steps in which the learning rate rises from 0


@dataclass(frozen=True)
class Recipe:
    """Training settings of one model on one task: a paper's, or chosen for plain cross_entropy.

    Args:
        epochs: Passes over the training split.
        batch_size: Examples a step.
        lr: Learning rate at the start of the schedule.
        weight_decay: As SGD takes it.
        nesterov: Nesterov's form of the momentum 0.9, or the plain one.
        milestones: Shares of the training at which the learning rate falls to a tenth, so that
            other ``epochs`` keep the schedule's shape; none of them makes the rate constant, and
            None is a warm-up and a half cosine.
        warm_up: Share of the training in which the rate rises from 0, before ``milestones``.
    """

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float = 0.0
    nesterov: bool = True
    milestones: tuple[float, ...] | None = None
    warm_up: float = 0.0

    def changed_by(self, options: TaskOptions) -> Recipe:
        """This recipe with the user's epochs, batch size, learning rate, milestones where given."""
        given = {key: getattr(options, key) for key in ("epochs", "batch_size", "lr", "milestones")}
        return replace(self, **{key: value for key, value in given.items() if value is not None})

    def task_fields(self) -> dict[str, Any]:
        """The fields of a `Task` that a recipe decides."""
        return {
            "optimizer": partial(
                sgd, lr=self.lr, weight_decay=self.weight_decay, nesterov=self.nesterov
            ),
            "lr_scheduler": self._scheduler(),
            "epochs": self.epochs,
            "batch_size": self.batch_size,
        }

    def _scheduler(self) -> Callable[[Optimizer, int], LambdaLR]:
        if self.milestones is None:
            return warm_up_then_cosine
        if not self.warm_up:
            return partial(step_down, milestones=self.milestones)
        return partial(step_down, milestones=self.milestones, warm_up=self.warm_up)


def sgd(
    parameters: Iterable[nn.Parameter], lr: float, weight_decay: float, nesterov: bool = True
) -> Optimizer:
    """SGD with momentum 0.9."""
    return SGD(parameters, lr=lr, momentum=0.9, nesterov=nesterov, weight_decay=weight_decay)


def warm_up_then_cosine(optimizer: Optimizer, total_steps: int) -> LambdaLR:
    """The optimiser's own rate, times a linear rise over the first tenth, times a half cosine."""
    return LambdaLR(optimizer, partial(_factor, total_steps=total_steps))


def _factor(step: int, total_steps: int) -> float:
    rise = min(1.0, (step + 1) / max(1.0, WARM_UP * total_steps))
    return rise * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total_steps)))


def step_down(
    optimizer: Optimizer, total_steps: int, milestones: Sequence[float], warm_up: float = 0.0
) -> LambdaLR:
    """The optimiser's own rate, a tenth of it from the first milestone on, then a hundredth, ….

    Args:
        optimizer: Its rate is scaled.
        total_steps: Steps of the whole training.
        milestones: Ascending shares of the training in (0, 1).
        warm_up: Share of the training in which the rate first rises from 0 in a straight line.
    """
    steps = [round(share * total_steps) for share in milestones]
    return LambdaLR(optimizer, partial(_stepped, milestones=steps, rise=warm_up * total_steps))


def _stepped(step: int, milestones: list[int], rise: float) -> float:
    return min(1.0, (step + 1) / max(1.0, rise)) * 0.1 ** bisect_right(milestones, step)
