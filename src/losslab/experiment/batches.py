"""What a run draws: its batches in order, and everything else that is random."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from losslab import metrics
from losslab.errors import InputError
from losslab.experiment.loading import loaded
from losslab.experiment.task import Task, tensors_of
from losslab.inputs import moved

Reseed = Callable[..., None]


def derive_seed(seed: int, purpose: str) -> int:
    """A seed for one purpose, unrelated to those for others: 62 bits of a hash of both.

    Example:
        >>> derive_seed(0, "model") != derive_seed(0, "order") != derive_seed(1, "order")
        True
    """
    digest = hashlib.sha256(f"losslab {purpose} {seed}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 2


@contextmanager
def own_randomness(device: torch.device) -> Iterator[Reseed]:
    """Yield ``reseed(seed, everything=False)``; give the caller's generators back at the end."""
    accelerators: list[int] = []
    seed_accelerator: Callable[[int], Any] | None = None
    if device.type == "cuda":
        torch.cuda.init()  # its generators do not exist before
        index = torch.cuda.current_device() if device.index is None else device.index
        accelerators = [index]
        seed_accelerator = torch.cuda.default_generators[index].manual_seed
    elif device.type != "cpu":
        accelerators = [device.index or 0]
        seed_accelerator = getattr(torch, device.type).manual_seed

    def reseed(seed: int, everything: bool = False) -> None:
        # Not torch.manual_seed: without CUDA it keeps a growing list of calls to make later.
        torch.default_generator.manual_seed(seed)
        if seed_accelerator is not None:
            seed_accelerator(seed)
        if everything:  # torch's alone costs a microsecond, these ten
            random.seed(seed)
            numpy.random.seed(seed % 2**32)

    python_state, numpy_state = random.getstate(), numpy.random.get_state()
    try:
        kind = device.type if accelerators else "cuda"  # fork_rng wants a name even for none
        with torch.random.fork_rng(devices=accelerators, device_type=kind):
            yield reseed
    finally:
        random.setstate(python_state)
        numpy.random.set_state(numpy_state)


def random_states(device: torch.device) -> dict[str, Any]:
    """The states of all global generators, as tensors, numbers and text."""
    name, keys, *rest = numpy.random.get_state(legacy=True)
    accelerator, arguments = _accelerator(device)
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(numpy.asarray(keys, dtype="int64")), *rest),
        "torch": torch.get_rng_state(),
        "accelerator": accelerator and accelerator.get_rng_state(*arguments),
    }


def load_random_states(device: torch.device, states: Mapping[str, Any]) -> None:
    """Set all global generators to what `random_states` returned."""
    random.setstate(states["python"])
    name, keys, *rest = states["numpy"]
    numpy.random.set_state((name, keys.numpy().astype("uint32"), *rest))
    torch.set_rng_state(states["torch"])
    accelerator, arguments = _accelerator(device)
    if accelerator is not None and states["accelerator"] is not None:
        accelerator.set_rng_state(states["accelerator"], *arguments)


def _accelerator(device: torch.device) -> tuple[Any, tuple[torch.device, ...]]:
    """The part of torch that a device belongs to, and how to name the device to it."""
    if device.type == "cpu":
        return None, ()
    return getattr(torch, device.type), () if device.type == "mps" else (device,)


class Batches:
    """The training batches of one run: every pass is a new order, decided by the seed alone.

    Each example comes once a pass. A last batch of a single example would break batch
    normalisation, so it joins the batch before it. ``done`` counts the batches of the pass at hand
    that were given out; after `load_state` the next pass is the rest of that one.
    """

    def __init__(
        self, task: Task, seed: int, device: torch.device, reseed: Reseed, loaders: int = 0
    ) -> None:
        self.dataset, self.size, self.augment = task.train, task.batch_size, task.augment
        self.collate, self.examples, self.loaders = task.collate, _length(task.train), loaders
        self.device, self.reseed = device, reseed
        self.order = torch.Generator().manual_seed(derive_seed(seed, "order"))
        self.augmentation = torch.Generator().manual_seed(derive_seed(seed, "augmentation"))
        self.data_seed = derive_seed(seed, "data")
        tensors = tensors_of(task.train)
        self.tensors = tensors and (tensors[0].to(device), tensors[1].to(device))
        self.done, self.began = 0, self.order.get_state()

    def __len__(self) -> int:
        full, rest = divmod(self.examples, self.size)
        return max(1, full + (rest > 1))

    def chunks(self) -> list[Tensor]:
        """The examples of each batch of the next pass."""
        chunks = list(torch.randperm(self.examples, generator=self.order).split(self.size))
        if len(chunks) > len(self):
            chunks[-2:] = [torch.cat(chunks[-2:])]
        return chunks

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        self.began = self.order.get_state()
        chunks = self.chunks()[self.done :]
        for inputs, target in self._loaded(chunks) if self.tensors is None else self._fast(chunks):
            self.done += 1
            yield self.augment(inputs, self.augmentation) if self.augment else inputs, target
        self.done = 0

    def state(self) -> dict[str, Any]:
        """Where in a pass it is, and what the generators go on from."""
        return {
            "order": self.began,
            "done": self.done,
            "augmentation": self.augmentation.get_state(),
            "data_seed": self.data_seed,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.order.set_state(state["order"])
        self.augmentation.set_state(state["augmentation"])
        self.done, self.data_seed = state["done"], state["data_seed"]

    def _fast(self, chunks: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        assert self.tensors is not None
        inputs, target = self.tensors
        for chunk in chunks:
            rows = chunk.to(self.device)
            yield inputs.index_select(0, rows), target.index_select(0, rows)

    def _loaded(self, chunks: list[Tensor]) -> Iterator[tuple[Any, Any]]:
        rows = [chunk.tolist() for chunk in chunks]
        fetched = loaded(self.dataset, rows, self.collate, self.loaders, seed=self.data_seed + 1)
        for _ in chunks:
            self.data_seed += 1
            self.reseed(self.data_seed, everything=True)  # random transforms draw from these
            inputs, target = next(fetched)
            yield moved(inputs, self.device), moved(target, self.device)


class Split:
    """A split to measure on; `predict` returns what is kept of all of its rows."""

    def __init__(self, name: str, task: Task, device: torch.device, loaders: int = 0) -> None:
        self.name, self.classes, self.device = name, task.num_classes, device
        self.reading = task.reading
        dataset: Dataset[Any] = getattr(task, name)
        tensors = tensors_of(dataset)
        self.batches: Any
        if tensors is None:
            rows = torch.arange(_length(dataset)).split(task.batch_size)
            self.batches = _Loaded(dataset, [one.tolist() for one in rows], task.collate, loaders)
        else:
            inputs, target = (tensor.to(device) for tensor in tensors)
            # Big batches, yet small enough for a convolution's activations to stay in memory.
            size = max(task.batch_size, min(8192, 2**19 // max(1, inputs[0].numel())))
            self.batches = list(zip(inputs.split(size), target.split(size), strict=True))

    @torch.inference_mode()
    def predict(
        self, model: nn.Module, forward: Callable[[Any], Any] | None = None
    ) -> dict[str, Tensor]:
        """`metrics.examples` of the whole split, on the CPU; ``forward`` calls ``model``."""
        model.eval()
        rows = [self.rows(forward or model, *batch) for batch in self.batches]
        return {name: values.cpu() for name, values in metrics.joined(rows).items()}

    def rows(self, forward: Callable[[Any], Any], inputs: Any, target: Any) -> dict[str, Tensor]:
        """`metrics.examples` of one batch."""
        target = moved(target, self.device)
        output = forward(moved(inputs, self.device))
        labels = self.reading.labels(target)
        logits = self.reading.logits(output, target)
        if logits.shape != (len(labels), self.classes):
            raise InputError(
                f"Expected the model to return logits of shape {(len(labels), self.classes)} "
                f"(examples, classes), but got {tuple(logits.shape)}; correct the model or "
                "the task's num_classes."
            )
        if not len(labels):  # a batch of nothing but padding or background
            one = metrics.examples(logits.new_zeros(1, self.classes), labels.new_zeros(1))
            return {name: values[:0] for name, values in one.items()}
        return metrics.examples(logits, labels)


@dataclass(frozen=True)
class _Loaded:
    """Batches that can be gone through again and again."""

    dataset: Dataset[Any]
    rows: list[list[int]]
    collate: Callable[[list[Any]], Any] | None
    loaders: int

    def __iter__(self) -> Iterator[Any]:
        return loaded(self.dataset, self.rows, self.collate, self.loaders)


def _length(dataset: Dataset[Any]) -> int:
    return len(dataset)  # type: ignore[arg-type]
