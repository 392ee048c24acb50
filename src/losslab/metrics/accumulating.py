"""The metrics as torchmetrics classes, which take one batch after the other.

    metric = ClasswiseECE(bins=15)
    for inputs, target in loader:
        metric.update(model(inputs), target)
    metric.compute()

Each keeps the numbers of every example that it needs, no others, and computes what the function of
the same name makes of all the examples at once: the same number however they were divided into
batches or, with ``torch.distributed``, over processes. They work in a ``MetricCollection``, where
metrics that keep the same numbers keep them once, and take torchmetrics' own keyword arguments.
What the functions refuse is refused here: bad batches by ``update``, the rest by ``compute``.

Needs torchmetrics: pip install 'losslab[lab]'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from losslab.errors import InputError
from losslab.metrics import calibration, odds, ood, scores
from losslab.metrics.checks import check_tensor, choice, finite, wide
from losslab.metrics.distributions import LEVELS, Distribution, distribution
from losslab.metrics.energies import ClassEnergies as EnergyTable
from losslab.metrics.energies import Energies as EnergySummary
from losslab.metrics.energies import class_energies, lowest_other_energy
from losslab.metrics.temperature import fit_temperature

try:
    from torchmetrics import Metric
    from torchmetrics.utilities.distributed import gather_all_tensors
except ImportError as error:
    raise InputError(
        f"losslab.metrics.accumulating needs torchmetrics, which cannot be imported ({error}): "
        "pip install 'losslab[lab]'. The functions of losslab.metrics do without it."
    ) from None

__all__ = [
    "NLL",
    "Accuracy",
    "BalancedAccuracy",
    "Brier",
    "BrierDecomposition",
    "CalibrationError",
    "ClassEnergies",
    "ClasswiseECE",
    "Energies",
    "GradientShares",
    "LogOdds",
    "Margin",
    "OODDetection",
    "Reliability",
    "TemperatureScaling",
]

# What can be kept of each example, by the name of its state.
_KEPT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "correct": scores.correct,
    "target": lambda logits, target: target.long(),
    "nll": scores.example_nll,
    "brier": scores.example_brier,
    "confidence": lambda logits, target: calibration.confidence(*finite(logits, target)),
    "margin": lambda logits, target: scores.margin(*finite(logits, target, classes=2)),
    "log_odds": lambda logits, target: scores.log_odds(*finite(logits, target, classes=2)),
    "energy": lambda logits, target: scores.energy(*finite(logits, target, classes=2)),
    "lowest_other_energy": lowest_other_energy,
    "logits": lambda logits, target: (finite(logits, target), logits)[1],
}


_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class _PerExample(Metric):
    """Numbers of every example, kept by name, and what they come to."""

    is_differentiable = False
    higher_is_better: bool | None = None
    full_state_update = False
    keeps: ClassVar[tuple[str, ...]]
    target_dtype: ClassVar[torch.dtype] = torch.long
    value: Callable[..., Any]  # the metric, from the kept numbers of all examples

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in self.keeps:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Take a batch: logits ``(N, C)``, class numbers ``(N,)``."""
        self._append({name: _KEPT[name](logits, target) for name in self.keeps})

    def compute(self) -> Any:
        """The metric of all the examples so far."""
        return self.value(*(self._all(name) for name in self.keeps))

    def _append(self, numbers: dict[str, Tensor]) -> None:
        for name, values in numbers.items():
            getattr(self, name).append(values.detach())

    def _all(self, name: str) -> Tensor:
        values = getattr(self, name)
        if not len(values):
            raise InputError(f"{type(self).__name__} has had no examples: call update first.")
        if isinstance(values, Tensor):  # gathered from several processes
            return values
        classes = sorted({batch.shape[1] for batch in values if batch.ndim == 2})
        if len(classes) > 1:
            raise InputError(
                f"Expected all batches to have the same classes, but their logits have {classes}."
            )
        return torch.cat(values)

    def _sync_dist(
        self, dist_sync_fn: Callable = gather_all_tensors, process_group: Any | None = None
    ) -> None:
        """Gather the examples of all processes, of which some may have had none."""
        form = torch.tensor(self._form(), device=self.device)
        forms = dist_sync_fn(form, group=process_group or self.process_group)
        classes, dtype = max(found.tolist() for found in forms)
        if classes and not self._form()[0]:  # a row of the others' form, and none of it
            row = torch.zeros(1, classes, dtype=_DTYPES[dtype], device=self.device)
            type(self).update(self, row, torch.zeros(1, dtype=self.target_dtype, device=row.device))
            for name in self.keeps:
                setattr(self, name, [values[:0] for values in getattr(self, name)])
        super()._sync_dist(dist_sync_fn, process_group)

    def _form(self) -> tuple[int, int]:
        """Classes and dtype of the logits that are kept (any, if others are), or (0, 0)."""
        values = getattr(self, self.keeps[0])
        if not values:
            return 0, 0
        first = values[0]
        return (first.shape[1], _DTYPES.index(first.dtype)) if first.ndim == 2 else (2, 2)


class _AllTogether(_PerExample):
    """A metric that a single batch may not have: calling it takes the batch and returns None."""

    def forward(self, *args: Any, **kwargs: Any) -> None:
        self.update(*args, **kwargs)


class Accuracy(_PerExample):
    """:func:`losslab.metrics.accuracy`; a row with a NaN is wrong."""

    higher_is_better = True
    keeps = ("correct",)

    def value(self, correct: Tensor) -> Tensor:
        return scores.share_right(correct)


class BalancedAccuracy(_PerExample):
    """:func:`losslab.metrics.balanced_accuracy`; a row with a NaN is wrong."""

    higher_is_better = True
    keeps = ("correct", "target")

    def value(self, correct: Tensor, target: Tensor) -> Tensor:
        return scores.mean_recall(correct, target)


class NLL(_PerExample):
    """:func:`losslab.metrics.nll`."""

    higher_is_better = False
    keeps = ("nll",)

    def value(self, nll: Tensor) -> Tensor:
        return nll.mean()


class Brier(_PerExample):
    """:func:`losslab.metrics.brier`."""

    higher_is_better = False
    keeps = ("brier",)

    def value(self, brier: Tensor) -> Tensor:
        return brier.mean()


class _Binned(_PerExample):
    """A metric of bins of probabilities."""

    higher_is_better: bool | None = False

    def __init__(
        self, bins: int = calibration.BINS, *, binning: str = "width", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        calibration.check_bins(bins, binning)
        self.bins, self.binning = bins, binning


class Reliability(_Binned):
    """:func:`losslab.metrics.reliability`, for finite logits."""

    higher_is_better = None
    keeps = ("confidence", "correct")

    def value(self, confidence: Tensor, correct: Tensor) -> calibration.Reliability:
        return calibration.diagram(confidence, correct, self.bins, self.binning)


class CalibrationError(_Binned):
    """:func:`losslab.metrics.calibration_error`; ``bins=15`` of equal width make it the ECE."""

    keeps = ("confidence", "correct")

    def __init__(self, bins: int = calibration.BINS, *, norm: str = "l1", **kwargs: Any) -> None:
        super().__init__(bins, **kwargs)
        self.norm = choice(norm, "norm", calibration.NORMS)

    def value(self, confidence: Tensor, correct: Tensor) -> Tensor:
        table = calibration.diagram(confidence, correct, self.bins, self.binning)
        return calibration.gap(table, self.norm)


class ClasswiseECE(_Binned):
    """:func:`losslab.metrics.classwise_ece`."""

    keeps = ("logits", "target")

    def __init__(
        self, bins: int = calibration.BINS, *, per_class: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(bins, **kwargs)
        self.per_class = per_class

    def value(self, logits: Tensor, target: Tensor) -> Tensor:
        return calibration.classwise_ece(
            logits, target, self.bins, binning=self.binning, per_class=self.per_class
        )


class BrierDecomposition(_Binned):
    """:func:`losslab.metrics.brier_decomposition`."""

    higher_is_better = None
    keeps = ("logits", "target")

    def value(self, logits: Tensor, target: Tensor) -> calibration.BrierDecomposition:
        return calibration.brier_decomposition(logits, target, self.bins, binning=self.binning)


class Margin(_PerExample):
    """The distribution of :func:`losslab.metrics.margin`; larger is neither better nor worse."""

    keeps = ("margin",)

    def __init__(self, levels: Sequence[float] = LEVELS, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.levels = tuple(levels)

    def value(self, margin: Tensor) -> Distribution:
        return distribution(margin, self.levels)


class LogOdds(Margin):
    """The distribution of :func:`losslab.metrics.log_odds`, the margin in log-odds."""

    keeps = ("log_odds",)


class Energies(_PerExample):
    """:func:`losslab.metrics.conditional_energies`."""

    keeps = ("energy", "lowest_other_energy")

    def value(self, energy: Tensor, lowest_other_energy: Tensor) -> EnergySummary:
        return EnergySummary(distribution(energy), distribution(lowest_other_energy))


class ClassEnergies(_PerExample):
    """:func:`losslab.metrics.class_energies`."""

    keeps = ("logits", "target")

    def value(self, logits: Tensor, target: Tensor) -> EnergyTable:
        return class_energies(logits, target)


class GradientShares(_PerExample):
    """:func:`losslab.metrics.gradient_shares` of the log-odds of all examples under ``loss``."""

    keeps = ("log_odds",)

    def __init__(
        self,
        loss: nn.Module | str | odds.Psi,
        *,
        edges: Sequence[float] = odds.BANDS,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        odds.psi_of(loss)
        odds.checked_edges(edges)
        self.loss, self.edges = loss, tuple(edges)

    def value(self, log_odds: Tensor) -> odds.GradientShares:
        return odds.gradient_shares(log_odds, self.loss, edges=self.edges)


class TemperatureScaling(_AllTogether):
    """:func:`losslab.metrics.fit_temperature` on all the (validation) examples, as a tensor."""

    keeps = ("logits", "target")

    def value(self, logits: Tensor, target: Tensor) -> Tensor:
        found = fit_temperature(logits, target)
        return torch.tensor(found, dtype=wide(logits), device=logits.device)


class OODDetection(_AllTogether):
    """:func:`losslab.metrics.ood.detect`: every score under every measure.

    ``update(logits, is_out)`` takes batches of either kind, in any order: ``is_out`` says of each
    row, or with one bool of the whole batch, whether it is from outside the distribution.
    """

    keeps = (*ood.SCORES, "is_out")
    target_dtype = torch.bool

    def update(self, logits: Tensor, is_out: Tensor | bool) -> None:
        """Take a batch: logits ``(N, C)``, and which rows are out of distribution."""
        found = ood.scores(logits)
        if isinstance(is_out, bool):
            is_out = torch.full(logits.shape[:1], is_out, device=logits.device)
        check_tensor(is_out, "is_out", "bools, one an example, or one bool")
        if is_out.dtype != torch.bool or is_out.shape != logits.shape[:1]:
            raise InputError(
                f"Expected is_out to be one bool, or ({len(logits)},) bools, True for an example "
                f"from outside the distribution, but got {tuple(is_out.shape)} {is_out.dtype}."
            )
        self._append({**found, "is_out": is_out})

    def value(self, *kept: Tensor) -> dict[str, float]:
        *numbers, is_out = kept
        ood.refuse_one_sided(int((~is_out).sum()), int(is_out.sum()))
        inside = {name: s[~is_out] for name, s in zip(ood.SCORES, numbers, strict=True)}
        outside = {name: s[is_out] for name, s in zip(ood.SCORES, numbers, strict=True)}
        return ood.judged(inside, outside)
