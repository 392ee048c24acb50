"""Accuracy by how many training examples a class has: many, a medium number, few."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from losslab.metrics.catalog import Metric
from losslab.metrics.examples import Examples

MANY, FEW = 100, 20


def shot_metrics(counts: Sequence[int]) -> tuple[Metric, ...]:
    """Accuracy over the classes with more than 100, 20 to 100, and fewer than 20 training examples.

    The thresholds of Liu et al. 2019, which Kang et al. 2020 and Zhao et al. 2022 (table 3) use. A
    group without a class has no metric.
    """
    sizes = torch.tensor(counts)
    groups = {
        "many": ("more than 100", sizes > MANY),
        "medium": ("20 to 100", (sizes <= MANY) & (sizes >= FEW)),
        "few": ("fewer than 20", sizes < FEW),
    }
    return tuple(
        Metric(
            f"accuracy_{name}",
            f"Accuracy, classes of {words}",
            measure=partial(_accuracy_of, inside=inside),
        )
        for name, (words, inside) in groups.items()
        if inside.any()
    )


def _accuracy_of(kept: Examples, inside: Tensor) -> Tensor:
    """Share right of the examples whose class is in the group; NaN if there are none."""
    return kept["correct"][inside[kept["target"]]].double().mean()
