"""The catalogue: one row a loss. Functions, modules, spec strings, cards and laws follow from it.

To add a loss, write its ψ in ``psi.py`` and its row here.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from torch import Tensor

from losslab.errors import InputError, nearest, refuse_unknown
from losslab.losses import psi, rowwise, slopes
from losslab.losses.reduction import OddsRows, Rows
from losslab.schedules import Schedule


@dataclass(frozen=True)
class Parameter:
    """A loss's parameter and where it may lie; an end is part of the domain unless open."""

    name: str
    default: Any
    meaning: str
    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    @property
    def shown(self) -> str:
        """``name=default``, or the bare name where leaving it out is its default."""
        if self.default is None:
            return self.name
        value = str(self.default).lower() if isinstance(self.default, bool) else f"{self.default:g}"
        return f"{self.name}={value}"

    @property
    def domain(self) -> str:
        if isinstance(self.default, bool):
            return "{true, false}"
        if math.isinf(self.low) and math.isinf(self.high):
            return "(−∞, ∞)"
        left = "(" if self.open_low or math.isinf(self.low) else "["
        right = ")" if self.open_high or math.isinf(self.high) else "]"
        bounds = f"{left}{_number(self.low)}, {_number(self.high)}{right}"
        return bounds

    def check(self, loss: str, value: Any) -> Any:
        """The value as a float (bool, None), or an error that names domain and value."""
        if value is None and self.default is None:
            return None
        if isinstance(self.default, bool):
            if isinstance(value, bool):
                return value
        elif isinstance(value, Real) and not isinstance(value, bool):
            number = float(value)
            above = number > self.low if self.open_low else number >= self.low
            below = number < self.high if self.open_high else number <= self.high
            if above and below and math.isfinite(number):
                return number
        optional = ", or none" if self.default is None else ""
        raise InputError(f"{loss}: {self.name} must be in {self.domain}{optional}; got {value!r}.")


@dataclass(frozen=True)
class Identity:
    """``spec`` = ``scale`` · ``equals`` + ``offset``; ``offset_per_class`` multiplies C."""

    spec: str
    equals: str
    scale: float = 1.0
    offset: float = 0.0
    offset_per_class: float = 0.0

    def __str__(self) -> str:
        right = self.equals if self.scale == 1 else f"{_number(self.scale)}*{self.equals}"
        if self.offset:
            right += f" {'+' if self.offset > 0 else '-'} {_number(abs(self.offset))}"
        if self.offset_per_class:
            right += f" {'+' if self.offset_per_class > 0 else '-'} C"
        return f"{self.spec} = {right}"


@dataclass(frozen=True)
class Row:
    """One loss."""

    name: str
    psi: Callable[..., Any] | None
    source: str
    formula: str
    parameters: tuple[Parameter, ...] = ()
    dynamic: tuple[str, ...] = ()  # arguments of ψ that a schedule may drive
    resolve: Callable[[dict[str, Any]], dict[str, Any]] = dict  # parameters -> arguments of ψ
    rows: Callable[..., Any] | None = None  # the softmax form, where it is not ψ(a)
    identities: tuple[Identity, ...] = ()
    aliases: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # alias -> renamings
    note: str = ""

    @property
    def slope(self) -> Callable[..., Any] | None:
        """ψ' of the same arguments, where ``slopes.py`` writes it out."""
        return getattr(slopes, self.psi.__name__, None) if self.psi else None

    def softmax_rows(self, arguments: dict[str, Any]) -> Rows:
        """The loss of softmax outputs, with the arguments of ψ filled in."""
        if self.rows is not None:
            return self.rows(**arguments)
        psi, slope = self.psi, self.slope
        assert psi is not None
        if slope is None:
            return OddsRows(lambda a: psi(a, **arguments))
        fixed = not any(isinstance(value, Tensor) for value in arguments.values())
        key = (psi, slope, tuple(arguments.items())) if fixed else None
        return OddsRows(lambda a: psi(a, **arguments), lambda a: slope(a, **arguments), key)

    @property
    def function_name(self) -> str:
        return self.name if self.name.endswith(("entropy", "error")) else f"{self.name}_loss"

    @property
    def module_name(self) -> str:
        return "".join(word.capitalize() for word in self.name.split("_")) + "Loss"

    @property
    def binary_function_name(self) -> str:
        return f"binary_{self.name}_with_logits"

    @property
    def binary_module_name(self) -> str:
        return f"Binary{self.module_name.removesuffix('Loss')}WithLogitsLoss"

    @property
    def documentation(self) -> str:
        return inspect.cleandoc((self.rows or self.psi).__doc__ or "")

    def check(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All parameters, defaults filled in; schedules are checked at their extremes."""
        known = {p.name: p for p in self.parameters}
        refuse_unknown(self.name, given, known)
        values = {p.name: given.get(p.name, p.default) for p in self.parameters}
        for name, value in values.items():
            if isinstance(value, Schedule):
                for extreme in value.values():
                    known[name].check(self.name, extreme)
                self._check_schedulable(name, values)
            else:
                values[name] = known[name].check(self.name, value)
        self.resolve({n: v(0.0) if isinstance(v, Schedule) else v for n, v in values.items()})
        return values

    def _check_schedulable(self, name: str, values: dict[str, Any]) -> None:
        """A schedule may only drive parameters that reach ψ as tensors."""
        schedule = values[name]
        fixed = {n: v(0.0) if isinstance(v, Schedule) else v for n, v in values.items()}
        seen = [self.resolve({**fixed, name: v}) for v in schedule.values()]
        changed = {k for s in seen for k in s if s[k] != seen[0][k]}
        if not changed <= set(self.dynamic):
            can = ", ".join((*(["focus"] if self.name == "mixed" else []), *self.dynamic)) or "none"
            raise InputError(
                f"{self.name}: {name} cannot follow a schedule. Parameters that can: {can}."
            )


def _number(x: float) -> str:
    if math.isinf(x):
        return "∞" if x > 0 else "−∞"
    return f"{x:g}"


def _mixed_arguments(values: dict[str, Any]) -> dict[str, Any]:
    """``focus`` F -> α = 1, β = 1/(1 − 2F), and α = 0, β = 1 at ½ (Battash et al. 14)."""
    focus, alpha, beta = values["focus"], values["alpha"], values["beta"]
    if focus is None:
        return {
            "alpha": 1.0 if alpha is None else alpha,
            "beta": 1.0 if beta is None else beta,
        }
    if alpha is not None or beta is not None:
        raise InputError(
            "mixed: give focus, or alpha and beta, not both; focus=F means alpha=1, "
            f"beta=1/(1-2F). Got focus={focus:g}, alpha={alpha}, beta={beta}."
        )
    if focus == 0.5:
        return {"alpha": 0.0, "beta": 1.0}
    return {"alpha": 1.0, "beta": 1 / (1 - 2 * focus)}


def _encouraging_arguments(values: dict[str, Any]) -> dict[str, Any]:
    """``log_end`` is 0.75 unless given, or 1 where ``bonus_start`` makes the bonus aggressive."""
    values = dict(values)
    if values["log_end"] is None:
        values["log_end"] = 0.75 if values["bonus_start"] is None else 1.0
    return values


_RHO = Parameter("rho", 1.0, "weight ρ of the bonus", low=0)
_START = Parameter(
    "bonus_start", None, "pay the bonus only from this p on", 0, 1, open_low=True, open_high=True
)

ROWS: tuple[Row, ...] = (
    Row(
        "cross_entropy",
        psi.cross_entropy,
        source="Zhao et al. 2022, eq. 1; Battash et al., eq. 1",
        formula="−log p",
        aliases={"ce": {}, "nll": {}, "logistic": {}},
    ),
    Row(
        "expectation",
        psi.expectation,
        source="Battash et al., eq. 9; its gradient is that of DFT (Wu et al. 2025)",
        formula="1 − p",
        aliases={"dft": {}},
        note="DFT minimises −sg(p)·log p, which has the same gradient and another value.",
    ),
    Row(
        "mixed",
        psi.mixed,
        source="Battash et al., eqs. 12–14; Poly-1 of Leng et al. 2022",
        formula="α·(−log p) + β·(1 − p)",
        parameters=(
            Parameter("focus", None, "the p where |∂L/∂z_y| peaks; sets α and β", 0, 0.5),
            Parameter("alpha", None, "weight α of the cross-entropy, 1 unless given", low=0),
            Parameter("beta", None, "weight β of the expectation loss, 1 unless given", low=0),
        ),
        dynamic=("alpha", "beta"),
        resolve=_mixed_arguments,
        identities=(
            Identity("mixed(beta=0)", "cross_entropy"),
            Identity("mixed(focus=0.5)", "expectation"),
            Identity("mixed(focus=0)", "encouraging(log_end=0)", offset=1.0),
        ),
        aliases={"poly1": {"epsilon": "beta"}},
    ),
    Row(
        "encouraging",
        psi.encouraging,
        source="Zhao et al. 2022, eqs. 6 and 7; aggressive form from table 3",
        formula="−log p + ρ·log(1 − p), the bonus continued by its tangent from p = LE",
        parameters=(
            _RHO,
            Parameter(
                "log_end",
                None,
                "LE, the p where the log curve ends; 0.75, or 1 where bonus_start is given",
                0,
                1,
            ),
            _START,
            Parameter("eps", 1e-5, "clamp of 1 − p under the log at LE = 1; 0 is exact", 0, 0.5),
        ),
        dynamic=("rho",),
        resolve=_encouraging_arguments,
        identities=(
            Identity("encouraging(rho=0)", "cross_entropy"),
            Identity("encouraging(log_end=0)", "mixed(alpha=1, beta=1)", offset=-1.0),
        ),
        note="LE = 0.75 and 0.5 work with the settings tuned for cross-entropy; LE = 1 wants a "
        "smaller learning rate (Zhao et al., table 2). Their code clamps 1 − p at eps = 1e-5, so "
        "at LE = 1 the bonus stops at a = 11.5; eps=0 is the formula as printed.",
    ),
    Row(
        "encouraging_power",
        psi.encouraging_power,
        source="official code of Zhao et al. 2022",
        formula="−log p − ρ·p^γ",
        parameters=(
            _RHO,
            Parameter("gamma", 1.0, "power γ of the bonus", low=0, open_low=True),
            _START,
        ),
        dynamic=("rho",),
        identities=(
            Identity("encouraging_power(rho=0)", "cross_entropy"),
            Identity("encouraging_power(gamma=1)", "mixed(focus=0)", offset=-1.0),
        ),
    ),
    Row(
        "encouraging_cosine",
        psi.encouraging_cosine,
        source="official code of Zhao et al. 2022",
        formula="−log p + ρ·(cos πp − 1)",
        parameters=(_RHO,),
        dynamic=("rho",),
        identities=(Identity("encouraging_cosine(rho=0)", "cross_entropy"),),
    ),
    Row(
        "focal",
        psi.focal,
        source="Lin et al. 2017; Zhao et al. 2022, eq. 11; Battash et al., eq. 2",
        formula="(1 − p)^γ·(−log p)",
        parameters=(Parameter("gamma", 2.0, "focusing power γ", low=0),),
        dynamic=("gamma",),
        identities=(Identity("focal(gamma=0)", "cross_entropy"),),
        note="The published α is a class weight: pass weight=. A constant α is 0.25*focal.",
    ),
    Row(
        "halted_focal",
        psi.halted_focal,
        source="Zhao et al. 2022, eq. 12",
        formula="focal up to p = φ, −log p + (1 − (1 − φ)^γ)·log φ beyond",
        parameters=(
            Parameter("gamma", 2.0, "focusing power γ", low=0),
            Parameter("threshold", 0.5, "φ, where cross-entropy's slope takes over", 0, 1),
        ),
        identities=(
            Identity("halted_focal(gamma=0)", "cross_entropy"),
            Identity("halted_focal(threshold=1)", "focal"),
            Identity("halted_focal(threshold=0)", "cross_entropy"),
        ),
        note="The printed shift b has the wrong sign; continuity needs the one used here.",
    ),
    Row(
        "generalized_cross_entropy",
        psi.generalized_cross_entropy,
        source="Zhang & Sabuncu 2018; quoted by Battash et al.",
        formula="(1 − p^q)/q",
        parameters=(
            Parameter("q", 0.7, "1 is the expectation loss, towards 0 cross-entropy", 0, 1, True),
            Parameter(
                "truncation", None, "k: constant for p ≤ k", 0, 1, open_low=True, open_high=True
            ),
        ),
        dynamic=("q",),
        identities=(Identity("generalized_cross_entropy(q=1)", "expectation"),),
        aliases={"gce": {}},
    ),
    Row(
        "tamed_cross_entropy",
        psi.tamed_cross_entropy,
        source="Martinez & Stiefelhagen 2018; Battash et al., eq. 4, printed there with a stray "
        "constant",
        formula="((1 − log p)^(1−α) − 1)/(1 − α)",
        parameters=(Parameter("alpha", 0.5, "how strongly hard examples are tamed", low=0),),
        identities=(Identity("tamed_cross_entropy(alpha=0)", "cross_entropy"),),
        aliases={"tce": {}},
    ),
    Row(
        "mean_squared_error",
        psi.squared_error,
        source="Zhao et al. 2022, section 5.5 (mirror bonus); Brier 1950",
        formula="Σ_k (y_k − p_k)², with mirror 4(1 − p) − C",
        parameters=(Parameter("mirror", False, "add the mirror bonus"),),
        rows=rowwise.SquaredErrorRows,
        identities=(
            Identity(
                "mean_squared_error(mirror=true)", "expectation", scale=4.0, offset_per_class=-1.0
            ),
        ),
        aliases={"mse": {}, "brier": {}},
        note="Summed over classes and averaged over rows, where nn.MSELoss averages over both. "
        "Sigmoid outputs: one_vs_rest(mean_squared_error).",
    ),
    Row(
        "mean_absolute_error",
        psi.absolute_error,
        source="Battash et al., eq. 3; Ghosh et al. 2017",
        formula="Σ_k |y_k − p_k| = 2(1 − p)",
        rows=rowwise.AbsoluteErrorRows,
        identities=(Identity("mean_absolute_error", "expectation", scale=2.0),),
        aliases={"mae": {}},
    ),
    Row(
        "complement_entropy",
        None,
        source="Chen et al. 2019; Battash et al., eq. 6",
        formula="Σ_{j≠y} q_j log q_j/(C − 1)",
        rows=rowwise.ComplementEntropyRows,
        note="On its own it learns nothing of the true class; complement_objective alternates it "
        "with cross-entropy.",
    ),
    Row(
        "maximum_probability_cross_entropy",
        None,
        source="Zhou et al. 2019; Battash et al., eq. 7",
        formula="(max_j p_j − p)·(−log p)",
        rows=rowwise.MaximumProbabilityRows,
        aliases={"mpce": {}},
    ),
    Row(
        "exponential",
        psi.exponential,
        source="Freund & Schapire 1997 (AdaBoost)",
        formula="exp(−a)",
        parameters=(
            Parameter(
                "cap", 30.0, "below a = −cap the tangent continues, so nothing overflows", 0, 80
            ),
        ),
    ),
    Row(
        "hinge",
        psi.hinge,
        source="Cortes & Vapnik 1995, on the log-odds",
        formula="max(0, margin − a)",
        parameters=(Parameter("margin", 1.0, "log-odds beyond which the loss is 0"),),
    ),
    Row(
        "squared_hinge",
        psi.squared_hinge,
        source="Cortes & Vapnik 1995, squared, on the log-odds",
        formula="max(0, margin − a)²",
        parameters=(Parameter("margin", 1.0, "log-odds beyond which the loss is 0"),),
    ),
)

CATALOG: dict[str, Row] = {row.name: row for row in ROWS}
ALIASES: dict[str, Row] = {alias: row for row in ROWS for alias in row.aliases}
_AMBIGUOUS = {
    "el": "EL is the encouraging loss in Zhao et al. and the expectation loss in Battash et al.: "
    "write 'encouraging' or 'expectation'."
}


def find(name: str) -> tuple[Row, Mapping[str, str]]:
    """The row of a name or alias, and the alias's renaming of parameters."""
    key = name.strip().lower().replace("-", "_")
    if key in _AMBIGUOUS:
        raise InputError(_AMBIGUOUS[key])
    for candidate in (key, key.removesuffix("_loss")):
        if candidate in CATALOG:
            return CATALOG[candidate], {}
        if candidate in ALIASES:
            row = ALIASES[candidate]
            return row, row.aliases[candidate]
    raise InputError(
        f"Unknown loss {name!r}.{nearest(key, [*CATALOG, *ALIASES])} "
        "`losslab losses` lists them all."
    )
