"""Conditional energies E(y|x) = −z_y: on the data, off the data, and class by class."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from losslab.metrics.checks import finite
from losslab.metrics.distributions import Distribution, distribution
from losslab.metrics.scores import energy, largest_other


class Energies(NamedTuple):
    """Energies over the examples. The difference of the two is the margin.

    Args:
        true: Of the true class: "energy on the data".
        lowest_other: The lowest of the other classes: "energy lowest out-of-data".
    """

    true: Distribution
    lowest_other: Distribution


class ClassEnergies(NamedTuple):
    """E(k|x) averaged over the examples of each true class; C classes, as the logits' columns.

    Args:
        counts: ``(C,)`` int64, examples of each true class; they add up to N.
        table: ``(C, C)`` in float64: ``table[c, k]`` is the mean of E(k|x) = −z_k over the examples
            whose true class is c. A row is a true class, a column the class whose energy it is; the
            diagonal is the energy on the data. It has C rows whichever classes occur: the row of a
            class without examples is NaN throughout.
    """

    counts: Tensor
    table: Tensor


def conditional_energies(logits: Tensor, target: Tensor) -> Energies:
    """Distributions of the true class's energy and of the lowest other energy.

    Their means are the columns "energy on the data" and "energy lowest out-of-data" of Zhao et al.
    2022, table 13; the paper does not say whether the lowest is taken for each example, as here, or
    of the averages of figure 5, which are in `class_energies`.

    Raises:
        InputError: For logits that are not finite, or have one class only.

    Example:
        >>> logits = torch.tensor([[4.0, 1.0, 0.0], [1.0, 3.0, 2.0]])
        >>> found = conditional_energies(logits, torch.tensor([0, 1]))
        >>> found.true.mean, found.lowest_other.mean
        (-3.5, -1.5)
    """
    lowest_other = lowest_other_energy(logits, target)
    return Energies(distribution(energy(logits, target)), distribution(lowest_other))


def lowest_other_energy(logits: Tensor, target: Tensor) -> Tensor:
    """Per example, the lowest energy of the classes that are not the true one, −max_{j≠y} z_j."""
    return -largest_other(*finite(logits, target, classes=2))


def class_energies(logits: Tensor, target: Tensor) -> ClassEnergies:
    """The table behind Zhao et al. 2022, figure 5: how sharp the energy is around each class.

    Args:
        logits: ``(N, C)``.
        target: ``(N,)`` class numbers.

    Returns:
        ``counts`` ``(C,)`` and ``table`` ``(C, C)``, true classes down, classes across; see
        `ClassEnergies`.

    Raises:
        InputError: For logits that are not finite.

    Example: two examples of class 0, none of class 1
        >>> class_energies(torch.tensor([[4.0, 1.0], [2.0, 3.0]]), torch.tensor([0, 0])).table
        tensor([[-3., -2.],
                [nan, nan]], dtype=torch.float64)
    """
    logits, target = finite(logits, target)
    classes = logits.shape[1]
    counts = torch.bincount(target, minlength=classes)
    sums = logits.new_zeros(classes, classes).index_add(0, target, -logits)
    return ClassEnergies(counts, sums / counts[:, None])
