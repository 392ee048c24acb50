"""What a ψ does, read off the Python function itself, as steps on numbered values.

``steps_of`` calls a ψ with symbols in place of tensors and writes down what it does to them. The
native kernel runs the steps over all rows in one call (``program.py``); the atlas runs them in a
page. A ψ with an operation that has no step is not read.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Psi = Callable[..., Tensor]
Operand = int | float  # the number of a value, or a constant
Steps = tuple[tuple[str, tuple[Operand, ...]], ...]

_BINARY: dict[Any, str] = {
    operator.add: "add", operator.sub: "sub", operator.mul: "mul", operator.truediv: "div",
    operator.le: "le", operator.lt: "lt", operator.ge: "ge", operator.gt: "gt",
    operator.eq: "eq", operator.and_: "and",
    "pow": "pow", operator.pow: "pow", torch.pow: "pow", torch.minimum: "min", torch.maximum: "max",
}  # fmt: skip
_UNARY: dict[Any, str] = {
    operator.neg: "neg", "neg_": "neg", "neg": "neg", torch.sigmoid: "sigmoid", torch.exp: "exp",
    torch.log1p: "log1p", torch.expm1: "expm1", F.logsigmoid: "logsigmoid", torch.sin: "sin",
    torch.cos: "cos", "isinf": "isinf", torch.neg: "neg",
    **{name: name for name in ("sigmoid", "exp", "log1p", "expm1", "sin", "cos")},
}  # fmt: skip


class Unknown(Exception):
    """An operation that has no step."""


def steps_of(psi: Psi, inputs: int = 1) -> Steps | None:
    """What a ψ does to log-odds; None where that is not known to the last operation.

    With more ``inputs`` the arguments after the log-odds are symbols too. The inputs are the
    values 0, 1, …; the first step makes the next.
    """
    tape = _Tape(inputs=inputs)
    try:
        result: Any = psi(*(_Symbol(tape, i) for i in range(inputs)))
        if type(result) is not _Symbol:
            return None
        tape.emit("add", result, 0.0)
    except Exception:  # a ψ that fails here is called with log-odds next, and fails there if at all
        return None
    return tuple(tape.steps)


class _Tape:
    """What a ψ did, as steps on values numbered in the order they came about; 0 is a."""

    def __init__(self, steps: Steps = (), inputs: int = 1) -> None:
        self.steps = list(steps)
        self.inputs = inputs

    def call(self, function: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if function in _BINARY and len(args) == 2 and not options:
            return self.emit(_BINARY[function], *args)
        if function in _UNARY and len(args) == 1 and not options:
            return self.emit(_UNARY[function], *args)
        if function is F.softplus and len(args) == 1 and options in ({}, {"threshold": 40.0}):
            return self.emit("softplus", *args)  # beyond either threshold it is x in float32
        if function is torch.where and len(args) == 3:
            return self.emit("where", *args)
        if function in (torch.relu, F.relu, "relu") and options in ({}, {"inplace": False}):
            return self.emit("relu", args[0], 0.0)
        if function == "gate":
            return self.emit("gate", *args)
        if function in ("square", torch.square):
            return self.emit("mul", *args, *args)
        if function in ("masked_fill", "masked_fill_"):
            return self.emit("where", args[1], args[2], args[0])
        if function == "where":
            return self.emit("where", args[1], args[0], args[2])
        if function in ("clamp", torch.clamp):
            return self.clamp(*args, **options)
        if function in (torch.zeros_like, torch.full_like):
            return self.emit("add", 0.0 if function is torch.zeros_like else args[1], 0.0)
        raise Unknown(str(function))

    def clamp(self, x: Any, min: Any = None, max: Any = None) -> Any:
        if min is not None:
            x = self.emit("max", x, min)
        return x if max is None else self.emit("min", x, max)

    def emit(self, name: str, *operands: Any) -> _Symbol:
        self.steps.append((name, tuple(_operand(x) for x in operands)))
        return _Symbol(self, self.inputs + len(self.steps) - 1)


def differentiated(steps: Steps) -> Steps:
    """The steps of ψ' of one input, by the chain rule from the first step to the last."""
    tape = _Tape(steps)
    slopes: list[Any] = [1.0]
    for i, (name, operands) in enumerate(steps):
        values = [_Symbol(tape, x) if isinstance(x, int) else x for x in operands]
        inner = [slopes[x] if isinstance(x, int) else 0.0 for x in operands]
        slopes.append(_slope_of(name, _Symbol(tape, i + 1), values, inner))
    tape.emit("add", slopes[-1], 0.0)
    return tuple(tape.steps)


def _slope_of(name: str, value: Any, operands: list[Any], inner: list[Any]) -> Any:
    """The derivative of one step, whose operands have the derivatives ``inner``."""
    x, dx = operands[0], inner[0]
    y, dy = (operands[1], inner[1]) if len(operands) > 1 else (0.0, 0.0)
    if all(type(d) is float and d == 0 for d in inner):
        return 0.0
    if name in ("add", "sub"):
        return _sum(dx, dy if name == "add" else _product(dy, -1.0))
    if name == "mul":
        return _sum(_product(dx, y), _product(dy, x))
    if name == "div":
        return _sum(_product(dx, 1.0 / y), _product(dy, -1.0 * value / y))
    if name == "where":
        return torch.where(x, dy, inner[2])
    if name in ("min", "max"):
        return torch.where(y < x if name == "min" else y > x, dy, dx)
    if name == "pow" and type(y) is float:
        return _product(dx, y * x.pow(y - 1))
    outer = _OUTER.get(name)
    if outer is None:
        raise Unknown(name)
    return _product(dx, outer(x, value))


# Derivatives of functions of one argument x, of which v is the value.
_OUTER: dict[str, Callable[[Any, Any], Any]] = {
    "neg": lambda x, v: -1.0,
    "relu": lambda x, v: torch.where(x > 0, 1.0, 0.0),
    "sigmoid": lambda x, v: v * torch.sigmoid(-x),
    "softplus": lambda x, v: torch.sigmoid(x),
    "logsigmoid": lambda x, v: torch.sigmoid(-x),
    "exp": lambda x, v: v,
    "log1p": lambda x, v: 1.0 / (1.0 + x),
    "expm1": lambda x, v: torch.exp(x),
    "sin": lambda x, v: torch.cos(x),
    "cos": lambda x, v: -torch.sin(x),
    **{name: (lambda x, v: 0.0) for name in ("le", "lt", "ge", "gt", "eq", "and", "isinf")},
}


def _sum(x: Any, y: Any) -> Any:
    if type(x) is float and x == 0:
        return y
    return x if type(y) is float and y == 0 else x + y


def _product(slope: Any, factor: Any) -> Any:
    """slope·factor; 0 where the slope is 0, even beside an infinite factor."""
    if (type(slope) is float and slope == 0) or (type(factor) is float and factor == 0):
        return 0.0
    if type(slope) is float:
        return factor if slope == 1 else slope * factor
    return slope if type(factor) is float and factor == 1 else slope.gate(factor)


class _Symbol:
    """Stands for log-odds while a ψ is traced; everything done to it goes onto the tape."""

    def __init__(self, tape: _Tape, index: int) -> None:
        self.tape, self.index = tape, index

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        tape = next(x.tape for x in args if type(x) is _Symbol)
        return tape.call(function, args, kwargs or {})

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **options: self.tape.call(name, (self, *args), options)

    def __bool__(self) -> bool:
        raise Unknown("a condition on the log-odds")


def _record(function: Any, swapped: bool = False) -> Any:
    def method(self: _Symbol, *other: Any) -> Any:
        return self.tape.call(function, (*other, self) if swapped else (self, *other), {})

    return method


for _name in ["add", "sub", "mul", "truediv", "neg", "pow", "le", "lt", "ge", "gt", "eq", "and_"]:
    setattr(_Symbol, f"__{_name.rstrip('_')}__", _record(getattr(operator, _name)))
for _name in ("add", "sub", "mul", "truediv"):
    setattr(_Symbol, f"__r{_name}__", _record(getattr(operator, _name), swapped=True))


def _operand(x: Any) -> Operand:
    if type(x) is _Symbol:
        return x.index
    if isinstance(x, bool | int | float):
        return float(x)
    raise Unknown(repr(x))
