"""ψ and ψ' as short programs for the native kernel, read off the Python functions themselves.

On a small batch each PyTorch operation costs a few microseconds whatever its size, and a ψ is ten
of them. ``program_of`` calls a ψ with a symbol in place of the log-odds and writes down what it
does as instructions, which C++ runs over all rows in one call. A ψ with an operation that has no
instruction stays in PyTorch.
"""

from __future__ import annotations

import builtins
import math
import operator
import struct
from collections.abc import Callable
from functools import lru_cache, partial
from types import CodeType, FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from losslab.logodds import native

Psi = Callable[[Tensor], Tensor]
Operand = int | float  # the number of a value, or a constant
Steps = tuple[tuple[str, tuple[Operand, ...]], ...]
_REGISTERS = 32
_CODES = {} if native.unavailable() else {n: i for i, n in enumerate(native.codes())}

_BINARY: dict[Any, str] = {
    operator.add: "add", operator.sub: "sub", operator.mul: "mul", operator.truediv: "div",
    operator.le: "le", operator.lt: "lt", operator.ge: "ge", operator.gt: "gt",
    "pow": "pow", operator.pow: "pow", torch.pow: "pow", torch.minimum: "min", torch.maximum: "max",
}  # fmt: skip
_UNARY: dict[Any, str] = {
    operator.neg: "neg", "neg_": "neg", "neg": "neg", torch.sigmoid: "sigmoid", torch.exp: "exp",
    torch.log1p: "log1p", torch.expm1: "expm1", F.logsigmoid: "logsigmoid", torch.sin: "sin",
    torch.cos: "cos", "isinf": "isinf", torch.neg: "neg",
    **{name: name for name in ("sigmoid", "exp", "log1p", "expm1", "sin", "cos")},
}  # fmt: skip


class Unknown(Exception):
    """An operation that has no instruction."""


def program_of(psi: Psi) -> bytes | None:
    """The instructions of an elementwise function, or None where it has others."""
    steps = _steps_of(psi)
    return None if steps is None else _program(steps)


def _steps_of(psi: Psi) -> Steps | None:
    """What a ψ does to log-odds; None where that is not known to the last operation."""
    if not _CODES:
        return None
    tape = _Tape()
    try:
        result: Any = psi(_Symbol(tape, 0))  # type: ignore[arg-type]
        if type(result) is not _Symbol:
            return None
        tape.emit("add", result, 0.0)
    except Exception:  # a ψ that fails here is called with log-odds next, and fails there if at all
        return None
    return tuple(tape.steps)


class _Tape:
    """What a ψ did, as instructions on values numbered in the order they came about; 0 is a."""

    def __init__(self, steps: Steps = ()) -> None:
        self.steps = list(steps)

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
        return _Symbol(self, len(self.steps))


def _program(steps: Steps) -> bytes | None:
    """Instructions in which registers are used again once their value is no longer wanted."""
    last = {x: i for i, (_, used) in enumerate(steps) for x in used if isinstance(x, int)}
    places, free = {0: 0}, list(range(_REGISTERS - 1, 0, -1))
    code = []
    for i, (name, operands) in enumerate(steps):
        if not free:
            return None
        places[i + 1] = free.pop()
        code.append(_instruction(name, places[i + 1], operands, places))
        done = {x for x in operands if isinstance(x, int) and x > 0 and last[x] == i}
        if i + 1 not in last and i + 1 < len(steps):
            done.add(i + 1)  # nobody looks at it
        free += [places[x] for x in done]
    return b"".join(code)


def _differentiated(steps: Steps) -> Steps:
    """The steps of ψ', by the chain rule from the first step to the last."""
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
    **{name: (lambda x, v: 0.0) for name in ("le", "lt", "ge", "gt", "isinf")},
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


for _name in ("add", "sub", "mul", "truediv", "neg", "le", "lt", "ge", "gt", "pow"):
    setattr(_Symbol, f"__{_name}__", _record(getattr(operator, _name)))
for _name in ("add", "sub", "mul", "truediv"):
    setattr(_Symbol, f"__r{_name}__", _record(getattr(operator, _name), swapped=True))


def _operand(x: Any) -> Operand:
    if type(x) is _Symbol:
        return x.index
    if isinstance(x, bool | int | float):
        return float(x)
    raise Unknown(repr(x))


def _instruction(
    name: str, result: int, operands: tuple[Operand, ...], places: dict[int, int]
) -> bytes:
    constants, indices = [0.0] * 3, [0] * 3
    for i, operand in enumerate(operands):
        if isinstance(operand, float):
            constants[i], indices[i] = operand, -1 - i
        else:
            indices[i] = places[operand]
    code = _CODES["max" if name == "relu" else name]
    return struct.pack("=5i3f", code, result, *indices, *constants)


class NativeOdds:
    """ψ and ψ' run by the native kernel, in one call each."""

    def __init__(self, value: bytes, slope: bytes) -> None:
        self.value_program, self.slope_program = value, slope

    def value(self, a: Tensor, reduction: str) -> Tensor:
        if reduction == "none":
            return native.evaluate(self.value_program, a, torch.empty_like(a))
        scale = 1.0 if reduction == "sum" else 1 / a.numel()
        return native.evaluate(self.value_program, a, torch.empty(()), scale=scale, total=True)

    def slope(self, a: Tensor) -> Tensor:
        return native.evaluate(self.slope_program, a, torch.empty_like(a))

    def upstream(self, a: Tensor, grad: Tensor, reduction: str) -> Tensor:
        scale = 1 / a.numel() if reduction == "mean" else 1.0
        return native.evaluate(self.slope_program, a, torch.empty_like(a), grad=grad, scale=scale)


@lru_cache(maxsize=1024)
def _traced(key: Any) -> NativeOdds | None:
    psi, slope, arguments = key[0], key[1], dict(key[2])
    value = program_of(lambda a: psi(a, **arguments))
    derivative = program_of(lambda a: slope(a, **arguments))
    return None if value is None or derivative is None else NativeOdds(value, derivative)


def _derived(steps: Steps, psi: Psi) -> NativeOdds | None:
    """The programs of a ψ that has just done ``steps``; made, and compared with it, once."""
    key = steps, _origin(psi)
    return _known[key] if key in _known else _remember(key, _made(steps, psi))


def _remember(key: Any, odds: NativeOdds | None) -> NativeOdds | None:
    if len(_known) >= 1024:
        _known.clear()
    _known[key] = odds
    return odds


def _origin(psi: Psi) -> Any:
    """What wrote the steps: the function's code, and the functions it closes over."""
    code = getattr(psi, "__code__", None)
    if code is None:
        return psi
    cells = [cell.cell_contents for cell in getattr(psi, "__closure__", None) or ()]
    return code, *(value for value in cells if callable(value))


_known: dict[Any, NativeOdds | None] = {}
_SAMPLE = (-31.7, -5.3, -1.13, -0.37, 0.29, 1.57, 6.1, 23.9)


def _made(steps: Steps, psi: Psi) -> NativeOdds | None:
    try:
        value, derivative = _program(steps), _program(_differentiated(steps))
    except Unknown:
        return None
    if value is None or derivative is None:
        return None
    odds = NativeOdds(value, derivative)
    # A ψ that treats a symbol differently from log-odds shows it here.
    with torch.enable_grad():
        a = torch.tensor(_SAMPLE, requires_grad=True)
        losses = psi(a)
        if not losses.requires_grad:
            return None
        (slope,) = torch.autograd.grad(losses.sum(), a)
    same = partial(torch.allclose, rtol=1e-4, atol=1e-6, equal_nan=True)
    found = odds.value(a.detach(), "none"), odds.slope(a.detach())
    return odds if same(found[0], losses.detach()) and same(found[1], slope) else None


def native_odds(key: Any, psi: Psi) -> NativeOdds | None:
    """The programs of a ψ and its ψ', or None where it has an operation that is none of theirs.

    With a ``key`` = (ψ, ψ', arguments as pairs) they are made once. Any other ψ is traced anew each
    time, since it may depend on anything, and differentiated where it is not the same as before.
    """
    if key is not None:
        return _traced(key)
    settled = _settled(psi)
    if settled is not None and settled in _known:
        return _known[settled]
    steps = _steps_of(psi)
    try:
        odds = None if steps is None else _derived(steps, psi)
    except TypeError:  # a ψ that cannot be told from others
        return None
    return odds if settled is None else _remember(settled, odds)


def _settled(psi: Psi) -> Any:
    """A key that says all that a ψ depends on: its code, where that names nothing but PyTorch's
    functions, and the numbers it closes over. None where there is more."""
    code = getattr(psi, "__code__", None)
    if type(psi) is not FunctionType or psi.__defaults__ or psi.__kwdefaults__ or code is None:
        return None
    known = psi.__globals__
    for name in code.co_names:
        if name in known and not any(known[name] is module for module in _UNCHANGING):
            return None
        if name not in known and (name in _NUMBERS or hasattr(builtins, name)):
            return None
    if any(type(constant) is CodeType for constant in code.co_consts):
        return None
    numbers = tuple(cell.cell_contents for cell in psi.__closure__ or ())
    return (code, numbers) if all(type(x) in (float, int) for x in numbers) else None


_UNCHANGING = (torch, F, math)
_NUMBERS = ("item", "tolist")  # made of a tensor, which may be another one the next time
