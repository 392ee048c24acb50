"""`Task` and its checks, the options and names of tasks."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from losslab.errors import InputError
from losslab.experiment.task import Task, tensors_of
from losslab.experiment.tasks import TaskOptions, build_task, task_names


def dataset(targets=(0, 1, 2), inputs=None) -> TensorDataset:
    targets = torch.as_tensor(targets)
    return TensorDataset(torch.zeros(len(targets), 4) if inputs is None else inputs, targets)


def make(**changes) -> Task:
    fields = {
        "name": "toy",
        "train": dataset(),
        "validation": dataset(),
        "test": dataset(),
        "num_classes": 3,
        "model": lambda: nn.Linear(4, 3),
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        "epochs": 1,
        "batch_size": 2,
    }
    return Task(**{**fields, **changes})


def refused(text: str, **changes) -> None:
    with pytest.raises(InputError) as caught:
        make(**changes)
    assert text in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


class Pairs(Dataset):
    """A map-style dataset that is not tensors and counts how often it is asked."""

    def __init__(self, pairs):
        self.pairs, self.asked = pairs, 0

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        self.asked += 1
        return self.pairs[index]


class Stream(IterableDataset):
    def __len__(self):
        return 3

    def __iter__(self):
        return iter([(torch.zeros(4), 0)])


# ---------------------------------------------------------------- Task: what is refused


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_target_out_of_range_names_value_and_place(split):
    """Oracle: the bad value put at a known place. Breaks if a split goes unchecked."""
    refused(
        f"{split} split: targets must lie in 0..2 (num_classes=3); got 7 at example 1 (2 of 3",
        **{split: dataset([0, 7, -1])},
    )


def test_negative_target_is_out_of_range():
    """Oracle: -100, PyTorch's ignore_index, is no class. Breaks without the lower bound."""
    refused("got -100 at example 2 (1 of 3", train=dataset([0, 1, -100]))


@pytest.mark.parametrize(
    "targets, shape",
    [
        (torch.tensor([0, 1, 2], dtype=torch.int32), "int32 of shape (3,)"),
        (torch.tensor([0.0, 1.0, 2.0]), "float32 of shape (3,)"),
        (torch.tensor([[0], [1], [2]]), "int64 of shape (3, 1)"),
    ],
)
def test_targets_must_be_int64_class_numbers(targets, shape):
    """Oracle: dtype and shape given. Breaks if either goes unchecked."""
    refused(f"got {shape}", train=dataset(targets))


def test_inputs_not_finite_are_counted_and_placed():
    """Oracle: 2 NaN and 1 infinity put at known rows and columns."""
    inputs = torch.zeros(3, 4)
    inputs[0, 1] = inputs[2, 1] = torch.nan
    inputs[2, 3] = -torch.inf
    refused(
        "test split: inputs must be finite numbers; got 2 NaN and 1 infinite values in 2 of 3 "
        "examples (examples 0, 2; columns 1, 3)",
        test=dataset(inputs=inputs),
    )


def test_opposite_infinities_do_not_cancel():
    """Oracle: +inf and -inf sum to NaN, large finite values to inf; only the first are bad.

    Breaks if finiteness is judged by the sum alone.
    """
    inputs = torch.zeros(3, 4)
    inputs[1, 0], inputs[1, 1] = torch.inf, -torch.inf
    refused("0 NaN and 2 infinite values in 1 of 3", train=dataset(inputs=inputs))
    big = torch.full((3, 4), torch.finfo(torch.float32).max)
    assert make(train=dataset(inputs=big)).num_classes == 3
    assert make(train=dataset(inputs=torch.full((3, 4), 1e308, dtype=torch.float64))).epochs == 1


def test_many_bad_examples_are_listed_in_short():
    """Oracle: eight bad rows, five listed. Images have no columns to name."""
    inputs = torch.full((8, 1, 2, 2), torch.nan)
    refused(
        "got 32 NaN and 0 infinite values in 8 of 8 examples (examples 0, 1, 2, 3, 4, …). Fill",
        train=dataset([0, 1, 2, 0, 1, 2, 0, 1], inputs),
    )


def test_class_absent_from_training_is_named():
    """Oracle: class 1 left out. Absent from validation or test it is no error."""
    refused("train split: no example of class 1; each of the 3", train=dataset([0, 0, 2]))
    refused(
        "no example of class 0 ('ape'), 2 ('cat')",
        train=dataset([1, 1, 1]),
        class_names=("ape", "bee", "cat"),
    )
    assert make(validation=dataset([0]), test=dataset([1])).num_classes == 3


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_empty_split(split):
    """Oracle: a dataset of length 0."""
    refused(f"{split} split is empty", **{split: TensorDataset(torch.zeros(0, 4), torch.zeros(0))})


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"name": ""}, "name must be a string"),
        ({"num_classes": 1}, "num_classes must be a whole number of at least 2; got 1. There is"),
        ({"num_classes": 3.0}, "num_classes must be a whole number of at least 2; got 3.0."),
        ({"num_classes": True}, "num_classes must be a whole number"),
        ({"epochs": 0}, "epochs must be a whole number of at least 1; got 0."),
        ({"batch_size": -1}, "batch_size must be a whole number of at least 1; got -1."),
        ({"model": nn.Linear(4, 3)}, "model must be a function that makes a fresh model"),
        ({"model": "mlp"}, "model must be a function; got str"),
        ({"optimizer": None}, "optimizer must be a function; got NoneType"),
        ({"lr_scheduler": 3}, "lr_scheduler must be a function; got int"),
        ({"augment": "flip"}, "augment must be a function; got str"),
        ({"class_names": ("a", "b")}, "class_names must name all 3 classes; got 2"),
        ({"description": {"x": torch.zeros(1)}}, "description must be JSON-serialisable"),
        ({"description": {"x": float("nan")}}, "description must be JSON-serialisable"),
        ({"train": [1, 2][:0]}, "train split is empty"),
        ({"train": 5}, "expected a map-style dataset with a length"),
        ({"train": Stream()}, "expected a map-style dataset with a length"),
        ({"test": TensorDataset(torch.zeros(3))}, "must hold two tensors"),
    ],
)
def test_wrong_fields(changes, text):
    """Oracle: one field wrong at a time, the message says which. Breaks if a check is dropped."""
    refused(text, **changes)


def test_numpy_whole_numbers_become_int():
    """Oracle: json, which cannot write numpy's integers, writes the fields."""
    task = make(num_classes=np.int64(3), epochs=np.int32(4))
    assert json.dumps([task.num_classes, task.epochs]) == "[3, 4]"


def test_subset_of_tensors_is_checked_in_full():
    """Oracle: a bad target in the middle of a nested Subset. Breaks if Subsets count as opaque."""
    whole = dataset([0, 1, 9, 2, 0, 1])
    refused("got 9 at example 1", train=Subset(whole, [0, 2, 3]))
    nested = Subset(Subset(whole, [0, 1, 3, 4]), [1, 2])
    assert tensors_of(nested)[1].tolist() == [1, 2]
    assert len(make(train=Subset(whole, [0, 1, 3])).train) == 3


def test_other_datasets_are_looked_at_cheaply():
    """Oracle: the number of examples asked for is two. Breaks if all of them are made."""
    pairs = Pairs([(torch.zeros(4), k % 3) for k in range(100)])
    make(train=pairs)
    assert pairs.asked == 2


@pytest.mark.parametrize(
    "last, text",
    [
        ((torch.zeros(4), 3), "got 3 at example 1"),
        ((torch.zeros(4), 1.5), "has float32 of shape ()"),
        ((torch.zeros(4), torch.tensor([1, 2])), "has int64 of shape (2,)"),
        ((torch.tensor([torch.nan, 0.0]), 1), "example 1 has 1 NaN or infinite"),
        (torch.zeros(4), "must be a pair (input, target); example 1 is Tensor"),
    ],
)
def test_other_datasets_first_and_last_example(last, text):
    """Oracle: the last example wrong in one way."""
    refused(text, train=Pairs([(torch.zeros(4), 0), last]))


# ---------------------------------------------------------------- options, names


@pytest.mark.parametrize(
    "options, text",
    [
        ({"epochs": 0}, "epochs must be"),
        ({"batch_size": 2.5}, "batch_size must be"),
        ({"train_size": 0}, "train_size must be"),
        ({"image_size": 4}, "image_size must be a whole number of at least 8; got 4"),
        ({"lr": 0.0}, "lr must be"),
        ({"lr": float("nan")}, "lr must be"),
        ({"lr": float("inf")}, "lr must be"),
        ({"split_seed": -1}, "split_seed must be"),
        ({"validation_fraction": 0.0}, "validation_fraction must be in (0, 0.5]; got 0.0"),
        ({"validation_fraction": 0.6}, "validation_fraction must be in"),
        ({"milestones": (0.5, 0.5)}, "milestones must be ascending shares"),
        ({"milestones": (0.7, 0.5)}, "milestones must be ascending shares"),
        ({"milestones": (0.0,)}, "milestones must be ascending shares"),
        ({"milestones": (0.5, 1.0)}, "milestones must be ascending shares"),
        ({"milestones": (30, 60)}, "Divide epochs by the number of epochs"),
    ],
)
def test_options_out_of_range(options, text):
    """Oracle: each just outside its documented range."""
    with pytest.raises(InputError, match=text.replace("(", r"\(").replace("]", r"\]")):
        TaskOptions(**options)


def test_unknown_task_names_the_nearest_and_all():
    """Oracle: a typo of a real name. Breaks if the list lacks a name."""
    with pytest.raises(InputError) as caught:
        build_task("fashoin-mnist")
    assert "no such task, file or folder. Did you mean 'fashion-mnist'?" in str(caught.value)
    for name in task_names():
        assert name in str(caught.value)


def test_file_of_unknown_kind(tmp_path):
    """Oracle: an existing file that is no table, image folder or Python file."""
    (tmp_path / "data.xlsx").write_text("x")
    with pytest.raises(InputError, match="a file of a kind that is not known"):
        build_task(str(tmp_path / "data.xlsx"))


def test_task_names_have_one_line_each():
    """Oracle: the issue's list of tasks."""
    names = task_names()
    images = {"digits", "mnist", "fashion-mnist", "cifar10", "cifar100"}
    texts = {"reviews", "glue-cola", "glue-sst2", "glue-mrpc", "glue-rte", "glue-wnli"}
    assert images | texts <= set(names)
    assert all(about and "\n" not in about for about in names.values())


@pytest.mark.parametrize(
    "options, text",
    [
        ({"target": "x"}, "task 'digits' takes no target"),
        ({"image_size": 16}, "task 'digits' takes no image_size"),
        ({"model": "cnn"}, "task 'digits' has no model 'cnn'. Models: mlp, linear"),
        ({"model": "lineer"}, "Did you mean 'linear'?"),
        ({"train_size": 9}, "train_size must be in 10..1079"),
        ({"train_size": 1080}, "train_size must be in 10..1079"),
    ],
)
def test_digits_refuses_options_it_cannot_heed(options, text):
    """Oracle: the option named. Breaks if an option is silently ignored."""
    with pytest.raises(InputError) as caught:
        build_task("digits", TaskOptions(**options))
    assert text in str(caught.value)
