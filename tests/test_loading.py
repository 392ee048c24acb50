"""Batches read ahead by other processes: the same numbers, the same errors."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

import losslab
from losslab.errors import InputError
from losslab.experiment.launch import Training
from losslab.experiment.loading import loaded
from losslab.experiment.task import Task
from losslab.experiment.train import train
from test_tasks_imagenet import build, tiny_files, zipped

pytestmark = pytest.mark.usefixtures("one_thread")


class Noisy(Dataset):
    """Examples that draw from all three global generators, and say who read them."""

    def __init__(self, rows: int, noise: float = 1.0, broken: int = -1) -> None:
        self.rows, self.noise, self.broken = rows, noise, broken

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int):
        if index == self.broken:
            raise InputError("photo.jpg: it is damaged.")
        drawn = [float(torch.randn(())), np.random.randn(), random.gauss(0, 1)]
        x = self.noise * torch.tensor(drawn) + torch.eye(3)[index % 3]
        return x, index % 3


class Counted(Noisy):
    def __getitem__(self, index: int):
        return torch.tensor([index, os.getpid()]), index % 3


def task(**changes) -> Task:
    settings = {
        "name": "noisy",
        "train": Noisy(50),
        "validation": Noisy(9, noise=0),
        "test": Noisy(10, noise=0),
        "num_classes": 3,
        "model": lambda: nn.Sequential(nn.Dropout(0.2), nn.Linear(3, 3)),
        "optimizer": lambda p: torch.optim.SGD(p, lr=0.1),
        "epochs": 3,
        "batch_size": 8,
    }
    return Task(**(settings | changes))


def run(made: Task, loaders: int):
    return train(made, losslab.loss("encouraging"), 0, training=Training(loaders=loaders))


@pytest.mark.parametrize("loaders", [1, 3])
def test_no_number_changes(loaders):
    """Oracle: the batches read here. Break: a loader that draws by a seed of its own, batches out
    of order, or an order that hangs on the number of loaders."""
    here, ahead = run(task(), 0), run(task(), loaders)
    assert ahead.curves == here.curves
    for ours, theirs in zip(ahead.model.parameters(), here.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_others_read_them():
    """Oracle: the process numbers. Break: loaders that are not asked."""
    rows = [[0, 1], [2, 3], [4, 5], [6]]
    batches = list(loaded(Counted(7), rows, None, 2))
    assert [inputs[:, 0].tolist() for inputs, _ in batches] == rows
    readers = {int(pid) for inputs, _ in batches for pid in inputs[:, 1]}
    assert len(readers) == 2 and os.getpid() not in readers
    assert [t.tolist() for _, t in batches] == [[0, 1], [2, 0], [1, 2], [0]]


class Both(nn.Linear):
    """Takes two parts, and is particular about what they come in."""

    def forward(self, inputs):
        assert isinstance(inputs, tuple)
        return super().forward(torch.cat(inputs, dim=1))


def twice(examples):
    """A batch whose inputs are a tuple."""
    x = torch.stack([x for x, _ in examples])
    return (x, -x), torch.tensor([y for _, y in examples])


def test_batches_come_as_they_were_put_together():
    """Oracle: the batches read here. Break: tuples that arrive as lists, which a model takes for
    something else, and arrays that arrive as tensors."""
    run(task(collate=twice, model=lambda: Both(6, 3)), 2)
    for loaders in (0, 2):
        rows = loaded(Noisy(4), [[0, 1], [2, 3]], lambda of: (len(of), np.zeros(2)), loaders)
        assert all(type(count) is int and type(zeros) is np.ndarray for count, zeros in rows)


@pytest.mark.parametrize("loaders", [0, 2])
def test_what_is_damaged_is_told_as_ever(loaders):
    """Break: a worker's traceback in the message."""
    with pytest.raises(InputError) as caught:
        run(task(train=Noisy(50, broken=33)), loaders)
    assert str(caught.value) == "photo.jpg: it is damaged."


def test_images_out_of_a_zip_file(tmp_path):
    """Oracle: the run without loaders. Break: processes that share one place in the open file."""
    made = build(zipped(tmp_path, tiny_files()), "tiny-imagenet", epochs=2, batch_size=4)
    assert len(made.train[0]) == 2  # the file is open here when the loaders begin
    assert run(made, 2).curves == run(made, 0).curves


def test_loaders_decide_nothing():
    """Break: runs with loaders that are other runs."""
    assert Training(loaders=4).settings() == {}
    with pytest.raises(InputError, match="loaders to be a whole number of at least 0"):
        Training(loaders=-1)
