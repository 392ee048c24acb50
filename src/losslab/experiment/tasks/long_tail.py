"""Long tails: a training split thinned out so that its classes fall from many examples to few.

The validation and test splits stay as they are. Beside the usual metrics the accuracies over the
classes with many, a medium number of and few training examples are recorded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from losslab.errors import InputError
from losslab.experiment.task import Task, tensors_of
from losslab.experiment.tasks.assemble import with_description
from losslab.experiment.tasks.images.large_images import ImageFiles
from losslab.metrics.shots import shot_metrics


def long_tailed(task: Task, imbalance: float, seed: int = 0) -> Task:
    """The task with class sizes that fall exponentially, n_k = ⌊n_0 ρ^(−k/(C−1))⌋.

    So CIFAR-10-LT and CIFAR-100-LT are made (Cui et al. 2019; Cao et al. 2019): class 0 keeps all
    its examples, the last one a ρ-th. Of classes of unequal sizes n_0 is that of the largest, and a
    class that has fewer than its share keeps what it has.

    Args:
        task: Its training split must be tensors, or images in files.
        imbalance: ρ > 1, the largest class over the smallest: 10, 50 or 100 in the papers.
        seed: Decides which examples stay.

    Raises:
        InputError: If the training split is neither, or a class would lose all its examples.
    """
    if not 1 < imbalance < float("inf"):
        raise InputError(
            f"imbalance must be a number above 1, the largest class over the smallest; got "
            f"{imbalance!r}. Leave it out for classes as they are."
        )
    present = torch.bincount(_target(task), minlength=task.num_classes)
    return thinned(task, exponential_counts(int(present.max()), task.num_classes, imbalance), seed)


def exponential_counts(largest: int, classes: int, imbalance: float) -> list[int]:
    """⌊n ρ^(−k/(C−1))⌋ for the classes k = 0 … C − 1.

    Example:
        >>> exponential_counts(5000, 10, 100)
        [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    """
    falls = [imbalance ** (-k / (classes - 1)) for k in range(classes)]
    return [int(largest * fall + 1e-9) for fall in falls]


def thinned(task: Task, counts: Sequence[int], seed: int = 0) -> Task:
    """The task with so many training examples of each class, or all that a class has."""
    target = _target(task)
    if len(counts) != task.num_classes:
        raise InputError(
            f"task {task.name!r}: expected class_counts to be {task.num_classes} numbers, one a "
            f"class, but got {len(counts)}: {_shortened(counts)}."
        )
    if min(counts) < 1:
        raise InputError(
            f"task {task.name!r}: expected at least 1 example of every class, but got "
            f"{_shortened(counts)}. Make imbalance smaller, or take more training examples."
        )
    rows = _chosen(target, counts, seed)
    found = torch.bincount(target[rows], minlength=task.num_classes).tolist()
    whole = str(task.description.get("sha256"))
    chosen = hashlib.sha256(f"{whole} {rows.tolist()}".encode()).hexdigest()
    fewer = replace(
        task,
        train=_only(task.train, rows),
        metrics=(*task.metrics, *shot_metrics(found)),
        description={
            **task.description,
            "class_sizes": found,
            "long_tail_seed": seed,
            "sha256": chosen,  # of tensors their own takes its place
        },
    )
    return with_description(fewer, {})


def _target(task: Task) -> Tensor:
    """The training examples' classes."""
    tensors = tensors_of(task.train)
    if tensors is not None and tensors[1].dim() == 1:
        return tensors[1]
    if isinstance(task.train, ImageFiles):
        return torch.as_tensor(task.train.targets, dtype=torch.int64)
    raise InputError(
        f"task {task.name!r}: expected images, or examples in memory with one class each, to thin "
        "them out; got neither. In a Python file of your own return fewer training examples."
    )


def _only(train: Any, rows: Tensor) -> Any:
    tensors = tensors_of(train)
    if tensors is not None:
        return TensorDataset(*(tensor[rows] for tensor in tensors))
    kept = rows.tolist()
    files, targets = ([part[row] for row in kept] for part in (train.files, train.targets))
    return ImageFiles(train.source, files, targets, train.view)


def _shortened(counts: Sequence[int]) -> str:
    shown = ", ".join(map(str, counts[:10]))
    return f"{shown}, …" if len(counts) > 10 else shown


def _chosen(target: Tensor, counts: Sequence[int], seed: int) -> Tensor:
    """Rows that stay, ascending; a larger count keeps every row of a smaller one."""
    kept = []
    for label, count in enumerate(counts):
        members = (target == label).nonzero()[:, 0]
        generator = torch.Generator().manual_seed(seed * 1_000_003 + label)
        kept.append(members[torch.randperm(len(members), generator=generator)[:count]])
    return torch.cat(kept).sort().values
