"""ψ and ψ' as short programs for the native kernel, read off the Python functions themselves.

On a small batch each PyTorch operation costs a few microseconds whatever its size, and a ψ is ten
of them. ``program_of`` calls a ψ with a symbol in place of the log-odds and writes down what it
does as instructions, which C++ runs over all rows in one call. A ψ with an operation that has no
instruction stays in PyTorch.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from losslab.logodds import native

Psi = Callable[[Tensor], Tensor]
Operand = int | float  # the number of a value, or a constant
_REGISTERS = 32
_CODES = {} if native.unavailable() else {n: i for i, n in enumerate(native.codes())}

_BINARY: dict[Any, str] = {
    operator.add: "add", operator.sub: "sub", operator.mul: "mul", operator.truediv: "div",
    operator.le: "le", operator.lt: "lt", operator.ge: "ge", operator.gt: "gt",
    "pow": "pow", torch.minimum: "min", torch.maximum: "max",
}  # fmt: skip
_UNARY: dict[Any, str] = {
    operator.neg: "neg", "neg_": "neg", "neg": "neg", torch.sigmoid: "sigmoid", torch.exp: "exp",
    torch.log1p: "log1p", torch.expm1: "expm1", F.logsigmoid: "logsigmoid", torch.sin: "sin",
    torch.cos: "cos", "isinf": "isinf",
}  # fmt: skip


class Unknown(Exception):
    """An operation that has no instruction."""


def program_of(psi: Psi) -> bytes | None:
    """The instructions of an elementwise function, or None where it has others."""
    if not _CODES:
        return None
    tape = _Tape()
    try:
        result = psi(_Symbol(tape, 0))  # type: ignore[arg-type]
        return tape.program(result)
    except (Unknown, TypeError):
        return None


class _Tape:
    """What a ψ did, as instructions on values numbered in the order they came about; 0 is a."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, tuple[Operand, ...]]] = []

    def call(self, function: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if function in _BINARY and len(args) == 2 and not options:
            return self.emit(_BINARY[function], *args)
        if function in _UNARY and len(args) == 1 and not options:
            return self.emit(_UNARY[function], *args)
        if function is F.softplus and options == {"threshold": 40.0}:
            return self.emit("softplus", *args)
        if function is torch.where and len(args) == 3:
            return self.emit("where", *args)
        if function is torch.relu:
            return self.emit("max", *args, 0.0)
        if function == "square":
            return self.emit("mul", *args, *args)
        if function in ("masked_fill", "masked_fill_"):
            return self.emit("where", args[1], args[2], args[0])
        if function == "where":
            return self.emit("where", args[1], args[0], args[2])
        if function == "clamp":
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

    def program(self, result: Any) -> bytes:
        """The steps, with registers used again once their value has been used for the last time."""
        self.emit("add", result, 0.0)  # the last instruction's register is the result
        last = {x: i for i, (_, used) in enumerate(self.steps) for x in used if isinstance(x, int)}
        places, free = {0: 0}, list(range(_REGISTERS - 1, 0, -1))
        code = []
        for i, (name, operands) in enumerate(self.steps):
            if not free:
                raise Unknown("too many values at once")
            places[i + 1] = free.pop()
            code.append(_instruction(name, places[i + 1], operands, places))
            done = {x for x in operands if isinstance(x, int) and x > 0 and last[x] == i}
            free += [places[x] for x in done]
        return b"".join(code)


class _Symbol:
    """Stands for log-odds while a ψ is traced; everything done to it goes onto the tape."""

    def __init__(self, tape: _Tape, index: int) -> None:
        self.tape, self.index = tape, index

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        tape = next(x.tape for x in args if isinstance(x, _Symbol))
        return tape.call(function, args, kwargs or {})

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **options: self.tape.call(name, (self, *args), options)

    def __bool__(self) -> bool:
        raise Unknown("a condition on the log-odds")


def _record(function: Any, swapped: bool = False) -> Any:
    def method(self: _Symbol, *other: Any) -> Any:
        return self.tape.call(function, (*other, self) if swapped else (self, *other), {})

    return method


for _name in ("add", "sub", "mul", "truediv", "neg", "le", "lt", "ge", "gt"):
    setattr(_Symbol, f"__{_name}__", _record(getattr(operator, _name)))
for _name in ("add", "sub", "mul", "truediv"):
    setattr(_Symbol, f"__r{_name}__", _record(getattr(operator, _name), swapped=True))


def _operand(x: Any) -> Operand:
    if isinstance(x, _Symbol):
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
    return struct.pack("=5i3f", _CODES[name], result, *indices, *constants)


class NativeOdds:
    """ψ and ψ' run by the native kernel, in one call each."""

    def __init__(self, value: bytes, slope: bytes) -> None:
        self._value, self._slope = value, slope

    def value(self, a: Tensor, reduction: str) -> Tensor:
        if reduction == "none":
            return native.evaluate(self._value, a, torch.empty_like(a))
        scale = 1.0 if reduction == "sum" else 1 / a.numel()
        return native.evaluate(self._value, a, torch.empty(()), scale=scale, total=True)

    def slope(self, a: Tensor) -> Tensor:
        return native.evaluate(self._slope, a, torch.empty_like(a))

    def upstream(self, a: Tensor, grad: Tensor, reduction: str) -> Tensor:
        scale = 1 / a.numel() if reduction == "mean" else 1.0
        return native.evaluate(self._slope, a, torch.empty_like(a), grad=grad, scale=scale)


@lru_cache(maxsize=1024)
def _traced(key: Any) -> NativeOdds | None:
    psi, slope, arguments = key[0], key[1], dict(key[2])
    programs = (
        program_of(lambda a: psi(a, **arguments)),
        program_of(lambda a: slope(a, **arguments)),
    )
    return None if None in programs else NativeOdds(*programs)  # type: ignore[arg-type]


def native_odds(key: Any) -> NativeOdds | None:
    """The programs of ``key`` = (ψ, ψ', arguments as pairs), made once; None if it has none."""
    return None if key is None else _traced(key)
