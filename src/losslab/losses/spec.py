"""Spec strings: one line of text names a configured loss everywhere.

    cross_entropy                      encouraging(log_end=0.5)
    cross_entropy + 0.5*expectation    mixed(focus=phases(0, 0.25, 0.5))
    one_vs_rest(mean_squared_error(mirror=true))

The grammar is Python's expression grammar restricted to sums, numeric factors, calls, numbers,
true/false/none and lists, so it is parsed by ``ast`` and never evaluated.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from losslab import schedules
from losslab.errors import InputError, nearest, refuse_unknown
from losslab.losses import api, margins, modules
from losslab.losses import reduction as r
from losslab.losses.catalog import ALIASES, CATALOG, find

_SCHEDULES: dict[str, Callable[..., Any]] = {
    "phases": schedules.phases,
    "switch": schedules.switch,
    "deferred": schedules.deferred,
    "ramp": schedules.ramp,
}
_WRAPPERS: dict[str, Callable[..., Any]] = {
    "one_vs_rest": modules.OneVsRestLoss,
    "complement_objective": modules.ComplementObjectiveLoss,
    "smoothed": modules.SmoothedLoss,
    "additive_margin": lambda loss, **k: margins.AdjustedLoss(margins.AdditiveMargin(**k), loss),
    "ldam": lambda loss, **k: margins.AdjustedLoss(margins.LDAMMargin(**k), loss),
    "reweighted": margins.ReweightedLoss,
    "logit_adjustment": lambda loss, **k: margins.AdjustedLoss(margins.LogitAdjustment(**k), loss),
}
_WRAPPED: dict[str, Any] = {
    "one_vs_rest": modules.OneVsRestLoss.__init__,
    "complement_objective": modules.ComplementObjectiveLoss.__init__,
    "smoothed": modules.SmoothedLoss.__init__,
    "additive_margin": margins.AdditiveMargin.__init__,
    "ldam": margins.LDAMMargin.__init__,
    "logit_adjustment": margins.LogitAdjustment.__init__,
    "reweighted": margins.ReweightedLoss.__init__,
}
_CONSTANTS = {"true": True, "false": False, "none": None}


def loss(spec: str, **options: Any) -> nn.Module:
    """The loss module that a spec string names.

    Args:
        spec: a name or alias with parameters, sums and multiples of such, or one wrapped by
            ``one_vs_rest``, ``complement_objective``, ``smoothed``, ``additive_margin``, ``ldam``
            or ``logit_adjustment``. ``losslab losses`` lists them. A schedule in
            the spec moves when the training loop calls the module's ``set_progress``.
        options: ``weight``, ``ignore_index``, ``reduction``, ``label_smoothing``,
            ``zero_if_empty``, as in ``nn.CrossEntropyLoss``.

    Raises:
        InputError: an unknown name or parameter (with the nearest known one), a value outside its
            domain, or text that is not a spec.

    Example:
        >>> import losslab
        >>> losslab.loss("cross_entropy + 0.5*expectation", label_smoothing=0.1).spec
        'cross_entropy + 0.5*expectation'
    """
    unknown = set(options) - set(r.OPTIONS)
    if unknown:
        name = min(unknown)
        raise InputError(
            f"loss has no option {name!r}.{nearest(name, r.OPTIONS)} Its options: "
            f"{', '.join(r.OPTIONS)}. A loss's own parameters belong inside the spec."
        )
    if not isinstance(spec, str):
        raise InputError(f"a spec is a string such as 'mixed(focus=0.3)'; got {spec!r}.")
    try:
        return _Reader(_short(spec), options).loss(_parsed(spec))
    except (RecursionError, MemoryError, OverflowError):
        raise InputError(
            f"Cannot read the loss spec {_short(spec)!r}: it is nested too deeply, or holds a "
            "number that is too large."
        ) from None


def _parsed(spec: str) -> ast.expr:
    try:
        return ast.parse(spec.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        raise InputError(
            f"Cannot read the loss spec {_short(spec)!r}. Expected a name with parameters, such as "
            "'encouraging(log_end=0.5)', or a sum, such as 'cross_entropy + 0.5*expectation'."
        ) from None


def _short(text: str) -> str:
    return text if len(text) <= 120 else text[:100] + " …"


class _Reader:
    def __init__(self, spec: str, options: dict[str, Any]) -> None:
        self.spec = spec
        self.options = options

    def loss(self, node: ast.expr) -> Any:
        if isinstance(node, ast.BinOp):
            return self._combination(node)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -1.0 * self.loss(node.operand)
        if isinstance(node, ast.Name):
            return self._named(node.id, [], [])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            return self._named(node.func.id, node.args, node.keywords)
        raise self._unreadable(node)

    def _combination(self, node: ast.BinOp) -> Any:
        if isinstance(node.op, ast.Add):
            return self.loss(node.left) + self.loss(node.right)
        if isinstance(node.op, ast.Sub):
            return self.loss(node.left) - self.loss(node.right)
        if isinstance(node.op, ast.Mult):
            for number, other in ((node.left, node.right), (node.right, node.left)):
                factor = self._number(number)
                if factor is not None:
                    return factor * self.loss(other)
        raise self._unreadable(node)

    def _named(self, name: str, args: list[ast.expr], keywords: list[ast.keyword]) -> Any:
        if name in _SCHEDULES:
            raise InputError(
                f"{name}(…) in {self.spec!r} is a schedule, not a loss: it stands for a "
                f"parameter's value, such as mixed(focus={name}(…))."
            )
        values = self._keywords(keywords)
        if name in _WRAPPERS:
            return self._wrapped(name, args, values)
        try:
            row, renamed = find(_short(name))
        except InputError:
            close = nearest(name.lower(), [*CATALOG, *ALIASES, *_WRAPPERS])
            if not any(wrapper in close for wrapper in _WRAPPERS):
                raise
            raise InputError(f"Unknown loss {name!r} in {self.spec!r}.{close}") from None
        if args:
            example = row.parameters[0].name if row.parameters else None
            hint = f"write {row.name}({example}=…)" if example else f"{row.name} takes none"
            raise InputError(f"Parameters in {self.spec!r} must be named: {hint}.")
        for key in values:
            if renamed.get(key) in values:
                raise InputError(f"{name}: {key} and {renamed[key]} are the same; give one.")
        values = {renamed.get(k, k): v for k, v in values.items()}
        row.check(values)  # refuses options here: they belong to loss(), not to the spec
        return getattr(api, row.module_name)(**values, **self.options)

    def _wrapped(self, name: str, args: list[ast.expr], values: dict[str, Any]) -> Any:
        if len(args) != 1:
            raise InputError(
                f"{name} in {self.spec!r} wraps one loss: write {name}(cross_entropy, …)."
            )
        inner = self.loss(args[0])
        known = [
            p for p in inspect.signature(_WRAPPED[name]).parameters if p not in ("self", "loss")
        ]
        refuse_unknown(name, values, known)
        missing = [
            p.name
            for p in inspect.signature(_WRAPPED[name]).parameters.values()
            if p.name in known and p.default is p.empty and p.name not in values
        ]
        if missing:
            raise InputError(f"{name} in {self.spec!r} also needs {', '.join(missing)}=….")
        return _WRAPPERS[name](inner, **values)

    def _keywords(self, keywords: list[ast.keyword]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for keyword in keywords:
            if keyword.arg is None or keyword.arg in values:
                again = "**" if keyword.arg is None else f"a second {keyword.arg}="
                raise InputError(f"Cannot read {again} in the loss spec {self.spec!r}.")
            values[keyword.arg] = self.value(keyword.value)
        return values

    def value(self, node: ast.expr) -> Any:
        number = self._number(node)
        if number is not None:
            return number
        if isinstance(node, ast.Constant) and isinstance(node.value, bool | None | str):
            return node.value
        if isinstance(node, ast.Name):
            return _CONSTANTS.get(node.id.lower(), node.id)
        if isinstance(node, ast.List | ast.Tuple):
            return [self.value(element) for element in node.elts]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            return self._schedule(node.func.id, node)
        raise self._unreadable(node)

    def _schedule(self, name: str, node: ast.Call) -> Any:
        if name not in _SCHEDULES:
            raise InputError(
                f"Unknown schedule {name!r} in {self.spec!r}.{nearest(name, _SCHEDULES)} "
                f"Schedules: {', '.join(_SCHEDULES)}."
            )
        try:
            return _SCHEDULES[name](
                *(self.value(a) for a in node.args),
                **self._keywords(node.keywords),
            )
        except TypeError:
            raise InputError(
                f"Cannot read {ast.unparse(node)!r}: expected "
                f"{name}{inspect.signature(_SCHEDULES[name])} with numbers."
            ) from None

    def _number(self, node: ast.expr) -> float | None:
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            value = self._number(node.operand)
            return None if value is None else -value
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, int | float)
            and not isinstance(node.value, bool)
        ):
            return float(node.value)
        return None

    def _unreadable(self, node: ast.expr) -> InputError:
        text = _short(ast.unparse(node))
        return InputError(
            f"Cannot read {text!r} in the loss spec {self.spec!r}. A spec is a name with named "
            "parameters, or a sum of such with numeric factors, such as "
            "'cross_entropy + 0.5*expectation'."
        )
