"""What a comparison consists of: the losses with their controls, and the runs by name."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from losslab.analysis.classifier import Data
from losslab.analysis.request import Request
from losslab.errors import InputError, nearest
from losslab.experiment import records
from losslab.experiment.launch import Training, processes
from losslab.experiment.reading import Reading
from losslab.experiment.records import SELECTIONS
from losslab.experiment.summary import DEFAULT_MARGINS
from losslab.experiment.task import Task, tensors_of

_COUNTS = re.compile(r"\bcounts\s*=\s*train\b")
LossMaker = str | Callable[[], nn.Module]


@dataclass(frozen=True)
class Comparison:
    """What is compared, on what, and where the results go.

    Args:
        task: What is learned.
        losses: ``(label, spec)`` pairs; the first is the baseline. ``counts=train`` in a spec (of
            ``ldam``, ``logit_adjustment``, ``reweighted``) stands for the classes' numbers of
            training examples. Instead of a spec string, a
            function that makes the loss module: its ``spec`` names it in the records (its label
            does where the module's spec is ``"custom"``: a changed function needs another label).
        out: Folder of the comparison; an existing one of the same comparison is continued.
        seeds: One run a loss and seed.
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
    """

    task: Task
    losses: Sequence[tuple[str, LossMaker]]
    out: str | Path
    seeds: Sequence[int]
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
        _choose("metric", self.metric, DEFAULT_MARGINS)
        _choose("selection", self.selection, SELECTIONS)
        if self.margin is not None and not 0 < self.margin < math.inf:
            raise InputError(
                f"Expected margin to be a finite number above 0, but got {self.margin!r}; it is in "
                "the metric's own unit, so half a point of accuracy is 0.005."
            )


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
    """A comparison worked out: its configuration as stored, and its runs by run_id, in order."""

    task: Task
    configuration: dict[str, Any]
    runs: dict[str, tuple[Arm, int]]


def make_plan(comparison: Comparison) -> Plan:
    """The arms with their controls, and the runs, seed by seed; trains nothing."""
    from losslab.experiment.tasks.assemble import with_description

    task = comparison.task
    if "sha256" not in task.description:  # the run_id must notice other data
        task = with_description(task, {})
    losses = [(label, _counted(loss, task)) for label, loss in comparison.losses]
    arms = [_arm(label, loss, comparison.loss_options) for label, loss in losses]
    skipped: dict[str, str] = {}
    if comparison.matched_gradient:
        controls, skipped = _controls(arms, task.epochs)
        arms += controls
    decisive = {
        "task": {**task.description, "name": task.name, "num_classes": task.num_classes},
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
            run = records.run_id(
                {**decisive, "spec": arm.spec, "lr_scale": arm.lr_scale, "seed": seed}
            )
            runs.setdefault(run, (arm, seed))  # one run serves two labels of the same loss
            by_label[arm.label].append(run)
    configuration = {
        "schema": records.SCHEMA,
        **decisive,
        "baseline": arms[0].label,
        "losses": [arm.described() for arm in arms],
        "seeds": list(comparison.seeds),
        "metric": comparison.metric,
        "selection": comparison.selection,
        "margin": comparison.margin or DEFAULT_MARGINS[comparison.metric],
        "matched_gradient": comparison.matched_gradient,
        "skipped_controls": skipped,
        "command": comparison.command,
        "analyses": [str(request) for request in comparison.analyses],
        "source": comparison.source,
        "recipe": comparison.recipe,
        **yardsticks(task),
        "runs": by_label,
    }
    return Plan(task, configuration, runs)


def with_counts(spec: str, counts: Sequence[int]) -> str:
    """A spec with ``counts`` in place of ``counts=train``.

    Example:
        >>> with_counts("logit_adjustment(focal, counts=train)", [90, 10])
        'logit_adjustment(focal, counts=[90, 10])'
    """
    return _COUNTS.sub(f"counts={list(counts)}", spec)


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

    spec = getattr(make(), "spec", "custom")
    return Arm(label, make, f"custom({label})" if spec == "custom" else spec)


def _controls(arms: Sequence[Arm], epochs: int) -> tuple[list[Arm], dict[str, str]]:
    """The matched-gradient controls, and for each loss that cannot have one the reason."""
    baseline, volume = arms[0], _volumes(arms[0], epochs)
    controls, skipped = [], {}
    for arm in arms[1:]:
        ratios = [
            math.nan if mine is None or its is None or its <= 0 else mine / its
            for mine, its in zip(_volumes(arm, epochs), volume, strict=True)
        ]
        if not all(0 < ratio < math.inf for ratio in ratios):
            lacking = baseline.label if None in volume else arm.label
            skipped[arm.label] = (
                f"no matched-gradient control: the gradient volume of {lacking} is not a finite "
                "number above 0"
            )
            continue
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


def _volumes(arm: Arm, epochs: int) -> list[float | None]:
    """The loss's gradient volume at the beginning of every epoch."""
    from losslab.losses.explain import gradient_volume, odds_function

    module = arm.make()
    set_progress = getattr(module, "set_progress", None) or (lambda _: None)
    known: dict[tuple[float, ...], float | None] = {}  # a volume takes as long as a short epoch
    volumes = []
    for epoch in range(epochs):
        set_progress(epoch / epochs)
        psi, exists = odds_function(module)
        if not exists:
            return [None] * epochs
        look = tuple(psi(torch.linspace(-12, 12, 97, dtype=torch.float64)).tolist())
        if look not in known:
            known[look] = gradient_volume(module)
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


def label_counts(task: Task, split: str) -> Tensor:
    """How many rows of a split are of each class, ``(num_classes,)``."""
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
