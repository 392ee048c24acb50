"""What a comparison consists of: the losses with their controls, and the runs by name."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from losslab.analysis.classifier import Data
from losslab.analysis.request import Request
from losslab.errors import InputError, nearest
from losslab.experiment import records
from losslab.experiment.labels import label_counts
from losslab.experiment.launch import Training, processes
from losslab.experiment.records import SELECTIONS
from losslab.experiment.summary import stored
from losslab.experiment.task import Task
from losslab.metrics import METRICS, Metric
from losslab.reading import Reading

_COUNTS = re.compile(r"\bcounts\s*=\s*train\b")
_UNNAMED = re.compile(r"\bcustom\b(?!\()")  # a part that no spec tells
LossMaker = str | Callable[[], nn.Module]


@dataclass(frozen=True)
class Comparison:
    """What is compared, on what, and where the results go.

    Args:
        task: What is learned.
        losses: ``(label, spec)`` pairs; the first is the baseline. ``counts=train`` in a spec (of
            ``ldam``, ``logit_adjustment``, ``reweighted``) stands for the classes' numbers of
            training examples. Instead of a spec string, a
            function that makes the loss module: its ``spec`` names it in the records, or else the
            module's (its label does where that has a part ``custom``: a changed function needs
            another label).
        out: Folder of the comparison; an existing one of the same comparison is continued.
        seeds: One run a loss and seed.
        rates: Factors of the learning rate by label, for losses that take another than the task's.
        matched_gradient: Add, for each loss, the baseline at learning rate × V_loss/V_baseline,
            with V the volume ∫|∂L/∂z_y| dp of the loss's gradients: does the loss help, or a larger
            step?
        metric, selection: What the headline verdicts are about.
        margin: The largest difference not worth having, in the metric's unit (accuracy 0.005 = half
            a point); None takes the metric's default.
        device: Where to train.
        loss_options: Options of every loss made from a spec, such as ``{"label_smoothing": 0.1}``.
        command: The command line that repeats this, for the report.
        training: Precision, accumulation, clipping, and how often runs are kept as they go.
        analyses: What is asked of every trained model, beyond the metrics; decides no number.
        keep_models: Keep the trained models in the folder (as analyses do), for later ones.
        data_by_name: Other data that analyses may ask for by name, for OOD detection.
        source: How the task was made, for `losslab analyse`: the text after ``--task``, and the
            options.
        recipe: The recipe that it was made from: its name, source and claims.
        task_of: Makes the task of a seed, where each seed is to draw a split of its own: then the
            differences vary with the split as well, as the papers' over random splits do. ``task``
            must be one of them. None: all seeds share ``task``, and its split.
    """

    task: Task
    losses: Sequence[tuple[str, LossMaker]]
    out: str | Path
    seeds: Sequence[int]
    rates: Mapping[str, float] = field(default_factory=dict)
    matched_gradient: bool = False
    metric: str = "accuracy"
    selection: str = "last"
    margin: float | None = None
    device: str = "cpu"
    loss_options: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    training: Training = field(default_factory=Training)
    analyses: Sequence[Request] = ()
    keep_models: bool = False
    data_by_name: Callable[[str], Data] | None = None
    source: Mapping[str, Any] | None = None
    recipe: Mapping[str, Any] | None = None
    task_of: Callable[[int], Task] | None = None

    def __post_init__(self) -> None:
        labels = [label for label, _ in self.losses]
        if len(labels) < 2:
            raise InputError(
                f"Expected a baseline and at least one loss to compare with it, but got {labels}; "
                "name one more loss."
            )
        _refuse_repeated("loss label", labels, "give each loss a label of its own")
        _refuse_repeated("seed", list(self.seeds), "name each seed once")
        if not self.seeds or not all(type(seed) is int and seed >= 0 for seed in self.seeds):
            raise InputError(
                f"Expected the seeds to be whole numbers of at least 0, but got {self.seeds!r}."
            )
        for label, rate in self.rates.items():
            _choose("the labels of rates", label, labels)
            if not 0 < rate < math.inf:
                raise InputError(
                    f"Expected the rate of {label!r} to be a finite number above 0, a factor of "
                    f"the learning rate, but got {rate!r}."
                )
        _choose("metric", self.metric, self.judged)
        _choose("selection", self.selection, SELECTIONS)
        asked_once = [row.name for row in self.task.metrics if row.measure is None]
        if self.metric in asked_once and self.selection != "last":
            raise InputError(
                f"Expected the selection 'last' with the metric {self.metric!r}, which is measured "
                f"of the finished model alone, but got {self.selection!r}; leave the selection out."
            )
        if self.margin is not None and not 0 < self.margin < math.inf:
            raise InputError(
                f"Expected margin to be a finite number above 0, but got {self.margin!r}; it is in "
                "the metric's own unit, so half a point of accuracy is 0.005."
            )

    @property
    def judged(self) -> dict[str, Metric]:
        """The metrics of which one way is better, by name."""
        rows = (*METRICS.values(), *self.task.metrics)
        return {row.name: row for row in rows if row.better is not None}


@dataclass(frozen=True)
class Arm:
    """One row of the comparison: a loss, or a control, at a scale of the learning rate.

    ``lr_scale`` is a number, or one number an epoch where a schedule moves the loss's gradients.
    """

    label: str
    make: Callable[[], nn.Module]
    spec: str
    role: str = "loss"
    control_for: str | None = None
    lr_scale: float | tuple[float, ...] = 1.0

    def described(self) -> dict[str, Any]:
        """The arm as the records hold it."""
        names = ("label", "spec", "role", "control_for", "lr_scale")
        return {name: getattr(self, name) for name in names}

    @property
    def scale(self) -> float | Callable[[float], float]:
        """The learning rate's scale: a number, or a function of the training done."""
        return self.lr_scale if isinstance(self.lr_scale, float) else self.scale_at

    def scale_at(self, progress: float) -> float:
        """The learning rate's scale when the fraction ``progress`` of the training is done."""
        if isinstance(self.lr_scale, float):
            return self.lr_scale
        epochs = len(self.lr_scale)
        return self.lr_scale[min(int(progress * epochs + 1e-9), epochs - 1)]


@dataclass(frozen=True)
class Plan:
    """A comparison worked out: its configuration as stored, and its runs by run_id, in order.

    ``tasks`` has each seed's task: the same one, unless every seed draws a split of its own.
    """

    tasks: dict[int, Task]
    configuration: dict[str, Any]
    runs: dict[str, tuple[Arm, int]]

    @property
    def task(self) -> Task:
        """The first seed's task; in all but its split it is everybody's."""
        return next(iter(self.tasks.values()))

    @property
    def resampled(self) -> bool:
        """Whether every seed has a split of its own."""
        return len({id(task) for task in self.tasks.values()}) > 1


def make_plan(comparison: Comparison) -> Plan:
    """The arms with their controls, and the runs, seed by seed; trains nothing."""
    tasks = _tasks(comparison)
    task = tasks[comparison.seeds[0]]
    losses = [(label, _counted(loss, task)) for label, loss in comparison.losses]
    arms = [
        replace(
            _arm(label, loss, comparison.loss_options),
            lr_scale=float(comparison.rates.get(label, 1.0)),
        )
        for label, loss in losses
    ]
    skipped: dict[str, str] = {}
    if comparison.matched_gradient:
        controls, skipped = _controls(arms, task.epochs)
        arms += controls
    described = {
        seed: {**one.description, "name": one.name, "num_classes": one.num_classes}
        for seed, one in tasks.items()
    }
    decisive = {
        "settings": {
            "epochs": task.epochs,
            "batch_size": task.batch_size,
            "device": torch.device(comparison.device).type,
            "loss_options": dict(comparison.loss_options),
            **({} if task.patience is None else {"patience": task.patience}),
            **({} if task.attack is None else {"attack": task.attack.settings()}),
            **({} if type(task.reading) is Reading else {"reading": task.reading.described()}),
            **({} if task.average == 1 else {"average": task.average}),
            **comparison.training.settings(),
            **({} if processes() == 1 else {"processes": processes()}),
        },
    }
    runs: dict[str, tuple[Arm, int]] = {}
    by_label: dict[str, list[str]] = {arm.label: [] for arm in arms}
    for seed in comparison.seeds:
        for arm in arms:
            own = {"spec": arm.spec, "lr_scale": arm.lr_scale, "seed": seed}
            run = records.run_id({"task": described[seed], **decisive, **own})
            runs.setdefault(run, (arm, seed))  # one run serves two labels of the same loss
            by_label[arm.label].append(run)
    configuration = {
        "schema": records.SCHEMA,
        "task": described[comparison.seeds[0]]
        if comparison.task_of is None
        else {**_shared(described), "resampled": True},
        **decisive,
        "baseline": arms[0].label,
        "losses": [arm.described() for arm in arms],
        "seeds": list(comparison.seeds),
        "metric": comparison.metric,
        "selection": comparison.selection,
        "margin": comparison.margin or comparison.judged[comparison.metric].margin,
        **({"metrics": [stored(row) for row in task.metrics]} if task.metrics else {}),
        "matched_gradient": comparison.matched_gradient,
        "skipped_controls": skipped,
        "command": comparison.command,
        "analyses": [str(request) for request in comparison.analyses],
        "source": comparison.source,
        "recipe": comparison.recipe,
        **_yardsticks(tasks),
        "runs": by_label,
    }
    return Plan(tasks, configuration, runs)


def _tasks(comparison: Comparison) -> dict[int, Task]:
    """Each seed's task, described in full, so that the run_id notices other data."""
    from losslab.experiment.tasks.assemble import with_description

    def described(task: Task) -> Task:
        return task if "sha256" in task.description else with_description(task, {})

    if comparison.task_of is None:
        return dict.fromkeys(comparison.seeds, described(comparison.task))
    return {seed: described(comparison.task_of(seed)) for seed in comparison.seeds}


def _shared(described: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """What the tasks of all seeds, also of those to come, have in common."""
    first, *others = described.values()
    return {
        key: value
        for key, value in first.items()
        if key not in ("sha256", "split") and all(o.get(key) == value for o in others)
    }


def _yardsticks(tasks: Mapping[int, Task]) -> dict[str, Any]:
    """`yardsticks` of a comparison: their means over the seeds' splits."""
    different = {id(task): task for task in tasks.values()}
    found = [yardsticks(task) for task in different.values()]
    if len(found) == 1:
        return found[0]
    return {
        kind: {
            name: math.fsum(one[kind][name] for one in found) / len(found)
            for name in found[0][kind]
            if name != "class"
        }
        for kind in found[0]
    }


def with_counts(spec: str, counts: Sequence[int]) -> str:
    """A spec with ``counts`` in place of ``counts=train``.

    Example:
        >>> with_counts("logit_adjustment(focal, counts=train)", [90, 10])
        'logit_adjustment(focal, counts=[90, 10])'
    """
    return _COUNTS.sub(f"counts={list(counts)}", spec)


def canonical_spec(spec: str) -> str:
    """The canonical spelling of a spec; one with ``counts=train`` is checked and stays as it is."""
    import losslab

    tried = with_counts(spec, [1, 1])
    canonical: str = losslab.loss(tried).spec  # type: ignore[assignment]
    return canonical if tried == spec else spec.strip()


def _counted(loss: LossMaker, task: Task) -> LossMaker:
    if not isinstance(loss, str) or not _COUNTS.search(loss):
        return loss
    return with_counts(loss, label_counts(task, "train").tolist())


def _arm(label: str, loss: LossMaker, options: Mapping[str, Any]) -> Arm:
    def make() -> nn.Module:
        if callable(loss):
            return loss()
        import losslab

        return losslab.loss(loss, **options)

    spec = str(getattr(loss, "spec", None) or getattr(make(), "spec", "custom"))
    return Arm(label, make, f"custom({label})" if _UNNAMED.search(spec) else spec)


def _controls(arms: Sequence[Arm], epochs: int) -> tuple[list[Arm], dict[str, str]]:
    """The matched-gradient controls, and for each loss that cannot have one the reason."""
    baseline, volume = arms[0], _volumes(arms[0], epochs)
    controls, skipped = [], {}
    for arm in arms[1:]:
        rate = arm.lr_scale if isinstance(arm.lr_scale, float) else 1.0
        own = _volumes(arm, epochs)
        if lacking := _lacking(baseline.label, volume) or _lacking(arm.label, own):
            skipped[arm.label] = f"no matched-gradient control: {lacking}"
            continue
        ratios = [mine / its * rate for mine, its in zip(own, volume, strict=True)]
        scales = tuple(float(f"{ratio:.6g}") for ratio in ratios)  # the same on every machine
        controls.append(
            Arm(
                f"{baseline.label}, lr matched to {arm.label}",
                baseline.make,
                baseline.spec,
                "control",
                arm.label,
                scales[0] if len(set(scales)) == 1 else scales,
            )
        )
    return controls, skipped


def _lacking(label: str, volumes: Sequence[float]) -> str:
    """Why these volumes have no ratio to others, or ``""``."""
    if any(math.isnan(volume) for volume in volumes):
        return f"{label} is not known as a function of p alone, so it has no gradient volume"
    if not all(0 < volume < math.inf for volume in volumes):
        return f"the gradient volume of {label} is not a finite number above 0"
    return ""


def _volumes(arm: Arm, epochs: int) -> list[float]:
    """The loss's gradient volume at the beginning of every epoch; NaN where it is not ψ(a)."""
    from losslab.losses.explain import gradient_volume, odds_function

    module = arm.make()
    set_progress = getattr(module, "set_progress", None) or (lambda _: None)
    known: dict[tuple[float, ...], float] = {}  # a volume takes as long as a short epoch
    volumes = []
    for epoch in range(epochs):
        set_progress(epoch / epochs)
        psi, exists = odds_function(module)
        if not exists:
            return [math.nan] * epochs
        look = tuple(psi(torch.linspace(-12, 12, 97, dtype=torch.float64)).tolist())
        if look not in known:
            found = gradient_volume(module)
            assert found is not None  # it is ψ(a)
            known[look] = found
        volumes.append(known[look])
    return volumes


def yardsticks(task: Task) -> dict[str, Any]:
    """What the verdicts need to know of the test set.

    ``chance``: what a model scores that always answers the most frequent training class, which is
    what a diverged run counts for. ``resolution``: the smallest step of a metric, one test example.
    """
    train, counts = (label_counts(task, split) for split in ("train", "test"))
    commonest, present = int(train.argmax()), int((counts > 0).sum())
    right = int(counts[commonest])
    return {
        "chance": {
            "class": commonest,
            "accuracy": right / int(counts.sum()),
            "balanced_accuracy": 1 / present if right else 0.0,
        },
        "resolution": {
            "accuracy": 1 / int(counts.sum()),
            "balanced_accuracy": 1 / int(present * counts.max()),
        },
    }


def _refuse_repeated(what: str, values: Sequence[Any], remedy: str) -> None:
    repeated = sorted({value for value in values if values.count(value) > 1})
    if repeated:
        raise InputError(f"Expected each {what} once, but got {repeated[0]!r} again; {remedy}.")


def _choose(what: str, value: str, known: Sequence[str] | Mapping[str, Any]) -> None:
    if value not in known:
        raise InputError(
            f"Expected {what} to be one of {', '.join(known)}, but got {value!r}."
            f"{nearest(value, known)}"
        )
