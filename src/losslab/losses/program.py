"""ψ and ψ' as short programs for the native kernel, read off the Python functions themselves.

On a small batch each PyTorch operation costs a few microseconds whatever its size, and a ψ is ten
of them. The steps that ``trace.py`` reads off a ψ become instructions here, which C++ runs over all
rows in one call. A ψ with an operation that has no instruction stays in PyTorch.
"""

from __future__ import annotations

import builtins
import math
import struct
from functools import lru_cache, partial
from types import CodeType, FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from losslab.logodds import native
from losslab.losses.trace import Operand, Psi, Steps, Unknown, differentiated, steps_of

_REGISTERS = 32
_CODES = {} if native.unavailable() else {n: i for i, n in enumerate(native.codes())}


def program_of(psi: Psi) -> bytes | None:
    """The instructions of an elementwise function, or None where it has others."""
    steps = steps_of(psi) if _CODES else None
    try:
        return None if steps is None else _program(steps)
    except Unknown:
        return None


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


def _instruction(
    name: str, result: int, operands: tuple[Operand, ...], places: dict[int, int]
) -> bytes:
    constants, indices = [0.0] * 3, [0] * 3
    for i, operand in enumerate(operands):
        if isinstance(operand, float):
            constants[i], indices[i] = operand, -1 - i
        else:
            indices[i] = places[operand]
    code = _CODES.get("max" if name == "relu" else name)
    if code is None:
        raise Unknown(name)
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
        value, derivative = _program(steps), _program(differentiated(steps))
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
    steps = steps_of(psi) if _CODES else None
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
