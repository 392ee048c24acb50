"""The kernel in C++ for the CPU: float32, bfloat16 and float16, one pass forward and one back.

``native.cpp`` is built when the package is installed, where there is a compiler; without it this
module says so in ``unavailable()`` and the selector takes another kernel. It is handed addresses,
so everything that C++ cannot see is checked here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

_reason = ""
try:
    from losslab.logodds import _native  # type: ignore[attr-defined]
except ImportError as error:
    _native, _reason = None, str(error)

name = "native"
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # and their codes in C++
_PLAIN = (Tensor, torch.nn.Parameter)

Layout = tuple[int, int, int, int, int, int]  # outer, classes, inner and their strides


def unavailable() -> str | None:
    """Why the kernel cannot be used on this machine at all, or None."""
    if _native is None:
        return f"not built ({_reason}): install losslab where there is a C++ compiler"
    return None


def describe() -> str:
    """The instruction set and the threads in use."""
    return f"{_native.level()}, threads by {_native.threads()}"


def refuses(logits: Tensor, target: Tensor) -> str | None:
    """Why these tensors are not for this kernel, or None."""
    if logits.dtype not in DTYPES:
        return f"computes {', '.join(str(d)[6:] for d in DTYPES)}, not {str(logits.dtype)[6:]}"
    if logits.device.type != "cpu":
        return f"runs on the CPU, not on {logits.device.type}"
    if type(logits) not in _PLAIN or type(target) is not Tensor:
        return "takes plain tensors, not subclasses"
    if logits.layout is not torch.strided or logits.is_neg():
        return "takes dense tensors"
    if layout(logits) is None:
        return "needs the classes, or the positions, side by side in memory"
    return None


def layout(z: Tensor) -> Layout | None:
    """(N, C, …) as (outer, classes, inner) with their strides, where the kernel can walk it."""
    if z.dim() == 2:
        (n, c), (row, step) = z.shape, z.stride()
        if step == 1 or c == 1:
            return n, c, 1, row, 1, 0
        return (1, c, n, 0, step, 1) if row == 1 or n == 1 else None
    try:
        flat = z.view(z.shape[0], z.shape[1], -1) if z.numel() else z.new_empty(0, z.shape[1], 1)
    except RuntimeError:  # positions that one stride cannot walk
        return None
    (n, c, p), (row, step, place) = flat.shape, flat.stride()
    if step == 1 or c == 1:
        return n, c, p, row, 1, place
    return (n, c, p, row, step, place) if place == 1 or p == 1 else None


def scan(target: Tensor, classes: int, ignore_index: int) -> int:
    """How many targets of a contiguous CPU tensor are ignored; −1 if another is out of range."""
    return _native.scan(target.data_ptr(), target.numel(), classes, ignore_index)


def statistics(
    logits: Tensor, target: Tensor, out: tuple[Tensor, Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(a, m, s) of each row."""
    target = target.contiguous()
    if out is None:
        log_odds = torch.empty_like(target, dtype=torch.float32)
        out = log_odds, torch.empty_like(log_odds), torch.empty_like(log_odds)
    log_odds, shift, total = out
    _native.statistics(
        DTYPES[logits.dtype],
        *_walk(logits),
        torch.get_num_threads(),
        logits.data_ptr(),
        target.data_ptr(),
        log_odds.data_ptr(),
        shift.data_ptr(),
        total.data_ptr(),
    )
    return log_odds, shift, total


def gradient(
    logits: Tensor,
    target: Tensor,
    shift: Tensor,
    total: Tensor,
    grad: Tensor,
    out: Tensor | None = None,
) -> Tensor:
    """g·(e_y − q), each logit read once and each gradient written once."""
    target, grad = target.contiguous(), grad.contiguous()
    fresh = out is None
    if out is None:
        out = torch.empty_like(logits)  # dense logits keep their strides, others get contiguous
    walk, result = _walk(logits), _walk(out)
    if walk[:3] != result[:3] or (walk[4] == 1) != (result[4] == 1):
        raise ValueError(f"out does not lie as the logits do: {result} beside {walk}")
    _native.gradient(
        DTYPES[logits.dtype],
        *walk,
        *result[3:],
        torch.get_num_threads(),
        logits.data_ptr(),
        target.data_ptr(),
        shift.data_ptr(),
        total.data_ptr(),
        grad.data_ptr(),
        out.data_ptr(),
        fresh,
    )
    return out


def _walk(z: Tensor) -> Layout:
    found = layout(z)
    assert found is not None, "refuses() comes first"
    return found


def codes() -> tuple[str, ...]:
    """The names of an elementwise program's instructions."""
    return _native.codes()


def evaluate(
    program: bytes,
    a: Tensor,
    out: Tensor,
    *,
    grad: Tensor | None = None,
    scale: float = 1.0,
    total: bool = False,
) -> Tensor:
    """An elementwise program over float32 ``a``: its values times ``grad`` (one number, or one a
    row) and ``scale``, or, with ``total``, their sum times ``scale``."""
    if grad is not None:
        grad = grad.to(torch.float32).contiguous()
    _native.evaluate(
        program,
        a.data_ptr(),
        a.numel(),
        0 if grad is None else grad.data_ptr(),
        0 if grad is None or grad.dim() == 0 else 1,
        scale,
        total,
        torch.get_num_threads(),
        out.data_ptr(),
    )
    return out


def prepared(
    program: bytes, a: Tensor, out: Tensor, grad: Tensor | None = None, scale: float = 1.0
) -> Callable[[], None]:
    """`evaluate` on the same contiguous float32 tensors again and again, without the ceremony."""
    place = 0 if grad is None else grad.data_ptr()
    threads = torch.get_num_threads()
    numbers = a.data_ptr(), a.numel(), place, 0, scale, False, threads, out.data_ptr()
    return partial(_native.evaluate, program, *numbers)


def all_statistics(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Log-odds of every class of (N, C) rows, and what the gradient needs."""
    n, c = logits.shape
    log_odds, rankings = torch.empty(n, c), _rankings(n)
    _native.all_statistics(
        *_matrix(logits),
        rankings.data_ptr(),
        log_odds.data_ptr(),
    )
    return log_odds, rankings


def all_gradient(logits: Tensor, rankings: Tensor, grad: Tensor) -> Tensor:
    """Gradient of every class's log-odds, weighted by ``grad`` (N, C)."""
    grad, out = grad.contiguous(), torch.empty(logits.shape, dtype=logits.dtype)
    _native.all_gradient(
        *_matrix(logits),
        rankings.data_ptr(),
        grad.data_ptr(),
        out.data_ptr(),
    )
    return out


class Shares(NamedTuple):
    """How much of each class's ψ is in a row's loss: share_k + own_y·[k = y], all float32."""

    every: Tensor  # (N or 1, C or 1)
    target: Tensor | None = None  # (N,) class indices; the row of one out of range is ignored
    own: Tensor | None = None  # (C,) or (1,)


def expected_value(program: bytes, logits: Tensor, shares: Shares) -> tuple[Tensor, Tensor]:
    """(N,) Σ_k share_k ψ(a_k) of (N, C) rows, and what the gradient needs."""
    losses, rankings = torch.empty(logits.shape[0]), _rankings(logits.shape[0])
    _native.expected_value(
        program,
        *_matrix(logits),
        *_shares(shares),
        rankings.data_ptr(),
        losses.data_ptr(),
    )
    return losses, rankings


def expected_gradient(
    program: bytes, logits: Tensor, shares: Shares, rankings: Tensor, grad: Tensor, scale: float
) -> Tensor:
    """The gradient of those losses times ``grad``, one number or one a row, and ``scale``;
    the program is that of ψ'."""
    grad = grad.to(torch.float32).contiguous()
    out = torch.empty(logits.shape, dtype=logits.dtype)
    _native.expected_gradient(
        program,
        *_matrix(logits),
        *_shares(shares),
        rankings.data_ptr(),
        grad.data_ptr(),
        1 if grad.dim() else 0,
        scale,
        out.data_ptr(),
    )
    return out


def _rankings(rows: int) -> Tensor:
    return torch.empty(rows, 8)  # of 32 bytes each: Ranking in native.cpp


def _matrix(logits: Tensor) -> tuple[int, ...]:
    n, c = logits.shape
    threads = torch.get_num_threads()
    return DTYPES[logits.dtype], n, c, logits.stride(0), threads, logits.data_ptr()


def _shares(shares: Shares) -> tuple[int, ...]:
    every, target, own = shares
    rows, classes = every.shape
    return (
        every.data_ptr(),
        every.stride(0) if rows > 1 else 0,
        1 if classes > 1 else 0,
        0 if target is None else target.data_ptr(),
        0 if own is None else own.data_ptr(),
        0 if own is None or own.numel() == 1 else 1,
    )
