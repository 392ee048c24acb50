"""How often each class occurs in a split."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from losslab.experiment.task import Task, tensors_of
from losslab.reading import Reading


def label_counts(task: Task, split: str) -> Tensor:
    """How many rows of a split are of each class, ``(num_classes,)``; it may read all the data."""
    dataset = getattr(task, split)
    tensors = tensors_of(dataset)
    if tensors is not None:
        labels = task.reading.labels(tensors[1])
    elif type(task.reading) is Reading and hasattr(dataset, "targets"):  # as torchvision's have
        labels = torch.as_tensor(dataset.targets, dtype=torch.int64)
    else:
        batches = DataLoader(dataset, task.batch_size, collate_fn=task.collate)
        labels = torch.cat([task.reading.labels(target).flatten() for _, target in batches])
    return torch.bincount(labels, minlength=task.num_classes)
