"""How networks for text are trained: Adam with a rate that rises before it falls, or AdamW.

Adam divides the size of a loss's gradients out again, so a control at a matched learning rate says
less here than under SGD.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from losslab.experiment.tasks.recipe import Recipe


@dataclass(frozen=True)
class AdamRecipe(Recipe):
    """A `Recipe` by Adam, whose weight decay is added to the gradient as fairseq's ``adam`` does.

    Args:
        warm_up_steps: Steps in which the rate rises from 0 to ``lr``, before it falls as the
            inverse square root of the step. None, or ``milestones``, leaves the schedule to
            `Recipe`.
        betas: Of Adam.
        average: How many of the last epochs' weights are averaged; all where there are fewer.
    """

    warm_up_steps: int | None = None
    betas: tuple[float, float] = (0.9, 0.98)
    average: int = 1

    def task_fields(self) -> dict[str, Any]:
        """The fields of a `Task` that a recipe decides."""
        fields = super().task_fields()
        fields["optimizer"] = partial(
            adam, lr=self.lr, weight_decay=self.weight_decay, betas=self.betas
        )
        if self.warm_up_steps is not None and self.milestones is None:
            fields["lr_scheduler"] = partial(inverse_square_root, warm_up_steps=self.warm_up_steps)
        return {**fields, "average": min(self.average, self.epochs)}


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


def adam(
    parameters: Iterable[nn.Parameter],
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
) -> Optimizer:
    """Adam with PyTorch's other settings."""
    made = list(parameters)
    return Adam(made, lr=lr, weight_decay=weight_decay, betas=betas, fused=_in_one_pass(made))


def adamw(parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> Optimizer:
    """AdamW with PyTorch's other settings."""
    made = list(parameters)
    return AdamW(made, lr=lr, weight_decay=weight_decay, fused=_in_one_pass(made))


def _in_one_pass(parameters: list[nn.Parameter]) -> bool | None:
    """On a CPU the fused step takes a seventh of the time (22.7 million weights, one thread)."""
    return True if all(p.device.type == "cpu" for p in parameters) else None


def inverse_square_root(optimizer: Optimizer, total_steps: int, warm_up_steps: int) -> LambdaLR:
    """The optimiser's own rate, times a straight rise and then √(warm_up_steps/step)
    (Vaswani et al. 2017)."""
    return LambdaLR(optimizer, partial(_rise_and_fall, warm_up_steps=warm_up_steps))


def _rise_and_fall(step: int, warm_up_steps: int) -> float:
    return float(min((step + 1) / warm_up_steps, (warm_up_steps / (step + 1)) ** 0.5))


def straight_down(optimizer: Optimizer, total_steps: int) -> LambdaLR:
    """The optimiser's own rate, times a straight line from 1 to 0 over the training."""
    return LambdaLR(optimizer, partial(_left, total_steps=total_steps))


def _left(step: int, total_steps: int) -> float:
    return max(0.0, 1 - step / total_steps)
