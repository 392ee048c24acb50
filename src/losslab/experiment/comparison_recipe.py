"""A comparison as a recipe: a task, losses, analyses, and what a paper claims of them, in TOML.

    recipe = read_comparison("zh-t4", size="small", data_dir="data")
    comparison = recipe.comparison(out="zh-t4")          for `losslab.experiment.run`

A recipe has *sizes*: tables of changes to it, such as the paper's full setting and one that ends in
minutes on a CPU. docs/recipes.md describes every key.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from losslab.analysis.analyse import request
from losslab.analysis.request import Request
from losslab.errors import InputError, nearest
from losslab.experiment.claims import Claim
from losslab.experiment.findings import DataFrom, source_of
from losslab.experiment.launch import Training
from losslab.experiment.own_loss import own_loss
from losslab.experiment.plan import Comparison, canonical_spec
from losslab.experiment.recipe import recipe_file
from losslab.experiment.recipe_lines import KeyPath
from losslab.experiment.recipe_parts import read_losses, read_seeds
from losslab.experiment.recipe_text import RecipeText, Section, written
from losslab.experiment.records import SELECTIONS
from losslab.experiment.resample import resampled
from losslab.experiment.task import Task
from losslab.experiment.tasks import TaskOptions, build_task
from losslab.metrics import METRICS

FIRST = "small"
_TOP = ("name", "title", "source", "differs", "seeds", "task", "training", "losses", "rates",
        "analyses", "decision", "claims", "sizes")  # fmt: skip
_TASK = ("name", "adversarial", "resample", *(field.name for field in fields(TaskOptions)))
_CLAIM = ("text", "loss", "against", "value", "against_value", "expected", "ratio", "published")


@dataclass(frozen=True)
class ComparisonRecipe:
    """A recipe, read and checked. Made by `read_comparison`.

    Args:
        name, title, source: What it is called, what it is, where it comes from.
        size: Which of its sizes this is.
        differs: What is not as in the source.
        seeds: One run of each loss a seed.
        task: What is written after ``--task``.
        options: Changes to the task.
        adversarial: The attack of adversarial training, such as ``pgd(0.3)``.
        resample: Whether every seed has a split of its own.
        training: Precision, accumulation, clipping.
        losses: Spec by label; the first is the baseline.
        own_losses: ``FILE.py:NAME`` of those from the user's files, by spec.
        rates: Factor of the learning rate by label, 1 where there is none.
        analyses: What is measured of every model.
        metric, selection, margin: What the headline verdict is about.
        claims: What the source says.
        text: The recipe's own words.
    """

    name: str
    title: str
    source: str
    size: str
    differs: tuple[str, ...]
    seeds: tuple[int, ...]
    task: str
    options: TaskOptions
    adversarial: str | None
    resample: bool
    training: Training
    losses: dict[str, str]
    own_losses: dict[str, str]
    rates: dict[str, float]
    analyses: tuple[Request, ...]
    metric: str
    selection: str
    margin: float | None
    claims: tuple[Claim, ...]
    text: RecipeText

    def comparison(self, out: str | Path, *, device: str = "cpu", command: str = "") -> Comparison:
        """The comparison to run.

        Raises:
            InputError: If the data are not there.
        """
        own_split = resampled(self._task, self.options) if self.resample else None
        task = self._task(self.options) if own_split is None else own_split(self.seeds[0])
        self._refuse_unknown_metrics(task)
        return Comparison(
            task=task,
            task_of=own_split,
            losses=[
                (label, own_loss(self.own_losses[spec]) if spec in self.own_losses else spec)
                for label, spec in self.losses.items()
            ],
            rates=self.rates,
            out=out,
            seeds=self.seeds,
            metric=self.metric,
            selection=self.selection,
            margin=self.margin,
            device=device,
            command=command,
            training=self.training,
            analyses=self.analyses,
            data_by_name=DataFrom(self.options.data_dir),
            source=source_of(self.task, self.options, self.resample, self.own_losses),
            recipe={
                "name": self.name,
                "title": self.title,
                "source": self.source,
                "size": self.size,
                "differs": list(self.differs),
                "changes": [written(path) for path in sorted(self.text.given | self.text.removed)],
                "claims": [asdict(claim) for claim in self.claims],
            },
        )

    def _refuse_unknown_metrics(self, task: Task) -> None:
        """Raise `InputError` for a metric that neither all tasks nor this one record."""
        known = {metric.name: metric for metric in (*METRICS.values(), *task.metrics)}
        judged = [name for name, metric in known.items() if metric.better is not None]
        places: list[tuple[KeyPath, str, list[str]]] = [
            (("decision", "metric"), self.metric, judged)
        ]
        for number, claim in enumerate(self.claims):
            for key in ("value", "against_value"):
                name = getattr(claim, key)
                if "/" not in name:
                    places.append((("claims", number, key), name, list(known)))
        for path, name, fitting in places:
            if name not in fitting:
                raise self.text.error(
                    path,
                    f"expected {path[-1]} to be a metric ({', '.join(fitting)})"
                    f"{' or ANALYSIS/VALUE' if path[0] == 'claims' else ''}; got {name!r}."
                    f"{nearest(name, fitting)}",
                )

    def _task(self, options: TaskOptions) -> Task:
        try:
            task = build_task(self.task, options)
        except InputError as error:
            raise self.text.error(("task", "name"), str(error)) from None
        if self.adversarial is None:
            return task
        from losslab.experiment.adversarial import trained_against

        return trained_against(task, self.adversarial)


def read_comparison(
    path_or_name: str | Path,
    *,
    size: str | None = None,
    data_dir: str | Path | None = None,
    changes: Mapping[str, Any] | None = None,
) -> ComparisonRecipe:
    """The comparison of a TOML file, or of a recipe that comes with losslab.

    Args:
        path_or_name: ``my-comparison.toml``, or a name that `recipe_names` lists.
        size: Which of its sizes; ``small`` if it has that one, else its first.
        data_dir: Where data are read from; None takes the environment's ``LOSSLAB_DATA``.
        changes: Values to change, by key, as ``--set`` does.

    Raises:
        InputError: With file and line, for whatever is wrong.

    Example:
        >>> read_comparison("zh-t4").losses["EL"]
        'encouraging(log_end=1)'
    """
    text = recipe_file(path_or_name)
    if "data" in text.values:
        raise InputError(f"{text.name} is a study; run it with losslab study.")
    text, size = _sized(text, size)
    if changes:
        text = text.changed(changes)
    given = data_dir if data_dir is not None else os.environ.get("LOSSLAB_DATA") or None
    top = text.section(_TOP)
    name = top.string("name")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise top.wrong("name", "letters, digits, '-', '_' and '.' (it names folders)", name)
    rates = _read_rates(top)
    losses, own_losses = read_losses(top, rates, canonical_spec)
    analyses = _read_analyses(top)
    task, options, adversarial, resample = _read_task(top, given)
    metric, selection, margin = _read_decision(top)
    return ComparisonRecipe(
        name=name,
        title=top.string("title"),
        source=top.string("source", ""),
        size=size,
        differs=tuple(top.each("differs", [], str, "text in quotes")),
        seeds=read_seeds(top),
        task=task,
        options=options,
        adversarial=adversarial,
        resample=resample,
        training=_read_training(top),
        losses=losses,
        own_losses=own_losses,
        rates=rates,
        analyses=analyses,
        metric=metric,
        selection=selection,
        margin=margin,
        claims=_read_claims(top, losses, analyses),
        text=text,
    )


def _sized(text: RecipeText, size: str | None) -> tuple[RecipeText, str]:
    """The recipe with the changes of one of its sizes made, each where it was written."""
    sizes = text.section(_TOP).inner("sizes", (), required=False)
    known = list(sizes.values) if sizes else []
    if not known:
        if size is not None:
            raise InputError(f"{text.name} has no sizes, so --size {size} says nothing.")
        return text, ""
    chosen = size or (FIRST if FIRST in known else known[0])
    if chosen not in known:
        raise InputError(
            f"{text.name} has no size {chosen!r}.{nearest(chosen, known)} Its sizes: "
            f"{', '.join(known)}."
        )
    assert sizes is not None
    section = sizes.inner(chosen, ())
    assert section is not None
    values, lines = copy.deepcopy(text.values), dict(text.lines)
    for path, value in _leaves(section.values):
        where: dict[Any, Any] = values
        for part in path[:-1]:
            where = where.setdefault(part, {})
        where[path[-1]] = value
        for at, line in text.lines.items():
            if at[: 2 + len(path)] == ("sizes", chosen, *path):
                lines[at[2:]] = line
    return replace(text, values=values, lines=lines), chosen


def _leaves(values: Mapping[str, Any], before: KeyPath = ()) -> list[tuple[KeyPath, Any]]:
    found: list[tuple[KeyPath, Any]] = []
    for key, value in values.items():
        path = (*before, key)
        found += _leaves(value, path) if isinstance(value, Mapping) else [(path, value)]
    return found


def _read_task(
    top: Section, data_dir: str | Path | None
) -> tuple[str, TaskOptions, str | None, bool]:
    """[task]"""
    section = top.table("task", _TASK)
    given = {key: value for key, value in section.values.items() if key in _TASK[3:]}
    try:
        options = TaskOptions(**{**given, "data_dir": given.get("data_dir", data_dir)})
    except InputError as error:
        raise section.error(None, str(error)) from None
    adversarial = section.string("adversarial", None) if "adversarial" in section.values else None
    resample = section.value("resample", False, bool, "true or false")
    return section.string("name"), options, adversarial, resample


def _read_training(top: Section) -> Training:
    """[training], which may be left out: precision, accumulate, clip."""
    section = top.inner("training", ("precision", "accumulate", "clip"), required=False)
    given = section.values if section else {}
    for key, value in given.items():
        try:
            Training(**{key: value})
        except (InputError, TypeError) as error:
            raise top.error("training", str(error), key) from None
    return Training(**given)


def _read_rates(top: Section) -> dict[str, float]:
    """[rates], which may be left out: factors of the learning rate by label."""
    labels = top.table("losses", ()).values
    section = top.inner("rates", tuple(labels), required=False)
    return {
        label: section.number(label, fits=lambda x: x > 0, expected="a number above 0")
        for label in (section.values if section else ())
        if section is not None
    }


def _read_analyses(top: Section) -> tuple[Request, ...]:
    """analyses = ["calibration", "ood(fashion-mnist)"]"""
    texts = top.each("analyses", [], str, "text such as 'ood(fashion-mnist)'")
    found = []
    for place, text in enumerate(texts):
        try:
            found.append(request(text))
        except InputError as error:
            raise top.error("analyses", str(error), place) from None
    return tuple(found)


def _read_decision(top: Section) -> tuple[str, str, float | None]:
    """[decision], which may be left out."""
    section = top.inner("decision", ("metric", "selection", "margin"), required=False)
    if section is None:
        return "accuracy", "last", None
    margin = None
    if "margin" in section.values:
        margin = section.number("margin", fits=lambda x: x > 0, expected="a number above 0")
    return (
        section.string("metric", "accuracy"),
        section.string("selection", "last", SELECTIONS),
        margin,
    )


def _read_claims(
    top: Section, losses: Mapping[str, str], analyses: tuple[Request, ...]
) -> tuple[Claim, ...]:
    """[[claims]], each a sentence of the source that two values decide."""
    tables = top.each("claims", [], dict, "a table, [[claims]]")
    claims = []
    for place in range(len(tables)):
        section = Section(top.text, ("claims", place), tables[place], _CLAIM)
        labels = tuple(losses)
        loss = section.string("loss", choices=labels)
        value = _value(section, "value", section.string("value"), analyses)
        other = value
        if "against_value" in section.values:
            written = section.string("against_value")
            other = _value(section, "against_value", written, analyses)
        published = section.value("published", None, dict, "a table of numbers by label")
        claims.append(
            Claim(
                text=section.string("text"),
                loss=loss,
                against=section.string("against", labels[0], labels),
                value=value,
                against_value=other,
                expected=section.string("expected", choices=("larger", "smaller")),
                ratio=section.value("ratio", False, bool, "true or false"),
                published=dict(published or {}),
            )
        )
    return tuple(claims)


def _value(section: Section, key: str, name: str, analyses: tuple[Request, ...]) -> str:
    """A claim's value in its canonical spelling."""
    analysis, slash, value = name.rpartition("/")
    if not slash:
        return name  # a metric, perhaps the task's own: known when the task is made
    try:
        asked = request(analysis)
    except InputError as error:
        raise section.error(key, str(error)) from None
    same = [one for one in analyses if one.name == asked.name]
    if not asked.options and len(same) == 1:
        asked = same[0]
    if asked not in analyses:
        raise section.error(
            key,
            f"{name!r} asks for the analysis {analysis!r}, which is not among analyses: "
            f"{', '.join(map(str, analyses)) or 'there are none'}.",
        )
    return f"{asked}/{value}"
