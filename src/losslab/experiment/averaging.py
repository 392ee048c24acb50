"""The mean of a run's weights over its last epochs, as translation models are measured by."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel


class WeightAverage:
    """Sums up a model's weights after each of the last epochs, and gives it their mean in the end.

    Args:
        model: The model in training. Buffers are averaged as well, but for whole numbers.
        epochs: Of the whole run.
        last: How many of them count.
    """

    def __init__(self, model: nn.Module, epochs: int, last: int) -> None:
        self.epochs, self.last = epochs, last
        self.mean = AveragedModel(model, use_buffers=True)

    def after(self, epoch: int, model: nn.Module) -> None:
        """Take in the weights after an epoch; after the last one ``model`` gets the mean."""
        if epoch > self.epochs - self.last:
            self.mean.update_parameters(model)
        if epoch == self.epochs:
            model.load_state_dict(self.mean.module.state_dict())

    def state(self) -> dict[str, Any]:
        return self.mean.state_dict()

    def load_state(self, state: dict[str, Any]) -> None:
        self.mean.load_state_dict(state)
