"""What a classifier's logits are worth: functions of ``(logits, target)``, computed in float64.

``logits`` has one row an example and one column a class, ``(N, C)``; ``target`` holds the true
classes, ``(N,)`` whole numbers in ``[0, C)``. Whatever the dtype that comes in, the arithmetic is
done in float64 (float32 where a device has no float64), because a well-trained model's
probabilities differ from 1 by less than float32 can say.

==================== ============================================== =============
name                 what it is                                     better
==================== ============================================== =============
`accuracy`           share of examples whose largest logit is right larger
`balanced_accuracy`  mean over the classes of their recall          larger
`nll`                mean of −log p(true class), in nats            smaller
`brier`              Σ over classes of (p − truth)², mean over rows smaller, in [0, 2]
`ece`                |accuracy − confidence|, averaged over bins    smaller
`margin`             z_y − the largest other logit                  descriptive
`energy`             −z_y, the conditional energy of the true class descriptive
==================== ============================================== =============

`evaluate` measures these seven, which every run records. Beside them: `margins` and
`gradient_shares` (odds.py), `conditional_energies` and `class_energies` (energies.py),
`calibration_error`, `classwise_ece`, `brier_decomposition` and `reliability` (calibration.py),
`fit_temperature` (temperature.py), and out-of-distribution detection (``metrics.ood``). The same as
torchmetrics classes, which accumulate over batches: :mod:`losslab.metrics.accumulating`.
docs/metrics.md explains each number.
"""

from __future__ import annotations

from torch import Tensor

from losslab.metrics import ood
from losslab.metrics.calibration import (
    BINS,
    BrierDecomposition,
    Reliability,
    brier_decomposition,
    calibration_error,
    classwise_ece,
    diagram,
    ece,
    reliability,
)
from losslab.metrics.catalog import METRICS, MORE, Metric
from losslab.metrics.distributions import Distribution, Histogram, distribution, histogram
from losslab.metrics.energies import (
    ClassEnergies,
    Energies,
    class_energies,
    conditional_energies,
    lowest_other_energy,
)
from losslab.metrics.examples import Examples, evaluate_examples, examples, joined
from losslab.metrics.odds import BANDS, GradientShares, Margins, gradient_shares, margins
from losslab.metrics.scores import (
    accuracy,
    balanced_accuracy,
    brier,
    correct,
    energy,
    log_odds,
    margin,
    nll,
)
from losslab.metrics.temperature import fit_temperature

__all__ = [
    "BANDS",
    "BINS",
    "METRICS",
    "MORE",
    "BrierDecomposition",
    "ClassEnergies",
    "Distribution",
    "Energies",
    "Examples",
    "GradientShares",
    "Histogram",
    "Margins",
    "Metric",
    "Reliability",
    "accuracy",
    "balanced_accuracy",
    "brier",
    "brier_decomposition",
    "calibration_error",
    "class_energies",
    "classwise_ece",
    "conditional_energies",
    "correct",
    "diagram",
    "distribution",
    "ece",
    "energy",
    "evaluate",
    "evaluate_examples",
    "examples",
    "fit_temperature",
    "gradient_shares",
    "histogram",
    "joined",
    "log_odds",
    "lowest_other_energy",
    "margin",
    "margins",
    "nll",
    "ood",
    "reliability",
]


def evaluate(logits: Tensor, target: Tensor) -> dict[str, float]:
    """Every metric of `METRICS` at once, as plain numbers; margin and energy are means.

    Example:
        >>> import torch
        >>> scores = evaluate(torch.tensor([[2.0, 0.0], [1.0, 3.0]]), torch.tensor([0, 0]))
        >>> scores["accuracy"], scores["margin"]
        (0.5, 0.0)
    """
    return evaluate_examples(examples(logits, target))
