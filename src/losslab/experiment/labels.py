"""How often each class occurs in a split."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from losslab.experiment.task import Task, tensors_of
from losslab.reading import Reading


def label_counts(task: Task, split: str) -> Tensor:
    """How many rows of a split are of each class, ``(num_classes,)``.

    It may read all the data, unless the data set has its labels as ``targets``, as torchvision's
    have, or a method ``target_of(number)``, which makes an example's target without its inputs.
    """
    dataset = getattr(task, split)
    tensors = tensors_of(dataset)
    if tensors is not None:
        labels = task.reading.labels(tensors[1])
    elif type(task.reading) is Reading and hasattr(dataset, "targets"):
        labels = torch.as_tensor(dataset.targets, dtype=torch.int64)
    elif hasattr(dataset, "target_of"):
        made = (dataset.target_of(number) for number in range(len(dataset)))
        labels = torch.cat([task.reading.labels(target[None]).flatten() for target in made])
    else:
        batches = DataLoader(dataset, task.batch_size, collate_fn=task.collate)
        labels = torch.cat([task.reading.labels(target).flatten() for _, target in batches])
    return torch.bincount(labels, minlength=task.num_classes)
