"""Which examples are for training, for validation and for testing, decided by a seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from losslab.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

TEST_FRACTION = 0.2
VALIDATION_FRACTION = 0.2


def stratified_split(
    targets: np.ndarray, fractions: Sequence[float], seed: int
) -> list[np.ndarray]:
    """Indices of disjoint parts that cover all examples: the rest first, then one part a fraction.

    Each class is shuffled by a generator of its own (from ``seed`` and the class number) and dealt
    out in the given fractions, rounded, but with at least one example to every part: scikit-learn's
    stratified splitters do not promise that for a rare class. Because each class has a generator of
    its own, the split of one class does not depend on the others.

    Args:
        targets: Class numbers ``(examples,)``, each class at least ``len(fractions) + 1`` times.
        fractions: Share of each class in the second, third, … part.
        seed: Whole number.

    Returns:
        Ascending indices, first of what the fractions leave over (train), then of each fraction.
    """
    import numpy as np

    parts: list[list[np.ndarray]] = [[] for _ in range(len(fractions) + 1)]
    for c in np.unique(targets):
        members = np.flatnonzero(targets == c)
        members = np.random.default_rng([seed, int(c)]).permutation(members)
        if len(members) < len(parts):
            raise InputError(
                f"class {int(c)} has {len(members)} examples; {len(parts)} splits need at least "
                f"{len(parts)}. Add examples, or leave the class out."
            )
        start = 0
        for k, fraction in enumerate(fractions, start=1):
            left_for_later = len(parts) - k  # one each for the parts after this, and for train
            most = len(members) - start - left_for_later
            size = min(max(1, round(fraction * len(members))), most)
            parts[k].append(members[start : start + size])
            start += size
        parts[0].append(members[start:])
    return [np.sort(np.concatenate(part)) for part in parts]


def keep(targets: np.ndarray, train_size: int | None, seed: int) -> np.ndarray:
    """Indices of ``train_size`` examples, classes in proportion and none lost; None keeps all.

    A larger ``train_size`` keeps every example of a smaller one, up to the rounding of shares.
    """
    import numpy as np

    if train_size is None:
        return np.arange(len(targets))
    classes, counts = np.unique(targets, return_counts=True)
    if not len(classes) <= train_size <= len(targets):
        raise InputError(
            f"train_size must be in {len(classes)}..{len(targets)} (one example a class at least, "
            f"and no more than the training split has); got {train_size}."
        )
    kept = []
    for c, size in zip(classes, _shares(counts, train_size), strict=True):
        members = np.flatnonzero(targets == c)
        kept.append(np.random.default_rng([seed, int(c), 1]).permutation(members)[:size])
    return np.sort(np.concatenate(kept))


def _shares(counts: np.ndarray, total: int) -> np.ndarray:
    """``total`` divided in proportion to ``counts`` by largest remainder, at least one each."""
    import numpy as np

    exact = counts * (total / counts.sum())
    shares = np.maximum(1, np.floor(exact).astype(int))
    while shares.sum() < total:
        shares[np.argmax(np.where(shares < counts, exact - shares, -np.inf))] += 1
    while shares.sum() > total:  # the ones given to rare classes are taken from the common ones
        shares[np.argmax(np.where(shares > 1, shares - exact, -np.inf))] -= 1
    return shares
