"""What the values of analyses are called, how they are written, and which of them tell the most."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from losslab.report.numbers import NONE, finite

MOST = 6
"""Values of one analysis that a terminal shows."""

_HEADLINES: dict[str, tuple[tuple[str, int], ...]] = {  # patterns of names, and how many of each
    "margins": (("logits.*", 3), ("log_odds.*", 3)),
    "energies": (("true", 1), ("lowest_other", 1), ("gap", 1)),
    "gradients": (("right", 1), ("mean", 1)),
    "calibration": (
        ("ece", 1),
        ("brier", 1),
        ("nll", 1),
        ("temperature", 1),
        ("scaled.ece", 1),
        ("scaled.nll", 1),
    ),
    "generalisation": (("*.accuracy", 3), ("*.nll", 3)),
    "ood": (
        ("*auroc.min_energy", 2),
        ("*fpr95.min_energy", 2),
        ("*auroc.max_probability", 1),
        ("*auroc.free_energy", 1),
    ),
    "robustness": (
        ("accuracy.clean", 1),
        ("worst.linf.*", 3),
        ("worst.l2.*", 1),
        ("zero_gradient.cross_entropy", 1),
    ),
    "representation": (
        ("retrained.accuracy_before", 1),
        ("retrained.accuracy", 1),
        ("probe.accuracy", 1),
        ("retrained.nll", 1),
    ),
    "curvature": (
        ("hessian.trace", 1),
        ("hessian.top", 1),
        ("noise.trace", 1),
        ("escaping.trace", 1),
        ("escaping.matched", 1),
        ("escaping.alignment", 1),
    ),
    "dynamics": (
        ("test.right", 1),
        ("test.wrong_above", 1),
        ("test.wrong_below", 1),
        ("test.forgotten", 1),
        ("train.wrong_below", 1),
        ("gap.accuracy", 1),
    ),
}

_TITLES = {
    "energies": {
        "true": "energy of the true class",
        "lowest_other": "lowest energy of the others",
        "gap": "gap between the two",
    },
    "gradients": {"mean": "mean |∂L/∂z_y|", "right": "gradient from p > ½"},
    "representation": {
        "retrained.accuracy_before": "accuracy before",
        "retrained.accuracy": "accuracy, layer retrained",
        "retrained.nll": "NLL, layer retrained",
        "probe.accuracy": "accuracy, linear probe",
    },
    "curvature": {
        "gradient_norm": "‖∇L‖",
        "hessian.trace": "Tr H",
        "hessian.top": "H, largest eigenvalue",
        "hessian.bottom": "H, smallest eigenvalue",
        "noise.trace": "Tr Σ",
        "escaping.trace": "Tr(HΣ)",
        "escaping.matched": "Tr(HΣ) at V = ½",
        "escaping.alignment": "P·Tr(HΣ)/(Tr H·Tr Σ)",
    },
}
_WORDS = {
    "ece": "ECE",
    "adaptive_ece": "adaptive ECE",
    "rms_ce": "RMS calibration error",
    "max_ce": "largest calibration error",
    "classwise_ece": "class-wise ECE",
    "brier": "Brier",
    "nll": "NLL",
    "negative": "share below 0",
    "log_odds": "log-odds",
    "cross_entropy": "cross-entropy",
    "auroc": "AUROC",
    "fpr95": "FPR95",
    "aupr_in": "AUPR in",
    "aupr_out": "AUPR out",
    "min_energy": "lowest energy",
    "max_probability": "max p",
    "fgsm": "FGSM",
    "pgd_linf": "PGD L∞",
    "pgd_l2": "PGD L2",
    "square_linf": "Square L∞",
    "square_l2": "Square L2",
    "autoattack_linf": "AutoAttack L∞",
    "autoattack_l2": "AutoAttack L2",
    "linf": "L∞",
    "worst": "worst case",
    "l2": "L2",
    "right": "kept right",
    "wrong_above": "rescued (p not low)",
    "wrong_below": "rescued (p low)",
}
_RADIUS = re.compile(r"(?P<name>.*?)\.(?P<radius>\d+(?:\.\d+)?(?:e[+-]?\d+)?|huge)")


def headline(analysis: str, names: Iterable[str]) -> list[str]:
    """The values that tell the most, at most `MOST`; of an unknown analysis the first ones.

    Example:
        >>> headline("robustness", ["worst.linf.0.1", "accuracy.clean", "accuracy.fgsm.log_odds.1"])
        ['accuracy.clean', 'worst.linf.0.1']
    """
    names = list(names)
    chosen: list[str] = []
    for pattern, most in _HEADLINES.get(analysis, ()):
        matching = [name for name in names if fnmatchcase(name, pattern) and name not in chosen]
        chosen += _spread(matching, most)
    return chosen[:MOST] or names[:MOST]


def _spread(names: Sequence[str], most: int) -> list[str]:
    """At most so many of them, evenly apart, the first included; one alone from the middle."""
    if len(names) <= most:
        return list(names)
    if most == 1:
        return [names[len(names) // 2]]
    return [names[round(i * (len(names) - 1) / (most - 1))] for i in range(most)]


def title(analysis: str, name: str) -> str:
    """A value's name for people: ``accuracy · PGD L∞ · log-odds · ε 0.1``.

    Example:
        >>> title("calibration", "scaled.ece"), title("robustness", "worst.l2.0.3")
        ('scaled · ECE', 'worst case · L2 · ε 0.3')
    """
    known = _TITLES.get(analysis, {}).get(name)
    if known:
        return known
    found = _RADIUS.fullmatch(name) if analysis == "robustness" else None
    parts = (found["name"] if found else name).split(".")
    words = [word(part) for part in parts]
    return " · ".join([*words, f"ε {found['radius']}"] if found else words)


def word(part: str) -> str:
    """One part of a dotted name for people: ``PGD L∞`` for ``pgd_linf``."""
    return _WORDS.get(part, part.replace("_", " "))


@dataclass(frozen=True)
class Written:
    """One value of an analysis, and how it is written, alike for all losses.

    ``digits`` stand after the point; None: three significant ones, where the losses lie so far
    apart, or so far from 1, that the same place does not suit them all.
    """

    name: str
    title: str
    unit: str
    digits: int | None
    better: bool | None

    @property
    def heading(self) -> str:
        """Title with its unit: ``ECE, %``."""
        return f"{self.title}, {self._own_unit}" if self._own_unit else self.title

    @property
    def _own_unit(self) -> str:
        return "%" if self.unit == "points" else self.unit

    @property
    def short_unit(self) -> str:
        """The unit of a difference: ``pp`` for percentage points."""
        return "pp" if self.unit == "points" else self.unit

    @property
    def direction(self) -> str:
        """Which way is good, as a sign: ``↑`` higher, ``↓`` lower, nothing for neither."""
        return "" if self.better is None else "↑" if self.better else "↓"

    @property
    def direction_text(self) -> str:
        """Which way is good, in words."""
        return {True: "higher is better", False: "lower is better", None: ""}[self.better]

    def text(self, value: Any) -> str:
        """The value without its unit: ``97.40``."""
        number = finite(value)
        return NONE if number is None else self._number(number, "").replace("-", "−")

    def mean_sd(self, entry: Mapping[str, Any]) -> str:
        """``97.40 ± 0.31``; the mean alone of one run."""
        mean = self.text(entry.get("mean"))
        several = mean != NONE and finite(entry.get("sd")) is not None
        return f"{mean} ±\u00a0{self.text(entry['sd'])}" if several else mean

    def difference(self, value: Any) -> str:
        """A signed difference: ``+0.53``; ``0.00`` has no sign."""
        number = finite(value)
        if number is None:
            return NONE
        text = self._number(number, "+")
        return text[1:] if float(text) == 0 else text.replace("-", "−")

    def interval(self, low: Any, high: Any) -> str:
        """``[+0.21, +0.85]``, or the dash where an end is missing."""
        ends = self.difference(low), self.difference(high)
        return NONE if NONE in ends else f"[{ends[0]}, {ends[1]}]"

    def _number(self, number: float, sign: str) -> str:
        if self.unit == "points":
            number *= 100
        if self.digits is not None:
            return f"{number:{sign}.{self.digits}f}"
        text = f"{number:{sign}.3g}"
        return re.sub(r"e([+-])0*(\d)", lambda e: f"e{'-' * (e[1] == '-')}{e[2]}", text)


def written(
    analysis: str, name: str, unit: str, better: bool | None, sizes: Iterable[Any]
) -> Written:
    """How a value is written whose means over the runs of the losses are ``sizes``."""
    digits = 2 if unit == "points" else _digits([abs(x) for x in map(finite, sizes) if x])
    return Written(name, title(analysis, name), unit, digits, better)


def written_entry(analysis: str, name: str, entry: Mapping[str, Any]) -> Written:
    """How a value of a summary is written."""
    sizes = [cell["mean"] for cell in entry["table"].values()]
    return written(analysis, name, entry["unit"], entry["better"], sizes)


def _digits(sizes: Sequence[float]) -> int | None:
    """So many that the largest has four significant digits and the smallest at least three."""
    if not sizes:
        return 2
    digits = min(max(3 - math.floor(math.log10(max(sizes))), 0), 4)
    fits = max(sizes) < 1e6 and min(sizes) * 10**digits >= 100
    return digits if fits else None
