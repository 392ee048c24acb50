"""What the values of analyses are called, how they are written, and which of them tell the most."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from losslab.analysis.analyse import ANALYSES
from losslab.report.numbers import aligned, finite, fixed, leading_power

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


_ABOUT = {  # where the catalogue's words, which are for the command line, do not fit a page
    "ood": "telling test examples from others by a score (noise: uniform over the inputs’ range)",
    "dynamics": "what was learned and forgotten over the epochs",
}


def about(analysis: str) -> str:
    """What an analysis measures, as a sentence; nothing of an unknown one."""
    known = ANALYSES.get(analysis)
    text = _ABOUT.get(analysis, known.about if known else "")
    return f"{text[:1].upper()}{text[1:]}." if text else ""


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

    ``digits`` stand after the point; None: as many as each number needs, where the losses lie so
    far apart, or so far from 1, that no number of them suits all.
    """

    name: str
    title: str
    unit: str
    digits: int | None
    better: bool | None

    @property
    def heading(self) -> str:
        """Title with its unit: ``ECE, %``."""
        unit = "%" if self.unit == "points" else self.unit
        return f"{self.title}, {unit}" if unit else self.title

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
        return self._texts([value])[0]

    def mean_sd(self, entry: Mapping[str, Any]) -> str:
        """``97.40 ± 0.31``; the mean alone of one run."""
        known = finite(entry.get("mean")), finite(entry.get("sd"))
        if known[0] is None or known[1] is None:
            return self.text(known[0])
        mean, spread = self._texts(known)
        return f"{mean} ±\u00a0{spread}"

    def change(self, mean: Any, low: Any, high: Any) -> tuple[str, str]:
        """A signed difference and its interval: ``+0.53``, ``[+0.21, +0.85]``.

        ``0.00`` has no sign, and the interval is empty where an end is missing.
        """
        if finite(low) is None or finite(high) is None:
            return self._texts([mean], "+")[0], ""
        middle, *ends = self._texts([mean, low, high], "+")
        return middle, f"[{', '.join(ends)}]"

    def _texts(self, values: Sequence[Any], sign: str = "") -> list[str]:
        """Numbers that stand beside one another, with equally many decimals."""
        scaled = [None if x is None else self._scale * x for x in map(finite, values)]
        return aligned(scaled, sign) if self.digits is None else fixed(scaled, self.digits, sign)

    @property
    def _scale(self) -> float:
        return 100.0 if self.unit == "points" else 1.0


def written(
    analysis: str, name: str, unit: str, better: bool | None, sizes: Iterable[Any], of: str = ""
) -> Written:
    """How a value is written whose means over the runs of the losses are ``sizes``.

    ``of`` is what it is a value of, where its name does not say all: ``batches of 128``.
    """
    digits = 2 if unit == "points" else _digits([abs(x) for x in map(finite, sizes) if x])
    told = title(analysis, name) + (f" ({of})" if of else "")
    return Written(name, told, unit, digits, better)


def written_entry(analysis: str, name: str, entry: Mapping[str, Any]) -> Written:
    """How a value of a summary is written."""
    sizes = [cell["mean"] for cell in entry["table"].values()]
    return written(analysis, name, entry["unit"], entry["better"], sizes, entry.get("of", ""))


def _digits(sizes: Sequence[float]) -> int | None:
    """So many that the largest has four significant digits and the smallest at least three."""
    largest, smallest = leading_power(sizes), leading_power([min(sizes, default=0.0)])
    if largest is None or smallest is None:
        return 2
    digits = max(min(3 - largest, 4), 2 - smallest, 0)
    return digits if digits <= 5 and largest + digits <= 6 else None
