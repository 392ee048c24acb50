"""The parts of a study, each with the function that reads it from its table of the recipe."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from losslab.errors import InputError, nearest
from losslab.experiment.data_sets import KINDS, SKLEARN, Data, Table
from losslab.experiment.own_loss import is_own_loss, own_loss
from losslab.experiment.recipe_lines import KeyPath
from losslab.experiment.recipe_text import REQUIRED, RecipeText, Section, as_float
from losslab.experiment.summary import DEFAULT_MARGINS

OPTIMIZERS: dict[str, type[Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}
SCHEDULES = ("constant", "cosine")
EPOCHS_CHOSEN = ("validation_selected", "last")
RATES_CHOSEN_BY = ("accuracy", "balanced_accuracy", "nll")
PUBLISHED = ("wins", "improvement", "mean_rank")
"""What a paper's table may say of a loss: number of data sets on which it is best (ties count),
mean improvement over the baseline in percentage points, mean rank."""

INPUTS = "inputs"  # as a layer's width: as many units as an example has numbers


@dataclass(frozen=True)
class Model:
    """A fully connected ReLU network: the widths of its hidden layers, ``"inputs"`` for I."""

    hidden: tuple[int | str, ...]

    def widths(self, inputs: int) -> tuple[int, ...]:
        """The widths for a data set of so many inputs."""
        return tuple(inputs if isinstance(width, str) else width for width in self.hidden)


@dataclass(frozen=True)
class Training:
    """How every run is trained; ``rates`` are tried for each, and one is chosen on validation."""

    epochs: int
    batch_size: int
    optimizer: str
    momentum: float
    weight_decay: float
    rates: tuple[float, ...]
    schedule: str

    def task_fields(self) -> dict[str, Any]:
        """The fields of a `Task` that this decides, at the first rate."""
        settings: dict[str, Any] = {"lr": self.rates[0], "weight_decay": self.weight_decay}
        if self.optimizer == "sgd":
            settings["momentum"] = self.momentum
        return {
            "optimizer": partial(OPTIMIZERS[self.optimizer], **settings),
            "lr_scheduler": half_cosine if self.schedule == "cosine" else None,
            "epochs": self.epochs,
            "batch_size": self.batch_size,
        }

    def identity(self) -> dict[str, Any]:
        """All of it but the rates: one of them belongs to each run."""
        names = ("epochs", "batch_size", "optimizer", "momentum", "weight_decay", "schedule")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Selection:
    """Which epoch of a run counts, and by which validation metric a learning rate is chosen.

    The rate with the best value wins; among equals the one with the lower NLL, then the earlier in
    the list.
    """

    epoch: str
    rate: str


@dataclass(frozen=True)
class Statistics:
    """What the losses are compared by, with which of them, and the largest difference not worth
    having (in the metric's own unit: 0.005 of accuracy is half a point)."""

    metric: str
    baseline: str
    margin: float


@dataclass(frozen=True)
class Published:
    """The figures of the paper, for comparison: ``models[MODEL][LABEL][STATISTIC]``."""

    where: str
    data_sets: int
    models: dict[str, dict[str, dict[str, float]]]


def plain(part: Any) -> Any:
    """A part of a study in TOML's own types."""
    if is_dataclass(part) and not isinstance(part, type):
        part = {field.name: getattr(part, field.name) for field in fields(part)}
    if isinstance(part, Mapping):
        return {key: plain(value) for key, value in part.items()}
    return [plain(value) for value in part] if isinstance(part, tuple) else part


def half_cosine(optimizer: Optimizer, total_steps: int) -> LambdaLR:
    """The optimiser's own rate, times half a cosine from 1 down to 0."""
    return LambdaLR(optimizer, partial(_half_cosine, total_steps=total_steps))


def _half_cosine(step: int, total_steps: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(1.0, step / total_steps)))


_DATA = ("kind", "sets", "exclude", "validation_fraction", "split_seed", "tables")


def read_data(top: Section) -> Data:
    """[data]"""
    section = top.table("data", _DATA)
    kind = section.string("kind", choices=KINDS)
    if kind != "tables" and "tables" in section.values:
        raise section.error("tables", f'tables belong to kind "tables", not to {kind!r}.')
    tables = _read_tables(section) if kind == "tables" else {}
    known = {"sklearn": SKLEARN, "tables": tuple(tables), "uci121": None}[kind]
    sets = section.values.get("sets", "all")
    names = None if sets == "all" else _names(section, "sets", known, '"all" or a list of names')
    exclude = _names(section, "exclude", known, "a list of names", [])
    fraction = section.number(
        "validation_fraction",
        0.15,
        fits=lambda share: 0 < share <= 0.5,
        expected="a number above 0 and at most 0.5",
    )
    return Data(kind, names, exclude, fraction, section.whole("split_seed", 0, least=0), tables)


def _names(
    section: Section, key: str, known: Iterable[str] | None, expected: str, default: Any = REQUIRED
) -> tuple[str, ...]:
    section.value(key, default, list, expected)
    names = section.each(key, default, str, "a name in quotes")
    if not names and default is REQUIRED:
        raise section.error(key, f"{key} is empty; name at least one data set.")
    for place, name in enumerate(names):
        if known is not None and name not in known:
            raise section.error(
                key,
                f"no data set {name!r}.{nearest(name, known)} Data sets: {', '.join(known)}.",
                place,
            )
    return tuple(names)


def _read_tables(section: Section) -> dict[str, Table]:
    inner = section.table("tables", ())
    tables = {}
    for name in inner.values:
        table = inner.table(name, ("file", "target"))
        tables[name] = Table(table.string("file"), table.string("target"))
    if not tables:
        raise section.error(
            "tables", '[data.tables] is empty; write NAME = {file = "…", target = "…"}.'
        )
    return tables


def read_models(top: Section) -> dict[str, Model]:
    """[models]"""
    section = top.table("models", ())
    models = {}
    for name in section.values:
        _refuse_blank(section, name)
        inner = section.table(name, ("hidden",))
        widths = inner.value("hidden", REQUIRED, list, "a list of widths, [] for a linear model")
        for place, width in enumerate(widths):
            if width != INPUTS and (type(width) is not int or width < 1):
                raise inner.wrong(
                    "hidden", f"a whole number of at least 1, or {INPUTS!r}", width, place
                )
        models[name] = Model(tuple(widths))
    if not models:
        raise top.error("models", "[models] is empty; write NAME = {hidden = [64]}.")
    return models


_TRAINING = ("epochs", "batch_size", "optimizer", "momentum", "weight_decay", "rates", "schedule")


def read_training(top: Section) -> Training:
    """[training]"""
    section = top.table("training", _TRAINING)
    optimizer = section.string("optimizer", choices=tuple(OPTIMIZERS))
    if optimizer != "sgd" and "momentum" in section.values:
        raise section.error("momentum", f"momentum belongs to sgd, not to {optimizer}; remove it.")
    expected = "a finite number above 0"
    rates = section.each("rates", REQUIRED, (int, float), expected)
    for place, rate in enumerate(rates):
        if not 0 < as_float(rate) < math.inf:
            raise section.wrong("rates", expected, rate, place)
    if not rates:
        raise section.error("rates", "rates is empty; give at least one learning rate.")
    return Training(
        epochs=section.whole("epochs", least=1),
        batch_size=section.whole("batch_size", least=1),
        optimizer=optimizer,
        momentum=section.number(
            "momentum",
            0.0,
            fits=lambda momentum: 0 <= momentum < 1,
            expected="a number of at least 0 and below 1",
        ),
        weight_decay=section.number(
            "weight_decay",
            0.0,
            fits=lambda decay: decay >= 0,
            expected="a finite number of at least 0",
        ),
        rates=tuple(float(rate) for rate in rates),
        schedule=section.string("schedule", "constant", SCHEDULES),
    )


def _canonical(spec: str) -> str:
    import losslab

    return losslab.loss(spec).spec  # type: ignore[return-value]


def read_losses(
    top: Section,
    rates: Mapping[str, float] | None = None,
    canonical: Callable[[str], str] = _canonical,
) -> tuple[dict[str, str], dict[str, str]]:
    """[losses]: canonical spec by label; and by its spec where a loss of the user's own lies.

    One may come again at another of ``rates``.
    """
    rates = rates or {}
    section = top.table("losses", ())
    losses: dict[str, str] = {}
    places: dict[str, str] = {}
    for label in section.values:
        _refuse_blank(section, label)
        written = section.string(label)
        try:
            if is_own_loss(written):
                place = _beside(top.text, ("losses", label), written)
                spec = own_loss(place).spec
                places[spec] = str(Path(place).absolute())  # a worker may stand elsewhere
            else:
                spec = canonical(written)
        except InputError as error:
            raise section.error(label, str(error)) from None
        for other, known in losses.items():
            if spec == known and rates.get(label, 1.0) == rates.get(other, 1.0):
                raise section.error(
                    label, f"{label!r} and {other!r} are the same loss, {spec}; keep one."
                )
        losses[label] = spec
    if len(losses) < 2:
        raise top.error("losses", f"expected at least two losses to compare; got {len(losses)}.")
    return losses, places


def _beside(text: RecipeText, path: KeyPath, place: str) -> str:
    """``FILE.py:NAME`` with the file beside the recipe; what ``--set`` names is as it stands."""
    if text.folder is None or any(path[:length] in text.given for length in (1, 2)):
        return place
    return str(text.folder / Path(place.strip()).expanduser())


def _refuse_blank(section: Section, name: str) -> None:
    if not name.strip():
        raise section.error(name, "a name must not be empty.")


def read_seeds(top: Section) -> tuple[int, ...]:
    """seeds = [0, 1]"""
    expected = "a whole number of at least 0"
    seeds = top.each("seeds", REQUIRED, int, expected)
    for place, seed in enumerate(seeds):
        if not 0 <= seed < 2**63:
            raise top.wrong("seeds", expected, seed, place)
    if not seeds:
        raise top.error("seeds", "seeds is empty; name at least one.")
    return tuple(seeds)


def read_selection(top: Section) -> Selection:
    """[selection], which may be left out."""
    section = top.inner("selection", ("epoch", "rate"), required=False)
    if section is None:
        return Selection("validation_selected", "accuracy")
    if section.values.get("epoch") == "best_on_test":
        raise section.error(
            "epoch",
            "best_on_test chooses an epoch on the test set, which makes every result too good; "
            f"take one of {', '.join(EPOCHS_CHOSEN)}.",
        )
    return Selection(
        section.string("epoch", "validation_selected", EPOCHS_CHOSEN),
        section.string("rate", "accuracy", RATES_CHOSEN_BY),
    )


def read_statistics(top: Section, losses: Mapping[str, str]) -> Statistics:
    """[statistics], which may be left out."""
    section = top.inner("statistics", ("metric", "baseline", "margin"), required=False)
    first = next(iter(losses))
    if section is None:
        return Statistics("accuracy", first, DEFAULT_MARGINS["accuracy"])
    metric = section.string("metric", "accuracy", tuple(DEFAULT_MARGINS))
    return Statistics(
        metric,
        section.string("baseline", first, tuple(losses)),
        section.number(
            "margin",
            DEFAULT_MARGINS[metric],
            fits=lambda margin: margin > 0,
            expected=f"a finite number above 0, in the unit of {metric}",
        ),
    )


def read_published(
    top: Section, models: Mapping[str, Model], losses: Mapping[str, str]
) -> Published | None:
    """[published], which may be left out."""
    section = top.inner("published", ("where", "data_sets", "models"), required=False)
    if section is None:
        return None
    tables: dict[str, dict[str, dict[str, float]]] = {}
    for model, by_label in _kept(section.table("models", ()), models, "models"):
        tables[model] = {}
        for label, figures in _kept(by_label, losses, "losses"):
            checked = Section(section.text, figures.path, figures.values, PUBLISHED)
            tables[model][label] = {key: checked.number(key) for key in figures.values}
    return Published(section.string("where"), section.whole("data_sets", least=1), tables)


def _kept(section: Section, known: Mapping[str, Any], what: str) -> Iterable[tuple[str, Section]]:
    """The tables by model or loss, but for those of a model or loss that --set took out."""
    for name in section.values:
        if (what, name) in section.text.removed:
            continue
        if name not in known:
            raise section.error(
                name, f"the recipe has no {name!r} in [{what}].{nearest(name, known)}"
            )
        yield name, section.table(name, ())
