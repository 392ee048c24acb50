"""What is measured of a run's examples: names, units, which way is better, and by how much.

The seven of `METRICS` are recorded of every run. A task may record more: one of `MORE`, or a
`Metric` of one's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from losslab.errors import InputError
from losslab.metrics.examples import Examples

UNITS = ("share", "nats", "logits", "")


@dataclass(frozen=True)
class Metric:
    """A number that says how good a model is on a split.

    Args:
        name: In records, tables of runs and options.
        title: For readers.
        better: Whether larger (True) or smaller (False) is better; None: neither, so that
            differences are described and not judged.
        unit: ``"share"`` in [0, 1] (shown in percent), ``"nats"``, ``"logits"``, or none.
        margin: The largest difference not worth having.
        measure: From what `losslab.metrics.examples` keeps of each example to the number; None
            where it is measured otherwise (``Task.model_scores``).
    """

    name: str
    title: str
    better: bool | None = True
    unit: str = "share"
    margin: float = 0.005
    measure: Callable[[Examples], Tensor] | None = None

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise InputError(
                f"Expected a metric's name to be letters, digits and _, but got {self.name!r}."
            )
        if self.unit not in UNITS:
            raise InputError(
                f"Expected the unit of {self.name} to be one of {UNITS}, but got {self.unit!r}."
            )
        if not self.margin > 0:
            raise InputError(
                f"Expected the margin of {self.name} to be above 0, but got {self.margin!r}."
            )

    def measured(self, kept: Examples) -> float:
        """The number, for what was kept of each example."""
        assert self.measure is not None
        return float(self.measure(kept))


def matthews(kept: Examples) -> Tensor:
    """Matthews correlation of predicted and true class, in [−1, 1]; 0 where one is constant.

    For more than two classes its generalisation by Gorodkin (2004), as scikit-learn has it.
    """
    table = confusion(kept).double()
    right, total = table.diagonal().sum(), table.sum()
    true, guessed = table.sum(1), table.sum(0)
    covariance = right * total - true @ guessed
    spread = (total.square() - true @ true) * (total.square() - guessed @ guessed)
    return torch.where(spread > 0, covariance / spread.clamp_min(1e-300).sqrt(), 0.0)


def f1(kept: Examples) -> Tensor:
    """F1 of class 1, as GLUE defines it for two classes; 0 where nothing is or was class 1."""
    return _f1_by_class(kept)[1]


def f1_macro(kept: Examples) -> Tensor:
    """Mean over the classes, of those that occur or were predicted, of their F1."""
    table = confusion(kept)
    present = (table.sum(0) + table.sum(1)) > 0
    return _f1_by_class(kept)[present].mean()


def confusion(kept: Examples) -> Tensor:
    """Counts of examples by true class (rows) and predicted class (columns).

    A row with a NaN, which predicts nothing, counts as a class of its own at the end.
    """
    target, predicted = kept["target"], kept["predicted"]
    classes = int(torch.maximum(target, predicted).max()) + 1
    classes = max(classes, 2)
    if (predicted < 0).any():
        predicted, classes = predicted.where(predicted >= 0, classes), classes + 1
    counts = torch.bincount(target * classes + predicted, minlength=classes**2)
    return counts.view(classes, classes)


def _f1_by_class(kept: Examples) -> Tensor:
    table = confusion(kept).double()
    return 2 * table.diagonal() / (table.sum(0) + table.sum(1)).clamp_min(1)


_SEVEN = (
    Metric("accuracy", "Accuracy"),
    Metric("balanced_accuracy", "Balanced accuracy"),
    Metric("nll", "NLL", False, "nats", 0.01),
    Metric("brier", "Brier", False, "", 0.005),
    Metric("ece", "ECE", False),
    Metric("margin", "Mean margin", None, "logits", 1.0),
    Metric("energy", "Energy", None, "logits", 1.0),
)
METRICS = {metric.name: metric for metric in _SEVEN}
MORE = {
    metric.name: metric
    for metric in (
        Metric("matthews", "Matthews correlation", True, "", 0.01, matthews),
        Metric("f1", "F1", True, "share", 0.005, f1),
        Metric("f1_macro", "F1, mean over classes", True, "share", 0.005, f1_macro),
    )
}
