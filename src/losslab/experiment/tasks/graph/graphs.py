"""PROTEINS and NCI1, whole graphs in two classes, and any set of the TU collection in a folder.

Model and recipe are those of Zhao et al. (2022), read from their code, which are those of Lee et
al. (2019): Adam at a constant rate of 5e-4, weight decay 1e-4, batches of 128, until the validation
graphs have not been better for 50 epochs. Nothing was tuned here. ``epochs`` is only a bound that
runs do not reach, but schedules keep to it: a bonus from epoch 26 on is
``deferred(1, start=0.026)`` of 1,000.

The split is theirs too: 80 % of the graphs for training, 10 % for validation, the rest for testing,
drawn without regard to the classes. On so few graphs a split matters more than a loss: 111 test
graphs of PROTEINS make one point of accuracy one graph. They therefore average over 50 splits.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from losslab.errors import InputError
from losslab.experiment.labels import label_counts
from losslab.experiment.task import SPLITS, Task
from losslab.experiment.tasks.assemble import with_description
from losslab.experiment.tasks.graph.sag_pool import SagPoolNetwork, torch_geometric
from losslab.experiment.tasks.graph.tu_files import Graphs, name_in, read_folder, read_named
from losslab.experiment.tasks.options import TaskOptions, choose_model, refuse_unused
from losslab.experiment.tasks.split import keep
from losslab.experiment.tasks.text.adam import AdamRecipe

NAMES = {"proteins": "PROTEINS", "nci1": "NCI1"}
TEST_FRACTION = VALIDATION_FRACTION = 1 / 10
PATIENCE = 50
RECIPES = {
    "gcn-sagpool": AdamRecipe(
        epochs=1000,
        batch_size=128,
        lr=5e-4,
        weight_decay=1e-4,
        milestones=(),
        betas=(0.9, 0.999),
    )
}
# Of the content, see `tu_files`; sizes and class counts are those that the collection states.
OFFICIAL_SHA256 = {
    "PROTEINS": "28ab7e68d80b9707c3e53985d256ab2f55544c9b569633fbcde4edfe3e191db1",
    "NCI1": "8475071c68792e300cccbcef4bbb3fcff06d9e692d7089b801c710e8845eb6ad",
}


class GraphSet(Dataset):
    """Some graphs of a set: ``(graph, class)``, the graph a ``Data`` of PyTorch Geometric."""

    def __init__(self, graphs: Graphs, chosen: Tensor) -> None:
        data = torch_geometric().data
        self.targets = graphs.labels[chosen]
        parts = [graphs.parts(graph) for graph in chosen.tolist()]
        self.graphs = [data.Data(x=features, edge_index=edges) for features, edges in parts]

    def __len__(self) -> int:
        return len(self.graphs)

    def __getitem__(self, index: int) -> tuple[Any, Tensor]:
        return self.graphs[index], self.targets[index]


def collate(examples: list[tuple[Any, Tensor]]) -> tuple[Any, Tensor]:
    """Graphs as one graph of several parts, and their classes."""
    batch = torch_geometric().data.Batch.from_data_list([graph for graph, _ in examples])
    return batch, torch.stack([target for _, target in examples])


def build_graphs(name: str, options: TaskOptions) -> Task:
    """``proteins`` or ``nci1``, split 80/10/10 by ``split_seed``."""
    torch_geometric()  # said before the files are read
    official = NAMES[name]
    graphs = read_named(official, options.data_dir)
    notes = []
    if graphs.sha256 != OFFICIAL_SHA256[official]:
        notes.append(
            f"not the official {official}: {len(graphs)} graphs of {len(graphs.features)} nodes "
            f"and {graphs.edges.shape[1]} edges"
        )
    return _build(name, f"{official} of the TU collection", graphs, options, notes)


def holds_graphs(folder: Path) -> bool:
    """Whether a folder, or its ``raw``, holds a set of the TU collection."""
    return any(name_in(place) is not None for place in (folder, folder / "raw"))


def build_graph_folder(folder: Path, options: TaskOptions) -> Task:
    """A set of the TU collection, or files in its form, in a folder or its ``raw``."""
    torch_geometric()
    place = folder if name_in(folder) is not None else folder / "raw"
    name = name_in(place)
    assert name is not None
    refuse_unused(str(folder), options, {"data_dir": "the folder holds the data"})
    graphs = read_folder(place, name)
    notes = [] if graphs.both_ways else ["some edges are there in one direction only"]
    return _build(name, f"{name}, files in the form of the TU collection", graphs, options, notes)


def _build(name: str, source: str, graphs: Graphs, options: TaskOptions, notes: list[str]) -> Task:
    refuse_unused(
        name,
        options,
        {
            "target": "its labels are known",
            "image_size": "it has no images",
            "augment": "its graphs are not changed",
            "dropout": "its model drops half of a layer already",
        },
    )
    model = choose_model(name, options, tuple(RECIPES))
    parts = split(graphs, options)
    train, validation, test = (GraphSet(graphs, part) for part in parts)
    classes = len(graphs.class_names)
    task = Task(
        name=name,
        train=train,
        validation=validation,
        test=test,
        num_classes=classes,
        model=partial(SagPoolNetwork, graphs.features.shape[1], classes),
        class_names=graphs.class_names,
        patience=PATIENCE,
        collate=collate,
        **RECIPES[model].changed_by(options).task_fields(),
    )
    facts = {
        "source": source,
        "split": {
            "rule": "random 80/10/10, classes not balanced",
            "validation_fraction": options.validation_fraction or VALIDATION_FRACTION,
            "train_size": options.train_size,
            "seed": options.split_seed,
        },
        "preprocessing": [
            f"nodes: their {graphs.features_are}, one-hot ({graphs.features.shape[1]})",
            "edges: loops and repeated ones left out",
        ],
        "patience": PATIENCE,
        "notes": notes,
        "model": {"name": model},
        "sha256": _sha256(graphs, parts),
    }
    task = with_description(task, facts)
    counts = {split: label_counts(task, split).tolist() for split in SPLITS}
    return replace(task, description={**task.description, "class_counts": counts})


def split(graphs: Graphs, options: TaskOptions) -> tuple[Tensor, Tensor, Tensor]:
    """The graphs for training, validation and testing, decided by ``split_seed``.

    As in the published code: of n graphs ⌊0.8 n⌋ are for training, ⌊0.1 n⌋ for validation and the
    rest for testing; another ``validation_fraction`` leaves the test graphs as they are.
    """
    count = len(graphs)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(options.split_seed))
    tested = count - count * 8 // 10 - count // 10
    fraction = options.validation_fraction
    validated = count // 10 if fraction is None else int(fraction * count)
    train, validation, test = order.split([count - validated - tested, validated, tested])
    labels = graphs.labels[train].numpy()
    train = train[torch.from_numpy(keep(labels, options.train_size, options.split_seed))]
    absent = set(range(len(graphs.class_names))) - set(graphs.labels[train].tolist())
    if absent:
        named = ", ".join(repr(graphs.class_names[number]) for number in sorted(absent))
        raise InputError(
            f"the split of split_seed={options.split_seed} leaves no graph of class {named} for "
            "training; take another split_seed, or a set with more graphs of it."
        )
    return train, validation, test


def _sha256(graphs: Graphs, parts: tuple[Tensor, ...]) -> str:
    """Of the set's content and of which graphs are in which split."""
    digest = hashlib.sha256(f"{graphs.sha256} {graphs.features_are}\n".encode())
    for name, part in zip(SPLITS, parts, strict=True):
        digest.update(f"{name} {part.tolist()}\n".encode())
    return digest.hexdigest()
