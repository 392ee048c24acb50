"""How a built-in task trains its model: optimiser, learning rate over time, epochs, batch size.

All use SGD: it lets a loss's gradient have the size it has. Adam divides that size out again, and
with it what a control at a matched learning rate is there to show.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
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
    """Training settings of one model on one task, chosen for plain cross_entropy on validation."""

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float = 0.0

    def changed_by(self, options: TaskOptions) -> Recipe:
        """This recipe with the user's epochs, batch size and learning rate where given."""
        given = {key: getattr(options, key) for key in ("epochs", "batch_size", "lr")}
        return replace(self, **{key: value for key, value in given.items() if value is not None})

    def task_fields(self) -> dict[str, Any]:
        """The fields of a `Task` that a recipe decides."""
        return {
            "optimizer": partial(sgd, lr=self.lr, weight_decay=self.weight_decay),
            "lr_scheduler": warm_up_then_cosine,
            "epochs": self.epochs,
            "batch_size": self.batch_size,
        }


def sgd(parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> Optimizer:
    """SGD with Nesterov momentum 0.9."""
    return SGD(parameters, lr=lr, momentum=0.9, nesterov=True, weight_decay=weight_decay)


def warm_up_then_cosine(optimizer: Optimizer, total_steps: int) -> LambdaLR:
    """The optimiser's own rate, times a linear rise over the first tenth, times a half cosine."""
    return LambdaLR(optimizer, partial(_factor, total_steps=total_steps))


def _factor(step: int, total_steps: int) -> float:
    rise = min(1.0, (step + 1) / max(1.0, WARM_UP * total_steps))
    return rise * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total_steps)))
