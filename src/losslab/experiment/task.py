"""What is learned, from what data, by which model: the input of a comparison.

A `Task` refuses what cannot be learned from when it is made, so a mistake shows before the first
run and not after an hour of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from losslab.analysis.attacks import Attack
from losslab.analysis.ball import as_floats, check_inside, limits_of
from losslab.errors import InputError
from losslab.metrics import METRICS, Metric
from losslab.reading import Reading

SPLITS = ("train", "validation", "test")
_SHOWN = 5  # how many bad places a message lists


@dataclass(frozen=True)
class Task:
    """A classification problem with its data, model and training recipe.

    Args:
        name: Short name, shown in tables.
        train: Examples to learn from. ``TensorDataset(inputs, int64 targets)`` is the fast path.
        validation: Examples that choose an epoch; never trained on.
        test: Examples that are only measured.
        num_classes: Number of classes; targets are ``0 .. num_classes - 1``.
        model: Makes a fresh model; called after the seed is set, so that a seed fixes the initial
            weights. ``model(inputs)`` gets a batch of inputs in the dtype the dataset holds, and
            returns logits ``(batch, num_classes)``.
        optimizer: Makes the optimiser from the model's parameters.
        epochs: Passes over ``train``.
        batch_size: Examples a step.
        lr_scheduler: ``(optimizer, total_steps)`` -> scheduler, stepped after each batch. Let it
            scale the optimiser's own rate (as ``LambdaLR`` and ``CosineAnnealingLR`` do, and
            ``OneCycleLR`` with a fixed ``max_lr`` does not), or a run at a changed rate loses the
            change.
        augment: ``(inputs, generator)`` -> inputs, on a training batch. Draw only from the CPU
            ``generator``: it is what makes augmentation the same for every loss.
        class_names: One name a class, for the report.
        patience: Stop a run after so many epochs in which the validation split got no better
            (accuracy, then NLL); None runs all epochs. Schedules keep to ``epochs``.
        attack: What every training batch is changed by, after augmentation, against the model as
            it stands (`losslab.experiment.adversarial`); None trains on the inputs themselves.
        collate: Makes a batch ``(inputs, target)`` of a list of examples, for data that are not a
            ``TensorDataset``; None is PyTorch's own. Both may be tensors in tuples, lists and
            mappings, or a batch of graphs: whatever ``model(inputs)`` and ``reading`` take.
        reading: How the model's answer to a batch becomes rows of logits and their labels, and the
            loss of a batch; as it is, one row of logits an example.
        metrics: What to record of every split beside the seven metrics: some of
            `losslab.metrics.MORE`, or a `losslab.metrics.Metric` of your own.
        model_scores: ``(model, "validation" or "test")`` -> numbers by name, asked once of the
            finished model, for what logits do not say (BLEU of translations, average precision of
            boxes). ``metrics`` must have a row without ``measure`` for each.
        average: Measure and keep, in the end, the mean of the weights after this many last epochs.
        description: JSON-serialisable facts: source, sizes, preprocessing, model, fingerprint.

    Raises:
        InputError: On what cannot be learned from. A ``TensorDataset`` (and a ``Subset`` of one) is
            checked in full: target dtype, shape and range, inputs that are not finite, a class
            absent from ``train``. Of any other dataset, whose examples may be costly to make, only
            the length and the first and last example are looked at; what lies between shows itself
            in training.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> data = TensorDataset(torch.randn(6, 2), torch.tensor([0, 1, 2, 0, 1, 2]))
        >>> task = Task(
        ...     name="toy", train=data, validation=data, test=data, num_classes=3,
        ...     model=lambda: torch.nn.Linear(2, 3),
        ...     optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        ...     epochs=1, batch_size=2,
        ... )
        >>> task.model()(data.tensors[0]).shape
        torch.Size([6, 3])
    """

    name: str
    train: Dataset
    validation: Dataset
    test: Dataset
    num_classes: int
    model: Callable[[], nn.Module]
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]
    epochs: int
    batch_size: int
    lr_scheduler: Callable[[Optimizer, int], LRScheduler] | None = None
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None
    class_names: tuple[str, ...] | None = None
    patience: int | None = None
    attack: Attack | None = None
    collate: Callable[[list[Any]], tuple[Any, Any]] | None = None
    reading: Reading = field(default_factory=Reading)
    metrics: tuple[Metric, ...] = ()
    model_scores: Callable[[nn.Module, str], Mapping[str, float]] | None = None
    average: int = 1
    description: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in ("num_classes", "epochs", "batch_size"):  # numpy's whole numbers are welcome too
            value = getattr(self, key)
            if isinstance(value, Integral) and not isinstance(value, bool):
                object.__setattr__(self, key, int(value))
        self.validate()

    def validate(self) -> None:
        """Raise `InputError` for the first thing that cannot be learned from."""
        _check_fields(self)
        for split in SPLITS:
            _check_split(split, getattr(self, split), self)


def tensors_of(dataset: Dataset) -> tuple[Tensor, Tensor] | None:
    """``(inputs, targets)`` of a two-tensor ``TensorDataset`` or a ``Subset`` of one, else None."""
    if isinstance(dataset, Subset):
        inner = tensors_of(dataset.dataset)
        if inner is None:
            return None
        index = torch.as_tensor(dataset.indices, dtype=torch.int64)
        return inner[0][index], inner[1][index]
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
        return dataset.tensors[0], dataset.tensors[1]
    return None


def _check_fields(task: Task) -> None:
    if not isinstance(task.name, str) or not task.name:
        raise InputError(f"task: name must be a string that is not empty; got {task.name!r}.")
    for key, least in (("num_classes", 2), ("epochs", 1), ("batch_size", 1)):
        value = getattr(task, key)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            hint = " There is nothing to tell apart in one class." if key == "num_classes" else ""
            raise InputError(
                f"task {task.name!r}: {key} must be a whole number of at least {least}; "
                f"got {value!r}.{hint}"
            )
    if task.patience is not None and (type(task.patience) is not int or task.patience < 1):
        raise InputError(
            f"task {task.name!r}: patience must be a whole number of at least 1, or None; "
            f"got {task.patience!r}."
        )
    for key, optional in (
        ("model", False),
        ("optimizer", False),
        ("lr_scheduler", True),
        ("augment", True),
        ("collate", True),
        ("model_scores", True),
    ):
        value = getattr(task, key)
        if not (callable(value) or (optional and value is None)):
            raise InputError(
                f"task {task.name!r}: {key} must be a function; got {type(value).__name__}."
            )
    _check_attack(task)
    _check_metrics(task)
    _check_average(task)
    if isinstance(task.model, nn.Module):
        raise InputError(
            f"task {task.name!r}: model must be a function that makes a fresh model "
            "(every run needs its own initial weights); got a model. Write model=lambda: Net()."
        )
    if task.class_names is not None and len(task.class_names) != task.num_classes:
        raise InputError(
            f"task {task.name!r}: class_names must name all {task.num_classes} classes; "
            f"got {len(task.class_names)} names."
        )
    try:
        json.dumps(task.description, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"task {task.name!r}: description must be JSON-serialisable ({error}). "
            "Keep to strings, finite numbers, lists and dictionaries."
        ) from None


def _check_metrics(task: Task) -> None:
    names = [metric.name for metric in task.metrics]
    twice = sorted({name for name in names if names.count(name) > 1 or name in METRICS})
    if twice:
        raise InputError(
            f"task {task.name!r}: expected metrics with names of their own; got {twice[0]!r} "
            f"twice, or one of those that are always recorded ({', '.join(METRICS)})."
        )
    unmeasured = [metric.name for metric in task.metrics if metric.measure is None]
    if bool(unmeasured) != (task.model_scores is not None):
        raise InputError(
            f"task {task.name!r}: expected model_scores together with metrics that have no "
            f"measure, which it gives; got {'no ' if task.model_scores is None else ''}"
            f"model_scores and {', '.join(unmeasured) or 'no such metric'}."
        )


def _check_average(task: Task) -> None:
    if type(task.average) is not int or not 1 <= task.average <= task.epochs:
        raise InputError(
            f"task {task.name!r}: average must be a whole number of last epochs, from 1 to epochs "
            f"({task.epochs}); got {task.average!r}."
        )
    if task.average > 1 and task.patience is not None:
        raise InputError(
            f"task {task.name!r}: average and patience exclude each other, since which epochs are "
            "the last is not known beforehand; leave one out."
        )


def _check_attack(task: Task) -> None:
    if task.attack is None:
        return
    if type(task.reading) is not Reading:
        raise InputError(
            f"task {task.name!r}: attack changes inputs with one label each; leave attack or "
            "reading out."
        )
    if not isinstance(task.attack, Attack):
        raise InputError(
            f"task {task.name!r}: attack must be a losslab.analysis.attacks.Attack; "
            f"got {type(task.attack).__name__}."
        )
    if task.attack.keep != "last":
        raise InputError(
            f"task {task.name!r}: expected an attack with keep='last' to train on; got "
            f"{task.attack.keep!r}, which stops where the model is first wrong, so that it would "
            "hardly be attacked at all while it learns."
        )


def _check_split(split: str, dataset: Dataset, task: Task) -> None:
    where = f"task {task.name!r}, {split} split"
    indexed = hasattr(dataset, "__getitem__") and not isinstance(dataset, IterableDataset)
    if not isinstance(dataset, Sized) or not indexed:
        raise InputError(
            f"{where}: expected a map-style dataset with a length (torch.utils.data.TensorDataset, "
            f"for example), so that every loss can see the same batches; "
            f"got {type(dataset).__name__}."
        )
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) != 2:
        raise InputError(
            f"{where}: a TensorDataset must hold two tensors, inputs and targets; "
            f"got {len(dataset.tensors)}."
        )
    if len(dataset) == 0:
        raise InputError(f"{where} is empty; it needs at least one example.")
    tensors = tensors_of(dataset)
    if tensors is None:
        _check_example(where, 0, dataset[0], task)
        _check_example(where, len(dataset) - 1, dataset[len(dataset) - 1], task)
        return
    inputs, targets = tensors
    if type(task.reading) is not Reading:
        return _check_labels(where, task.reading.labels(targets), task)
    _check_targets(where, targets, task)
    _check_finite(where, inputs)
    if split == "train":
        _check_every_class(where, targets, task)
        if task.attack is not None:
            _check_box(where, inputs, task.attack)


def _check_box(where: str, inputs: Tensor, attack: Attack) -> None:
    try:
        check_inside(as_floats(inputs), limits_of(attack.box, inputs))
    except InputError as error:
        raise InputError(f"{where}, which attack changes: {error}") from None


def _check_targets(where: str, targets: Tensor, task: Task) -> None:
    if targets.dtype != torch.int64 or targets.dim() != 1:
        raise InputError(
            f"{where}: targets must be class numbers, int64 of shape (examples,); "
            f"got {str(targets.dtype).removeprefix('torch.')} of shape {tuple(targets.shape)}."
        )
    bad = ((targets < 0) | (targets >= task.num_classes)).nonzero()[:, 0]
    if len(bad):
        first = int(bad[0])
        raise InputError(
            f"{where}: targets must lie in 0..{task.num_classes - 1} "
            f"(num_classes={task.num_classes}); "
            f"got {int(targets[first])} at example {first} "
            f"({len(bad)} of {len(targets)} targets are out of range). "
            "Number the classes from 0, or correct num_classes."
        )


def _check_labels(where: str, labels: Tensor, task: Task) -> None:
    if labels.dtype != torch.int64 or labels.dim() != 1 or not len(labels):
        raise InputError(
            f"{where}: reading must make labels of the targets, int64 of shape (rows,), at least "
            f"one; got {str(labels.dtype).removeprefix('torch.')} of shape {tuple(labels.shape)}."
        )
    _check_targets(where, labels, task)


def _check_finite(where: str, inputs: Tensor) -> None:
    if not inputs.is_floating_point() or len(inputs) == 0:
        return
    flat = inputs.reshape(len(inputs), -1)
    if bool(flat.sum(dtype=torch.float64).isfinite()):  # one pass, no copy, for the usual case
        return
    broken = ~flat.isfinite()
    if not bool(broken.any()):
        return
    nan = int(flat.isnan().sum())
    rows = broken.any(dim=1).nonzero()[:, 0]
    message = (
        f"{where}: inputs must be finite numbers; got {nan} NaN and {int(broken.sum()) - nan} "
        f"infinite values in {len(rows)} of {len(inputs)} examples (examples {_first(rows)}"
    )
    if inputs.dim() == 2:
        message += f"; columns {_first(broken.any(dim=0).nonzero()[:, 0])}"
    raise InputError(message + "). Fill in or drop the missing values.")


def _check_every_class(where: str, targets: Tensor, task: Task) -> None:
    counts = torch.bincount(targets, minlength=task.num_classes)
    absent = (counts == 0).nonzero()[:, 0].tolist()
    if absent:
        names = [
            f"{c} ({task.class_names[c]!r})" if task.class_names is not None else str(c)
            for c in absent
        ]
        more = ", …" if len(names) > _SHOWN else ""
        raise InputError(
            f"{where}: no example of class {', '.join(names[:_SHOWN])}{more}; each of the "
            f"{task.num_classes} classes needs at least one to be learned. "
            "Add examples, or leave the class out."
        )


def _check_example(where: str, index: int, example: Any, task: Task) -> None:
    if not isinstance(example, (tuple, list)) or len(example) != 2:
        raise InputError(
            f"{where}: an example must be a pair (input, target); "
            f"example {index} is {type(example).__name__}."
        )
    inputs, target = example
    if type(task.reading) is not Reading:
        return  # its targets have a form of their own
    target = torch.as_tensor(target)
    if target.is_floating_point() or target.dtype == torch.bool or target.dim():
        raise InputError(
            f"{where}: the target of an example must be one class number; example {index} has "
            f"{str(target.dtype).removeprefix('torch.')} of shape {tuple(target.shape)}."
        )
    _check_one_target(where, index, int(target), task)
    if isinstance(inputs, Tensor) and inputs.is_floating_point() and not inputs.isfinite().all():
        raise InputError(
            f"{where}: inputs must be finite numbers; example {index} has "
            f"{int((~inputs.isfinite()).sum())} NaN or infinite values."
        )


def _check_one_target(where: str, index: int, target: int, task: Task) -> None:
    if not 0 <= target < task.num_classes:
        raise InputError(
            f"{where}: targets must lie in 0..{task.num_classes - 1} "
            f"(num_classes={task.num_classes}); got {target} at example {index}. "
            "Number the classes from 0, or correct num_classes."
        )


def _first(index: Tensor) -> str:
    shown = ", ".join(str(i) for i in index[:_SHOWN].tolist())
    return shown + (", …" if len(index) > _SHOWN else "")
