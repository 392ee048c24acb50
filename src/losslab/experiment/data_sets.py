"""Data sets of a study: inputs and targets of three splits, without model or training.

kind "sklearn"   scikit-learn's embedded sets
kind "tables"    CSV, TSV or Parquet files, each with its target column
kind "uci121"    the archive of UCI sets, see losslab.experiment.uci
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from losslab.errors import InputError, nearest
from losslab.experiment.task import SPLITS, tensors_of
from losslab.experiment.tasks.options import TaskOptions
from losslab.experiment.tasks.split import TEST_FRACTION, stratified_split

KINDS = ("uci121", "sklearn", "tables")
SKLEARN = ("breast_cancer", "digits", "iris", "wine")


@dataclass(frozen=True)
class DataSet:
    """One data set, split.

    Args:
        name: Its name in the study.
        splits: ``(inputs, targets)`` of train, validation and test.
        class_names: One a class.
        facts: For the task's description: ``source``, ``split``, ``preprocessing``, ``notes``.
    """

    name: str
    splits: tuple[tuple[Tensor, Tensor], ...]
    class_names: tuple[str, ...]
    facts: dict[str, Any]

    @property
    def inputs(self) -> int:
        """Numbers an example has."""
        return self.splits[0][0][0].numel()


@dataclass(frozen=True)
class Table:
    """A file and the column to predict."""

    file: str
    target: str


@dataclass(frozen=True)
class Data:
    """What a study is about: the [data] table of its recipe.

    Args:
        kind: One of `KINDS`.
        sets: The names, in order; None for all that there are, by name.
        exclude: Names left out of them.
        tables: The files of kind ``"tables"``.
        validation_fraction: Share held out for validation: of the training part (``uci121``), of
            all examples (the others).
        split_seed: Decides the split wherever the data do not come with one.
    """

    kind: str
    sets: tuple[str, ...] | None
    exclude: tuple[str, ...]
    validation_fraction: float
    split_seed: int
    tables: dict[str, Table] = field(default_factory=dict, hash=False)

    def available(self, data_dir: Path | None) -> tuple[str, ...]:
        """Every name that `sets` may hold."""
        if self.kind == "uci121":
            from losslab.experiment.uci import open_archive

            return open_archive(data_dir).names
        return tuple(self.tables) if self.kind == "tables" else SKLEARN

    def names(self, data_dir: Path | None) -> tuple[str, ...]:
        """The names of the study's data sets."""
        chosen = self.available(data_dir) if self.sets is None else self.sets
        return tuple(name for name in chosen if name not in self.exclude)

    def load(self, name: str, data_dir: Path | None, folder: Path | None) -> DataSet:
        """One data set; the latest few stay in memory, since several models learn from each."""
        if self.kind == "uci121":
            from losslab.experiment.uci import open_archive

            archive = open_archive(data_dir)
            return _load(self, name, archive.place, archive.changed(name))
        if self.kind == "tables":
            place = _find_table(name, self.tables[name].file, folder, data_dir)
            return _load(self, name, place, place.stat().st_mtime_ns)
        return _load(self, name, None, 0)


@lru_cache(maxsize=4)
def _load(data: Data, name: str, place: Path | None, _changed: int) -> DataSet:
    if place is None:
        return load_sklearn(name, data.validation_fraction, data.split_seed)
    if data.kind == "tables":
        return load_table(
            name, place, data.tables[name].target, data.validation_fraction, data.split_seed
        )
    from losslab.experiment.uci import load_uci

    return load_uci(place, name, data.validation_fraction, data.split_seed)


def load_sklearn(name: str, validation_fraction: float, split_seed: int) -> DataSet:
    """An embedded set of scikit-learn, split within each class; a fifth is for testing."""
    from sklearn import datasets
    from sklearn.preprocessing import StandardScaler

    if name not in SKLEARN:
        raise InputError(
            f"scikit-learn has no embedded set {name!r} here.{nearest(name, SKLEARN)} "
            f"Sets: {', '.join(SKLEARN)}."
        )
    bunch = getattr(datasets, f"load_{name}")()
    parts = stratified_split(bunch.target, (TEST_FRACTION, validation_fraction), split_seed)
    train, test, validation = parts
    inputs = StandardScaler().fit(bunch.data[train]).transform(bunch.data)
    return DataSet(
        name,
        tuple(
            (
                torch.tensor(inputs[part], dtype=torch.float32),
                torch.tensor(bunch.target[part], dtype=torch.int64),
            )
            for part in (train, validation, test)
        ),
        tuple(str(label) for label in bunch.target_names),
        {
            "source": f"scikit-learn load_{name}",
            "split": {
                "rule": "stratified",
                "test": TEST_FRACTION,
                "validation": validation_fraction,
                "seed": split_seed,
            },
            "preprocessing": ["each column standardised by the training rows"],
        },
    )


def load_table(
    name: str, place: Path, target: str, validation_fraction: float, split_seed: int
) -> DataSet:
    """A table as ``losslab compare`` reads it: what is learned of columns comes from training."""
    from losslab.experiment.tasks.tables.table import build_table

    options = TaskOptions(
        target=target, validation_fraction=validation_fraction, split_seed=split_seed
    )
    task = build_table(place, options)
    splits = []
    for split in SPLITS:
        tensors = tensors_of(getattr(task, split))
        assert tensors is not None
        splits.append(tensors)
    facts = {key: task.description[key] for key in ("source", "split", "preprocessing", "notes")}
    return DataSet(name, tuple(splits), task.class_names or (), facts)


def _find_table(name: str, file: str, folder: Path | None, data_dir: Path | None) -> Path:
    """The file, beside the recipe or in the data folder."""
    places = [base / Path(file).expanduser() for base in (folder, data_dir) if base is not None]
    for place in places or [Path(file)]:
        if place.is_file():
            return place
    raise InputError(
        f"data set {name!r}: no file {file!r}; looked at "
        f"{' and '.join(str(place) for place in places) or file}. "
        "A file is looked for beside the recipe, then in --data-dir."
    )
