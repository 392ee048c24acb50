"""Long tails: a training split thinned out so that its classes fall from many examples to few.

The validation and test splits stay as they are. Beside the usual metrics the accuracies over the
classes with many, a medium number of and few training examples are recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from losslab.errors import InputError
from losslab.experiment.task import Task, tensors_of
from losslab.experiment.tasks.assemble import with_description
from losslab.metrics.shots import shot_metrics


def long_tailed(task: Task, imbalance: float, seed: int = 0) -> Task:
    """The task with class sizes that fall exponentially, n_k = ⌊n_0 ρ^(−k/(C−1))⌋.

    So CIFAR-10-LT and CIFAR-100-LT are made (Cui et al. 2019; Cao et al. 2019): class 0 keeps all
    its examples, the last one a ρ-th. Of classes of unequal sizes n_0 is that of the largest, and a
    class that has fewer than its share keeps what it has.

    Args:
        task: Its training split must be tensors.
        imbalance: ρ > 1, the largest class over the smallest: 10, 50 or 100 in the papers.
        seed: Decides which examples stay.

    Raises:
        InputError: If the training split is not tensors, or a class would lose all its examples.
    """
    if not 1 < imbalance < float("inf"):
        raise InputError(
            f"imbalance must be a number above 1, the largest class over the smallest; got "
            f"{imbalance!r}. Leave it out for classes as they are."
        )
    tensors = tensors_of(task.train)
    if tensors is None:
        raise InputError(f"task {task.name!r}: only a task whose examples are tensors is thinned.")
    present = torch.bincount(tensors[1], minlength=task.num_classes)
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
    tensors = tensors_of(task.train)
    if tensors is None:
        raise InputError(f"task {task.name!r}: only a task whose examples are tensors is thinned.")
    if len(counts) != task.num_classes or min(counts) < 1:
        raise InputError(
            f"task {task.name!r}: expected a number of examples for each of {task.num_classes} "
            f"classes, at least 1; got {list(counts)}. Make imbalance smaller, or take more "
            "training examples."
        )
    inputs, target = tensors
    rows = _chosen(target, counts, seed)
    found = torch.bincount(target[rows], minlength=task.num_classes).tolist()
    fewer = replace(
        task,
        train=TensorDataset(inputs[rows], target[rows]),
        metrics=(*task.metrics, *shot_metrics(found)),
        description={**task.description, "class_sizes": found, "long_tail_seed": seed},
    )
    return with_description(fewer, {})


def _chosen(target: Tensor, counts: Sequence[int], seed: int) -> Tensor:
    """Rows that stay, ascending; a larger count keeps every row of a smaller one."""
    kept = []
    for label, count in enumerate(counts):
        members = (target == label).nonzero()[:, 0]
        generator = torch.Generator().manual_seed(seed * 1_000_003 + label)
        kept.append(members[torch.randperm(len(members), generator=generator)[:count]])
    return torch.cat(kept).sort().values
