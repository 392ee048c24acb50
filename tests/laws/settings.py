"""The list: each ψ-loss of the catalogue in several settings, and the oracle of each.

A setting's oracle is the printed formula of ``oracles.losses`` with the same parameters. Where the
formula changes, ``kinks`` holds the log-odds, so that derivative tests keep away from them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import losslab
from oracles import arithmetic, losses
from oracles.arithmetic import Number, real, sigmoid, softplus
from oracles.derivatives import complex_step


def logit(p: float) -> float:
    return math.log(p) - math.log1p(-p)


@dataclass(frozen=True)
class Setting:
    """One loss of the catalogue with one choice of parameters."""

    name: str
    parameters: dict[str, Any]
    oracle: Callable[[Any], Any]  # ψ of one log-odds, real or complex
    kinks: tuple[float, ...] = ()  # log-odds where ψ changes its formula
    cancels: bool = False  # the value passes through 0, so only its absolute error is small
    printed_slope: Callable[[float], float] | None = None  # where complex step loses digits

    def slope(self, a: float) -> float:
        """ψ'(a): the printed slope, or the oracle's complex-step derivative."""
        if self.printed_slope is not None:
            return self.printed_slope(a)
        return complex_step(self.oracle, a)

    @property
    def spec(self) -> str:
        if not self.parameters:
            return self.name
        return f"{self.name}({', '.join(f'{k}={_text(v)}' for k, v in self.parameters.items())})"

    @property
    def row(self) -> Any:
        return losslab.CATALOG[self.name]

    @property
    def psi(self) -> Callable[[Any], Any]:
        """The library's ψ, as one sigmoid output sees it."""
        return getattr(losslab, self.row.binary_module_name)(**self.parameters).psi

    @property
    def written_slope(self) -> Callable[[Any], Any]:
        """ψ' of the same, from ``slopes.py``."""
        _, slope, arguments = self.key
        return partial(slope, **dict(arguments))

    @property
    def key(self) -> Any:
        """(ψ, ψ', arguments), from which the native kernel's programs are made."""
        arguments = self.row.resolve(self.row.check(self.parameters))
        return self.row.psi, self.row.slope, tuple(arguments.items())

    @property
    def smooth(self) -> bool:
        """Twice differentiable everywhere."""
        return not self.kinks


def _text(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)


def capped_exponential(a: Number, cap: float) -> Number:
    """exp(−a), and its tangent at −cap below."""
    if real(a) >= -cap:
        return arithmetic.exp(-a)
    return math.exp(cap) * (1 - (a + cap))


def _hinge(a: Number, margin: float) -> Number:
    """max(0, margin − a): the printed max(0, 1 − a) moved."""
    return losses.hinge(a + (1 - margin))


def _squared_hinge(a: Number, margin: float) -> Number:
    short = losses.hinge(a + (1 - margin)).item()  # numpy's ** would warn of overflow
    return short * short


def _mixed(**parameters: Any) -> Setting:
    return Setting("mixed", parameters, partial(losses.mixed, **parameters))


def _encouraging(*kinks: float, oracle: Any = None, **parameters: Any) -> Setting:
    if oracle is None:
        oracle = losses.encouraging_conservative
        oracle = partial(oracle, **parameters)
    return Setting("encouraging", parameters, oracle, kinks, cancels=True)


def _power(*kinks: float, **parameters: Any) -> Setting:
    rho, gamma = parameters.get("rho", 1.0), parameters.get("gamma", 1.0)
    start = parameters.get("bonus_start", 0.0)

    def oracle(a: Number) -> Number:
        bonus = losses.power_bonus(a, gamma=gamma, bonus_start=start)
        return losses.cross_entropy(a) + rho * bonus

    return Setting("encouraging_power", parameters, oracle, kinks, cancels=True)


def _cosine(**parameters: Any) -> Setting:
    rho = parameters.get("rho", 1.0)
    return Setting(
        "encouraging_cosine",
        parameters,
        lambda a: losses.cross_entropy(a) + rho * losses.cosine_bonus(a),
        cancels=True,
    )


def _focal(**parameters: Any) -> Setting:
    gamma = parameters.get("gamma", 2.0)

    def slope(a: float) -> float:
        """−(1 − p)^γ ((1 − p) − γ p log p)."""
        p, miss, nll = real(sigmoid(a)), real(sigmoid(-a)), real(softplus(-a))
        return -math.exp(-gamma * real(softplus(a))) * (miss + gamma * p * nll)

    oracle = partial(losses.focal, **parameters)
    return Setting("focal", parameters, oracle, printed_slope=slope)


def _halted(*kinks: float, **parameters: Any) -> Setting:
    oracle = partial(losses.halted_focal, **parameters)
    if parameters.get("threshold") == 0:  # the printed shift is 0·log 0
        oracle = losses.cross_entropy
    return Setting("halted_focal", parameters, oracle, kinks, cancels=True)


def _generalized(**parameters: Any) -> Setting:
    q, k = parameters.get("q", 0.7), parameters.get("truncation", 0.0)

    def slope(a: float) -> float:
        """−p^q (1 − p), 0 where truncated."""
        return 0.0 if real(sigmoid(a)) <= k else -math.exp(-q * softplus(-a)) * real(sigmoid(-a))

    if k == 0:
        oracle, kinks = partial(losses.generalized_cross_entropy, q=q), ()
    else:
        oracle = partial(losses.truncated_generalized_cross_entropy, q=q, k=k)
        kinks = (logit(k),)
    return Setting("generalized_cross_entropy", parameters, oracle, kinks, printed_slope=slope)


def _tamed(**parameters: Any) -> Setting:
    alpha = parameters.get("alpha", 0.5)
    return Setting(
        "tamed_cross_entropy",
        parameters,
        partial(losses.tamed_cross_entropy, alpha=alpha),
        # −(1 − p)(1 − log p)^(−α)
        printed_slope=lambda a: -real(sigmoid(-a)) * (1 + real(softplus(-a))) ** -alpha,
    )


def _squared_error(**parameters: Any) -> Setting:
    return Setting(
        "mean_squared_error",
        parameters,
        partial(losses.squared_error, **parameters),
        cancels=bool(parameters.get("mirror")),
    )


def _exponential(**parameters: Any) -> Setting:
    cap = parameters.get("cap", 30.0)
    return Setting("exponential", parameters, partial(capped_exponential, cap=cap), (-cap,))


def _margin(name: str, oracle: Any, **parameters: Any) -> Setting:
    margin = parameters.get("margin", 1.0)
    return Setting(name, parameters, partial(oracle, margin=margin), (margin,), cancels=True)


CLAMP = -logit(1e-5)  # where the published clamp of 1 − p stops the bonus

SETTINGS: tuple[Setting, ...] = (
    Setting("cross_entropy", {}, losses.cross_entropy),
    Setting("expectation", {}, losses.expectation),
    _mixed(),
    _mixed(focus=0.0),
    _mixed(focus=0.3),
    _mixed(focus=0.499),
    _mixed(focus=0.5),
    _mixed(alpha=1.0, beta=2.0),
    _mixed(alpha=0.0, beta=0.0),
    _mixed(alpha=0.0),
    _mixed(beta=0.0),
    _encouraging(logit(0.75)),
    _encouraging(logit(0.5), log_end=0.5),
    _encouraging(logit(0.999), log_end=0.999, rho=0.3),
    _encouraging(log_end=0.0),
    _encouraging(CLAMP, log_end=1.0),
    _encouraging(0.0, log_end=1.0, eps=0.5),
    _encouraging(log_end=1.0, eps=0.0, oracle=lambda a: -a),
    _encouraging(log_end=1.0, eps=0.0, rho=0.5),
    _encouraging(log_end=1.0, eps=0.0, rho=3.0),
    _encouraging(log_end=1.0, eps=0.0, rho=0.0, oracle=losses.cross_entropy),
    _encouraging(logit(0.75), rho=0.0),
    _encouraging(logit(0.75), rho=2.5),
    _encouraging(
        0.0,
        CLAMP,
        bonus_start=0.5,
        oracle=partial(losses.encouraging_aggressive, bonus_start=0.5),
    ),
    _encouraging(
        logit(0.9),
        bonus_start=0.9,
        eps=0.0,
        rho=2.0,
        oracle=partial(losses.encouraging_aggressive, bonus_start=0.9, eps=0.0, rho=2.0),
    ),
    _encouraging(
        logit(0.3),
        logit(0.6),
        bonus_start=0.3,
        log_end=0.6,
        oracle=partial(losses.encouraging_start_then_end, bonus_start=0.3, log_end=0.6),
    ),
    _encouraging(
        logit(0.8),
        logit(0.3),
        bonus_start=0.8,
        log_end=0.3,
        oracle=partial(losses.encouraging_start_then_end, bonus_start=0.8, log_end=0.3),
    ),
    _power(),
    _power(gamma=0.5, rho=2.0),
    _power(gamma=30.0),
    _power(logit(0.4), gamma=2.0, bonus_start=0.4),
    _cosine(),
    _cosine(rho=0.3),
    _focal(),
    _focal(gamma=0.0),
    _focal(gamma=0.01),
    _focal(gamma=0.5),
    _focal(gamma=5.0),
    _focal(gamma=100.0),
    _halted(0.0),
    _halted(logit(0.3), gamma=1.0, threshold=0.3),
    _halted(logit(0.9), gamma=0.5, threshold=0.9),
    _halted(0.0, gamma=0.0),
    _halted(threshold=0.0),
    _halted(threshold=1.0),
    _generalized(),
    _generalized(q=1.0),
    _generalized(q=1e-3),
    _generalized(q=1e-12),
    _generalized(truncation=0.5),
    _generalized(q=0.3, truncation=0.9),
    _generalized(q=1.0, truncation=1e-3),
    _tamed(),
    _tamed(alpha=0.0),
    _tamed(alpha=1.0),
    _tamed(alpha=1.5),
    _tamed(alpha=4.0),
    _squared_error(),
    _squared_error(mirror=True),
    Setting("mean_absolute_error", {}, losses.absolute_error),
    _exponential(),
    _exponential(cap=0.0),
    _exponential(cap=80.0),
    _margin("hinge", _hinge),
    _margin("hinge", _hinge, margin=0.0),
    _margin("hinge", _hinge, margin=-2.0),
    _margin("squared_hinge", _squared_hinge),
    _margin("squared_hinge", _squared_hinge, margin=5.0),
)

# On softmax outputs these are sums over the classes, or need more than the log-odds.
NOT_PSI_ON_SOFTMAX = {
    "mean_squared_error",
    "mean_absolute_error",
    "complement_entropy",
    "maximum_probability_cross_entropy",
}
ON_SOFTMAX = tuple(s for s in SETTINGS if s.name not in NOT_PSI_ON_SOFTMAX)
ROWWISE_SPECS = (
    "mean_squared_error",
    "mean_squared_error(mirror=true)",
    "mean_absolute_error",
    "complement_entropy",
    "maximum_probability_cross_entropy",
)
COMBINED_SPECS = (
    "cross_entropy + 0.5*expectation",
    "mean_absolute_error + mean_squared_error",
    "encouraging - 0.25*focal(gamma=1)",
    "one_vs_rest(cross_entropy)",
    "one_vs_rest(mean_squared_error(mirror=true))",
    "one_vs_rest(encouraging + 0.5*hinge, class_reduction=mean)",
    "complement_objective(cross_entropy)",
)
# Every loss on (N, C, …) logits: all settings, the row-wise losses, sums and wrappers.
SPECS = (*(s.spec for s in ON_SOFTMAX), *ROWWISE_SPECS, *COMBINED_SPECS)


def identify(setting: Setting) -> str:
    """A test's name."""
    return setting.spec
