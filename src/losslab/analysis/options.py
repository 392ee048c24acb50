"""What the options of analyses may be: checked as soon as they are read, before any model is there.

One check an option, ``check(name, value)``, which raises `InputError`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from losslab.analysis.ball import one_of, positive, read_box
from losslab.analysis.robustness import ATTACKS, SEARCHES, radii
from losslab.analysis.subject import SPLITS
from losslab.errors import InputError
from losslab.metrics.odds import checked_edges, psi_of

Check = Callable[[str, Any], object]


def check_options(analysis: str, options: Mapping[str, Any]) -> None:
    """Raise `InputError` for the first option that cannot be.

    Example:
        >>> check_options("robustness", {"steps": 0})
        Traceback (most recent call last):
        losslab.errors.InputError: Expected steps to be a whole number of at least 1, but got 0.
    """
    for name, value in options.items():
        CHECKS[analysis][name](name, value)


def _whole(name: str, value: Any, least: int = 1) -> None:
    if type(value) is not int or value < least:
        raise InputError(
            f"Expected {name} to be a whole number of at least {least}, but got {value!r}."
        )


def _at_least_0(name: str, value: Any) -> None:
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise InputError(f"Expected {name} to be a finite number of at least 0, but got {value!r}.")


def _between_0_and_1(name: str, value: Any) -> None:
    if type(value) not in (int, float) or not 0 < value < 1:
        raise InputError(f"Expected {name} to lie between 0 and 1, but got {value!r}.")


def _yes_or_no(name: str, value: Any) -> None:
    if type(value) is not bool:
        raise InputError(f"Expected {name} to be true or false, but got {value!r}.")


def _text(name: str, value: Any) -> None:
    if not isinstance(value, str) or not value:
        raise InputError(f"Expected {name} to be a name, but got {value!r}.")


def _names(name: str, value: Any) -> list[str]:
    """A name, or a list of some."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(isinstance(n, str) and n for n in names):
        raise InputError(f"Expected {name} to be a name or a list of names, but got {value!r}.")
    return names


def _attacks(name: str, value: Any) -> None:
    for attack in _names(name, value):
        one_of(name, attack, (*ATTACKS, *SEARCHES))


def _split(name: str, value: Any) -> None:
    one_of(name, value, SPLITS)


def _box(_: str, value: Any) -> None:
    if str(value).lower() != "auto":
        read_box(value.lower() if isinstance(value, str) else value)


def _loss(name: str, value: Any) -> None:
    import losslab

    _text(name, value)
    losslab.loss(value)


def _log_odds_losses(name: str, value: Any) -> None:
    for spec in _names(name, value):
        psi_of(spec)


_SPLIT: Mapping[str, Check] = {"split": _split}
CHECKS: Mapping[str, Mapping[str, Check]] = {
    "margins": _SPLIT,
    "energies": _SPLIT,
    "gradients": {
        **_SPLIT,
        "under": _log_odds_losses,
        "edges": lambda _, value: checked_edges(value),
    },
    "calibration": {"bins": _whole},
    "generalisation": {},
    "ood": {"out": _names, "examples": _whole},
    "robustness": {
        "epsilons": radii,
        "epsilons_l2": radii,
        "attacks": _attacks,
        "box": _box,
        "examples": _whole,
        "steps": _whole,
        "huge": positive,
    },
    "representation": {
        "layer": _text,
        "epochs": _whole,
        "lr": positive,
        "weight_decay": _at_least_0,
        "balanced": _yes_or_no,
        "probe": _yes_or_no,
    },
    "curvature": {"loss": _loss, "examples": _whole, "probes": partial(_whole, least=2)},
    "dynamics": {"epoch": _whole, "threshold": _between_0_and_1},
}
"""By analysis and option."""
