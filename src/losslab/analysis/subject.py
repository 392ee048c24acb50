"""A trained model with what it learned from: what every analysis is about."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
            with drawn_by(self.seed):
                self._outputs[split] = predict(
                    self.model, getattr(self, split), device=self.device, reading=self.reading
                )
        return self._outputs[split]


@contextmanager
def drawn_by(seed: int) -> Iterator[None]:
    """Let the seed decide what data draw from the global generators as they are read, such as
    random parts of training images; the caller's generators are left as they were."""
    import numpy

    python, numbers = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            numpy.random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(python)
        numpy.random.set_state(numbers)
