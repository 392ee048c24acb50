"""A study as a recipe: data sets × models × losses × learning rates × seeds, in TOML.

    study = read_recipe("ba-t4", data_dir="data")        a recipe that comes with losslab, or a file
    study = study.changed({"training.epochs": 5})        what --set changes, checked as the file is
    study.datasets(), study.models, study.losses, study.rates, study.seeds
    study.task("iris", "hidden")                          at the first of the rates
    study.identity("iris", "hidden")                      what decides a run, but spec, rate, seed

docs/recipes.md describes every key. Whatever is wrong is told with the file and the line.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import TensorDataset

from losslab.errors import InputError, nearest
from losslab.experiment.data_sets import Data, DataSet
from losslab.experiment.own_loss import remade
from losslab.experiment.recipe_parts import (
    Model,
    Published,
    Selection,
    Statistics,
    Training,
    plain,
    read_data,
    read_losses,
    read_models,
    read_published,
    read_seeds,
    read_selection,
    read_statistics,
    read_training,
)
from losslab.experiment.recipe_text import RecipeText, parse
from losslab.experiment.task import Task
from losslab.experiment.tasks.assemble import with_description
from losslab.experiment.tasks.models import mlp


@dataclass(frozen=True)
class Study:
    """A recipe, read and checked. Made by `read_recipe`.

    Args:
        name, title, source: What it is called, what it is, where it comes from.
        differs: What is not as in the source.
        data: Which data sets, and how they are split.
        models: By name, in the recipe's order.
        training: How a run is trained.
        losses: Spec (in its canonical spelling) by label, in the recipe's order.
        own_losses: ``FILE.py:NAME`` of those from the user's files, by spec.
        seeds: One run of everything a seed.
        selection, statistics: What is made of the runs.
        published: The source's own figures, if the recipe has them.
        text: The recipe's own words, for messages and `changed`.
        data_dir: Where data are read from; decides no number.
    """

    name: str
    title: str
    source: str
    differs: tuple[str, ...]
    data: Data
    models: dict[str, Model]
    training: Training
    losses: dict[str, str]
    own_losses: dict[str, str]
    seeds: tuple[int, ...]
    selection: Selection
    statistics: Statistics
    published: Published | None
    text: RecipeText
    data_dir: Path | None

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates; a run at another than the first has lr_scale rate / first."""
        return self.training.rates

    @property
    def settings(self) -> dict[str, Any]:
        """The recipe in full as plain values: defaults filled in, changes included.

        For a study's own configuration file; a recipe too, but for losses of the user's own.
        """
        parts = ("data", "models", "training", "losses", "selection", "statistics", "published")
        found: dict[str, Any] = {"name": self.name, "title": self.title, "source": self.source}
        found |= {"differs": list(self.differs), "seeds": list(self.seeds)}
        for name in parts:
            found[name] = plain(getattr(self, name))
        found["data"]["sets"] = found["data"]["sets"] or "all"
        if self.data.kind != "tables":
            del found["data"]["tables"]
        if self.training.optimizer != "sgd":
            del found["training"]["momentum"]
        if self.own_losses:
            found["own_losses"] = self.own_losses
        return {key: value for key, value in found.items() if value not in (None, "")}

    def datasets(self) -> list[str]:
        """The names of the data sets, in order.

        Raises:
            InputError: If the data are not there, or lack a set that the recipe names.
        """
        known = self.data.available(self.data_dir)
        for key, names in (("sets", self.data.sets or ()), ("exclude", self.data.exclude)):
            for place, name in enumerate(names):
                if name not in known:
                    raise self.text.error(
                        ("data", key, place), f"no data set {name!r}.{nearest(name, known)}"
                    )
        names = self.data.names(self.data_dir)
        if not names:
            raise self.text.error(("data", "exclude"), "every data set is excluded.")
        return list(names)

    def loss(self, label: str) -> nn.Module:
        """The loss of a label, made anew."""
        return remade(self.losses[label], self.own_losses)

    def examples(self, dataset: str) -> int:
        """How many training examples a data set has: what an epoch on it costs."""
        return len(self._data(dataset).splits[0][1])

    def task(self, dataset: str, model: str) -> Task:
        """What a cell of the study learns, with the optimiser at the first of the rates.

        Raises:
            InputError: If there is no such data set or model, or its data cannot be learned from.

        Example:
            >>> read_recipe("digits-study").task("iris", "hidden").num_classes
            3
        """
        data, network = self._data(dataset), self._model(model)
        train, validation, test = (TensorDataset(*split) for split in data.splits)
        classes = len(data.class_names)
        task = Task(
            name=dataset,
            train=train,
            validation=validation,
            test=test,
            num_classes=classes,
            class_names=data.class_names,
            model=partial(mlp, data.inputs, classes, network.widths(data.inputs)),
            **self.training.task_fields(),
        )
        return with_description(task, {**data.facts, "model": {"name": model}})

    def identity(self, dataset: str, model: str) -> dict[str, Any]:
        """What decides the numbers of a cell's runs; with spec, lr and seed it names one of them.

        The lists of rates, losses, seeds and sets are not in it, nor are selection and statistics:
        a recipe that grows keeps the runs that are finished.
        """
        task, inputs = self.task(dataset, model), self._data(dataset).inputs
        widths = self._model(model).widths(inputs)
        return {
            "data": {"name": dataset, "sha256": task.description["sha256"]},
            "model": {"name": model, "layers": [inputs, *widths, task.num_classes]},
            "training": self.training.identity(),
        }

    def changed(self, changes: Mapping[str, Any]) -> Study:
        """The study with values changed, by key: ``{"training.epochs": 5, "seeds": [0]}``.

        None takes a key out, such as a loss or a model. `recipe_text.read_changes` reads the
        ``KEY=VALUE`` of a command line.
        """
        return _study(self.text.changed(changes), self.data_dir)

    def _data(self, dataset: str) -> DataSet:
        known = self.data.names(self.data_dir)
        if dataset not in known:
            raise InputError(
                f"{self.text.name}: the study has no data set {dataset!r}.{nearest(dataset, known)}"
            )
        return self.data.load(dataset, self.data_dir, self.text.folder)

    def _model(self, model: str) -> Model:
        if model not in self.models:
            raise InputError(
                f"{self.text.name}: the study has no model {model!r}."
                f"{nearest(model, self.models)} Models: {', '.join(self.models)}."
            )
        return self.models[model]


def read_recipe(path_or_name: str | Path, *, data_dir: str | Path | None = None) -> Study:
    """The study of a TOML file, or of a recipe that comes with losslab.

    Args:
        path_or_name: ``my-study.toml``, or a name that `recipe_names` lists.
        data_dir: Where data are read from; None takes the environment's ``LOSSLAB_DATA``.

    Raises:
        InputError: With file and line, for whatever is wrong.

    Example:
        >>> study = read_recipe("digits-study")
        >>> study.datasets(), study.rates
        (['breast_cancer', 'digits', 'iris', 'wine'], (0.1, 0.02))
    """
    given = data_dir if data_dir is not None else os.environ.get("LOSSLAB_DATA") or None
    place = None if given is None else Path(given).expanduser()
    text = recipe_file(path_or_name)
    if kind_of(text) == "comparison":
        raise InputError(
            f"{text.name} is a comparison on one task, not a study of many data sets; run it with "
            f"losslab reproduce {path_or_name}."
        )
    return _study(text, place)


def recipe_file(path_or_name: str | Path) -> RecipeText:
    """The text of a TOML file, or of a recipe that comes with losslab."""
    name = str(path_or_name)
    if name.endswith(".toml") or re.search(r"[/\\]", name):
        path = Path(name).expanduser()
        return parse(str(path), _read(path), path.parent)
    return parse(f"{name}.toml", recipe_toml(name))


_OF_A_STUDY = {"data", "models", "training", "selection", "statistics", "published"}
_OF_A_COMPARISON = {"task", "analyses", "decision", "claims", "sizes"}


def kind_of(text: RecipeText) -> str:
    """``"study"``, or ``"comparison"`` where the recipe has a task instead of data sets.

    Where it has neither, one of the two is written wrongly, and the other keys tell.
    """
    there = text.values.keys()
    if "data" in there or "task" in there:
        return "study" if "data" in there else "comparison"
    study, comparison = len(there & _OF_A_STUDY), len(there & _OF_A_COMPARISON)
    near_task = any("'task'" in nearest(key, ["task", "data"]) for key in there)
    return "comparison" if comparison > study or (comparison == study and near_task) else "study"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected text in UTF-8 ({error}).") from None
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}). Expected a recipe in TOML; to begin with "
            "one that comes with losslab: losslab recipes copy NAME."
        ) from None


def recipe_names(kind: str | None = None) -> dict[str, str]:
    """The recipes that come with losslab (``"study"``, ``"comparison"``, both): title by name."""
    files = sorted(file.name for file in _folder().iterdir() if file.name.endswith(".toml"))
    texts = {name: recipe_file(name) for name in (file.removesuffix(".toml") for file in files)}
    return {
        name: str(text.values["title"])
        for name, text in texts.items()
        if kind in (None, kind_of(text))
    }


def recipe_toml(name: str) -> str:
    """The text of a recipe that comes with losslab."""
    files = {file.name: file for file in _folder().iterdir() if file.name.endswith(".toml")}
    if f"{name}.toml" not in files:
        known = sorted(file.removesuffix(".toml") for file in files)
        raise InputError(
            f"no recipe {name!r}.{nearest(name, known)} Recipes that come with losslab: "
            f"{', '.join(known)}; a file of your own ends in .toml."
        )
    return files[f"{name}.toml"].read_text(encoding="utf-8")


def _folder() -> Any:
    return resources.files("losslab") / "recipes"


_TOP = ("name", "title", "source", "differs", "seeds", "data", "models", "training", "losses",
        "selection", "statistics", "published")  # fmt: skip


def _study(text: RecipeText, data_dir: Path | None) -> Study:
    top = text.section(_TOP)
    name = top.string("name")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise top.wrong("name", "letters, digits, '-', '_' and '.' (it names folders)", name)
    (losses, own_losses), models = read_losses(top), read_models(top)
    return Study(
        name=name,
        title=top.string("title"),
        source=top.string("source", ""),
        differs=tuple(top.each("differs", [], str, "text in quotes")),
        data=read_data(top),
        models=models,
        training=read_training(top),
        losses=losses,
        own_losses=own_losses,
        seeds=read_seeds(top),
        selection=read_selection(top),
        statistics=read_statistics(top, losses),
        published=read_published(top, models, losses),
        text=text,
        data_dir=data_dir,
    )
