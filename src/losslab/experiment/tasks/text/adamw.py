"""Training settings of models that AdamW trains, at a rate that falls in a straight line."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from losslab.experiment.tasks.recipe import Recipe


@dataclass(frozen=True)
class AdamWRecipe(Recipe):
    """A `Recipe` by AdamW, which without weight decay is Adam.

    Without ``milestones`` the rate falls in a straight line from ``lr`` to 0.
    """

    def task_fields(self) -> dict[str, Any]:
        """The fields of a `Task` that a recipe decides."""
        fields = super().task_fields()
        fields["optimizer"] = partial(adamw, lr=self.lr, weight_decay=self.weight_decay)
        if self.milestones is None:
            fields["lr_scheduler"] = straight_down
        return fields


def adamw(parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> Optimizer:
    """AdamW with PyTorch's other settings."""
    return AdamW(parameters, lr=lr, weight_decay=weight_decay)


def straight_down(optimizer: Optimizer, total_steps: int) -> LambdaLR:
    """The optimiser's own rate, times a straight line from 1 to 0 over the training."""
    return LambdaLR(optimizer, partial(_left, total_steps=total_steps))


def _left(step: int, total_steps: int) -> float:
    return max(0.0, 1 - step / total_steps)
