"""The one place that chooses how log-odds are computed, and says why.

``LOSSLAB_BACKEND`` or :func:`set_backend` asks for one kernel; what cannot be met then raises. Left
alone, the fastest kernel that takes the tensors is used, and PyTorch's own operations otherwise.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from losslab.errors import InputError, nearest
from losslab.logodds import eager, kernel, native, plain, triton
from losslab.logodds.plain import being_transformed

NAMES = ("auto", "native", "triton", "eager")
_requested = os.environ.get("LOSSLAB_BACKEND") or "auto"
_native = native.unavailable() is None
_NO_TARGET = torch.empty(0, dtype=torch.int64)


def set_backend(name: str) -> None:
    """Ask for one way to compute log-odds from here on; ``LOSSLAB_BACKEND`` does so from the start.

    Args:
        name: ``"native"`` (C++ on the CPU), ``"triton"`` (GPU), ``"eager"`` (PyTorch operations
            alone) or ``"auto"``, the best that takes the tensors at hand.

    Raises:
        InputError: an unknown name, or one that this machine cannot run. Tensors that the asked-for
            backend does not take raise when they come; nothing falls back silently.

    Example:
        >>> import losslab
        >>> losslab.set_backend("eager")
        >>> losslab.set_backend("auto")
    """
    global _requested
    reason = _why_not(_known(name))
    if reason:
        raise InputError(f"the backend {name!r} cannot run here: {reason}.")
    _requested = name


def log_odds(logits: Tensor, target: Tensor) -> Tensor:
    """Log-odds of validated ``logits`` (N, C, …) and ``target`` (N, …) by the best way there is."""
    chosen = kernel_for(logits, target)
    if chosen is not None:
        return kernel.log_odds(chosen, logits, target)
    if torch.compiler.is_compiling() and _takes_compiled(logits):
        return _operator(logits, target)
    return plain.log_odds(logits, target)


def all_log_odds(logits: Tensor) -> Tensor:
    """Log-odds of every class of ``logits`` (N, C, …)."""
    return kernel.all_log_odds(logits) if takes_all(logits) else plain.all_log_odds(logits)


def takes_all(logits: Tensor) -> bool:
    """Whether the native kernel computes every class's log-odds of these logits."""
    return (
        _native
        and _requested in ("auto", "native")
        and logits.dim() == 2
        and logits.stride(1) == 1
        and not being_transformed()
        and native.refuses(logits, _NO_TARGET) is None
    )


def kernel_for(logits: Tensor, target: Tensor) -> kernel.Kernel | None:
    """The kernel for these tensors; None where only an operator or plain operations will do."""
    if _requested not in ("auto", "eager"):
        _insist(logits, target)
    if being_transformed():
        return None
    if _requested == "eager":
        return eager
    if _native and native.refuses(logits, target) is None:
        return native
    if logits.device.type != "cpu" and triton.refuses(logits, target) is None:
        return triton
    return eager


def _insist(logits: Tensor, target: Tensor) -> None:
    """Raise where the backend that was asked for cannot do this."""
    name = _known(_requested)
    reason = _why_not(name)
    if reason is None and torch.compiler.is_compiling():
        if name != "native" or not _takes_compiled(logits):
            reason = "compiled, only the native kernel can be called, on float32, bfloat16, float16"
    elif reason is None and being_transformed():
        reason = "torch.func, tracers and dispatch modes need plain operations"
    elif reason is None:
        refuses = native.refuses if name == "native" else triton.refuses
        reason = refuses(logits, target)
    if reason:
        raise InputError(
            f"the backend {name!r} was asked for (LOSSLAB_BACKEND or set_backend), but it "
            f"cannot be used: {reason}. Ask for 'auto' to take what fits."
        )


def requested() -> str:
    """The backend that was asked for; ``"auto"`` where none was."""
    return _requested


def asked_for(name: str) -> bool:
    """Whether this backend was asked for by name, and plain operations are not wanted."""
    return _requested == name and not being_transformed()


def backend_report() -> str:
    """What can compute log-odds on this machine, what is used when, and why.

    Returns:
        Text of a dozen lines, for people.

    Example:
        >>> import losslab
        >>> "eager" in losslab.backend_report()
        True
    """
    asked = "automatic" if _requested == "auto" else f"{_requested!r} was asked for"
    lines = [f"losslab backends ({asked}; LOSSLAB_BACKEND or losslab.set_backend asks for one)"]
    for name, about in _ABOUT.items():
        reason = _why_not(name)
        detail = f"{about}; {native.describe()}" if name == "native" and not reason else about
        lines.append(f"  {name:<8}{'no:  ' + reason if reason else 'yes: ' + detail}")
    lines += ["used for"]
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            lines.append(f"  {device} {str(dtype)[6:]:<10}{backend_for(device, dtype)}")
    lines.append(
        "under torch.compile: native on the CPU, else plain operations, which it fuses; "
        "under torch.func, for second derivatives and subclasses: plain operations"
    )
    return "\n".join(lines)


_ABOUT = {
    "native": "C++ kernel on the CPU for float32, bfloat16 and float16",
    "triton": "Triton kernels on a GPU",
    "eager": "PyTorch operations on any device and dtype",
}


def backend_for(device: str | torch.device, dtype: torch.dtype = torch.float32) -> str:
    """The name of the backend that takes ordinary logits of this device and dtype."""
    if _requested != "auto":
        return _requested
    device = torch.device(device)
    if device.type == "cpu":
        return "native" if _native and dtype in native.DTYPES else "eager"
    return "triton" if _why_not("triton") is None else "eager"


def _known(name: str) -> str:
    if name not in NAMES:
        raise InputError(
            f"unknown backend {name!r} (LOSSLAB_BACKEND or set_backend)."
            f"{nearest(str(name), NAMES)} Known: {', '.join(NAMES)}."
        )
    return name


def _why_not(name: str) -> str | None:
    """Why a backend cannot run on this machine at all, or None."""
    if name == "native":
        return native.unavailable()
    if name == "triton":
        return triton.unavailable()
    return None


def _takes_compiled(logits: Tensor) -> bool:
    return (
        _native
        and _requested != "eager"
        and logits.device.type == "cpu"
        and logits.dtype in native.DTYPES
        and not torch._C._are_functorch_transforms_active()
    )


def _operator(logits: Tensor, target: Tensor) -> Tensor:
    from losslab.logodds import operator

    return operator.log_odds(logits, target)


def target_span(target: Tensor) -> tuple[int, int] | None:
    """(min, max) of the targets where a look is free: plain CPU tensors outside transforms."""
    if not _can_look(target):
        return None
    low, high = torch.aminmax(target)
    return int(low), int(high)


def all_in_range(target: Tensor, classes: int, ignore_index: int) -> bool:
    """Whether a quick look shows that no class index is ignored and each lies in [0, classes)."""
    return count_ignored(target, classes, ignore_index) == 0


def count_ignored(target: Tensor, classes: int, ignore_index: int) -> int | None:
    """How many class indices are ignored; None where another lies outside of [0, classes), or no
    quick look can tell."""
    if target.dtype != torch.int64 or not _can_look(target):
        return None
    if _native and target.is_contiguous():
        found = native.scan(target, classes, ignore_index)
        return None if found < 0 else found
    low, high = (int(x) for x in torch.aminmax(target))
    if low >= 0 and high < classes and not low <= ignore_index <= high:
        return 0
    ignored = target == ignore_index
    bad = ((target < 0) | (target >= classes)) & ~ignored
    return None if bool(bad.any()) else int(ignored.sum())


def _can_look(target: Tensor) -> bool:
    return (
        target.device.type == "cpu"
        and type(target) is Tensor
        and target.numel() > 0
        and not being_transformed()
    )
