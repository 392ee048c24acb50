"""ψ and ψ' as short programs for the native kernel, read off the Python functions themselves.

On a small batch each PyTorch operation costs a few microseconds whatever its size, and a ψ is ten
of them. ``program_of`` traces a ψ with ``torch.fx`` and writes the operations down as instructions
that C++ runs over all rows in one call. A ψ with an operation it does not know stays in PyTorch.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from losslab.logodds import native

Psi = Callable[[Tensor], Tensor]
Operand = int | float  # a register, or a constant
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
    try:
        graph = fx.Tracer().trace(psi)
        return _Writer().write(graph)
    except (Unknown, fx.proxy.TraceError, TypeError):
        return None


class _Writer:
    """Instructions in the order of the graph; registers are used again when their value is."""

    def __init__(self) -> None:
        self.code: list[bytes] = []
        self.places: dict[fx.Node, Operand] = {}
        self.free = list(range(_REGISTERS - 1, 0, -1))
        self.result: Operand = 0

    def write(self, graph: fx.Graph) -> bytes:
        last = {used: node for node in graph.nodes for used in node.all_input_nodes}
        for node in graph.nodes:
            if node.op == "placeholder":
                self.places[node] = 0
            elif node.op == "output":
                self.result = self.read(node.args[0])
            else:
                self.places[node] = self.emit_node(node)
            for used in node.all_input_nodes:
                place = self.places[used]
                if last[used] is node and isinstance(place, int) and place > 0:
                    self.free.append(place)
        self.emit("add", self.result, 0.0)  # the last instruction's register is the result
        return b"".join(self.code)

    def read(self, x: Any) -> Operand:
        if isinstance(x, fx.Node):
            return self.places[x]
        if isinstance(x, bool | int | float):
            return float(x)
        raise Unknown(repr(x))

    def emit(self, name: str, *operands: Operand) -> Operand:
        if not self.free:
            raise Unknown("too many values at once")
        result = self.free.pop()
        constants, indices = [0.0] * 3, [0] * 3
        for i, operand in enumerate(operands):
            if isinstance(operand, float):
                constants[i], indices[i] = operand, -1 - i
            else:
                indices[i] = operand
        self.code.append(struct.pack("=5i3f", _CODES[name], result, *indices, *constants))
        return result

    def emit_node(self, node: fx.Node) -> Operand:
        target, args, options = node.target, node.args, dict(node.kwargs)
        if target in _BINARY and len(args) == 2 and not options:
            return self.emit(_BINARY[target], self.read(args[0]), self.read(args[1]))
        if target in _UNARY and len(args) == 1 and not options:
            return self.emit(_UNARY[target], self.read(args[0]))
        x = self.read(args[0]) if args else 0.0
        if target is F.softplus and options == {"threshold": 40.0}:
            return self.emit("softplus", x)
        if target is torch.where and len(args) == 3:
            return self.emit("where", x, self.read(args[1]), self.read(args[2]))
        if target is torch.relu:
            return self.emit("max", x, 0.0)
        if target == "square":
            return self.emit("mul", x, x)
        if target in ("masked_fill", "masked_fill_"):
            return self.emit("where", self.read(args[1]), self.read(args[2]), x)
        if target == "where":
            return self.emit("where", self.read(args[1]), x, self.read(args[2]))
        if target == "clamp":
            return self.clamp(x, *args[1:], **options)
        if target in (torch.zeros_like, torch.full_like):
            return float(args[1]) if target is torch.full_like else 0.0  # type: ignore[arg-type]
        raise Unknown(str(target))

    def clamp(self, x: Operand, min: Any = None, max: Any = None) -> Operand:
        if min is not None:
            x = self.emit("max", x, self.read(min))
        return x if max is None else self.emit("min", x, self.read(max))


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
