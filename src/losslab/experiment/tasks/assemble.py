"""From tensors, model and recipe to a `Task`, described by all that decides its numbers."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from losslab.errors import InputError
from losslab.experiment.labels import label_counts
from losslab.experiment.task import SPLITS, Task, tensors_of

if TYPE_CHECKING:
    from losslab.experiment.tasks.recipe import Recipe

Split = tuple[Tensor, Tensor]


def assemble(
    *,
    name: str,
    splits: Sequence[Split],
    class_names: Sequence[str],
    model_name: str,
    model: Callable[[], nn.Module],
    recipe: Recipe,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    facts: dict[str, Any],
) -> Task:
    """A task from its three (inputs, targets) pairs, described in full.

    ``facts`` are the builder's own words: ``source``, ``split``, ``preprocessing``, ``notes``.
    """
    train, validation, test = (TensorDataset(*split) for split in splits)
    task = Task(
        name=name,
        train=train,
        validation=validation,
        test=test,
        num_classes=len(class_names),
        model=model,
        augment=augment,
        class_names=tuple(class_names),
        **recipe.task_fields(),
    )
    return with_description(task, {**facts, "model": {"name": model_name}})


def with_description(task: Task, facts: dict[str, Any]) -> Task:
    """The task with ``facts`` and what can be read off the task itself in its description.

    ``facts`` give way to what the task's own description says already. Sizes, class counts, model,
    optimiser, schedule and augmentation are always read off the task, and the fingerprint where its
    examples are tensors; of other data say yourself what tells them apart, as ``sha256``.
    """
    network = _fresh_model(task)
    words: dict[str, Any] = {"source": None, "split": None, "preprocessing": [], "notes": []}
    description: dict[str, Any] = {
        **words,
        **facts,
        **task.description,
        "sizes": {split: len(getattr(task, split)) for split in SPLITS},
        "class_counts": _class_counts(task),
        "model": _describe_model(network) | facts.get("model", {}),
        "optimizer": _describe_optimizer(task, network),
        "lr_scheduler": _name(task.lr_scheduler),
        "augment": _name(task.augment),
        "sha256": fingerprint(task) or task.description.get("sha256", facts.get("sha256")),
    }
    return replace(task, description=description)


def fingerprint(task: Task) -> str | None:
    """sha256 over dtype, shape and bytes of all tensors; None for a dataset that is not tensors."""
    digest = hashlib.sha256()
    for split in SPLITS:
        tensors = tensors_of(getattr(task, split))
        if tensors is None:
            return None
        for tensor in tensors:
            flat = tensor.detach().cpu().contiguous()
            digest.update(f"{split} {flat.dtype} {tuple(flat.shape)}\n".encode())
            digest.update(flat.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _class_counts(task: Task) -> dict[str, list[int] | None]:
    counts: dict[str, list[int] | None] = {}
    for split in SPLITS:
        known = tensors_of(getattr(task, split)) is not None
        counts[split] = label_counts(task, split).tolist() if known else None
    return counts


def _fresh_model(task: Task) -> nn.Module:
    """A model made without touching the random state, and tried on two training examples."""
    with torch.random.fork_rng(devices=[]):
        network = task.model()
        if not isinstance(network, nn.Module):
            raise InputError(
                f"task {task.name!r}: model() must return a torch.nn.Module; "
                f"got {type(network).__name__}."
            )
        tensors = tensors_of(task.train)
        if tensors is None:
            return network
        network.eval()
        with torch.no_grad():
            logits = task.reading.logits(network(tensors[0][:2]), tensors[1][:2])
    expected = (len(task.reading.labels(tensors[1][:2])), task.num_classes)
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if shape != expected:
        raise InputError(
            f"task {task.name!r}: the model must return logits of shape (batch, num_classes), here "
            f"{expected}; got {shape}. Make its last layer num_classes={task.num_classes} wide."
        )
    return network


def _describe_model(network: nn.Module) -> dict[str, Any]:
    return {
        "name": type(network).__name__,
        "parameters": sum(p.numel() for p in network.parameters()),
        "layers": _without_addresses(repr(network)),
    }


def _describe_optimizer(task: Task, network: nn.Module) -> dict[str, Any]:
    optimizer = task.optimizer(network.parameters())
    plain = {key: value for key, value in optimizer.defaults.items() if _is_plain(value)}
    settings = {key: value for key, value in plain.items() if key not in ("fused", "foreach")}
    return {"name": type(optimizer).__name__, **settings}


def _is_plain(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return value is not None


def _name(function: Callable | None) -> str | None:
    if function is None:
        return None
    if isinstance(function, partial):
        settings = ", ".join(f"{key}={value!r}" for key, value in function.keywords.items())
        return _without_addresses(f"{_name(function.func)}({settings})")
    return getattr(function, "__qualname__", type(function).__name__)


def _without_addresses(text: str) -> str:
    """``text`` without memory addresses, which change from one start of Python to the next."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """``1 row``, ``2 rows``: for notes and messages."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
