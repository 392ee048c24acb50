"""A trained model with what it learned from: what every analysis is about."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from losslab.analysis.classifier import Data, predict
from losslab.errors import InputError
from losslab.reading import Reading

Trace = Mapping[str, Mapping[str, Tensor]]
Outputs = tuple[Tensor, Tensor]
SPLITS = ("train", "validation", "test")


@dataclass
class Subject:
    """A trained model, and what an analysis may ask about it.

    Args:
        model: The model. It comes back as it was given.
        criterion: The loss that it was trained with.
        train, validation, test: Its data.
        batch_size: Of its training.
        seed: Decides everything random in an analysis.
        device: Where the model computes.
        trace: Log-odds and correctness of examples after every epoch, by split, if recorded.
        reading: How the model's answers become rows of logits.
        data_by_name: Other data for OOD detection, by what the user calls them.
    """

    model: nn.Module
    criterion: nn.Module
    train: Data
    validation: Data
    test: Data
    batch_size: int = 128
    seed: int = 0
    device: str | torch.device = "cpu"
    trace: Trace | None = None
    data_by_name: Callable[[str], Data] | None = None
    reading: Reading = field(default_factory=Reading)
    _outputs: dict[str, Outputs] = field(default_factory=dict, repr=False)

    def outputs(self, split: str) -> Outputs:
        """Logits and targets of a split; computed once."""
        if split not in SPLITS:
            raise InputError(f"Expected split to be train, validation or test, but got {split!r}.")
        if split not in self._outputs:
            self._outputs[split] = predict(
                self.model, getattr(self, split), device=self.device, reading=self.reading
            )
        return self._outputs[split]
