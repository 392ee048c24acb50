"""What a metric takes: checked once, turned to float64, or refused in words."""

from __future__ import annotations

import torch
from torch import Tensor

from losslab.errors import InputError


def wide(tensor: Tensor) -> torch.dtype:
    """float64, but float32 on devices that have nothing wider."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def checked(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The same logits in float64 and the same target as int64, or an `InputError`."""
    _check_shape(logits)
    check_tensor(target, "target", "class numbers, (examples,)")
    if target.shape != logits.shape[:1]:
        raise InputError(
            f"Expected one target a row of the logits, shape ({len(logits)},), but got "
            f"{tuple(target.shape)}; pass class numbers, not probabilities."
        )
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise InputError(
            f"Expected target to hold class numbers, but got {target.dtype}; use target.long()."
        )
    _check_size(logits)
    low, high = (int(value) for value in target.aminmax())
    if low < 0 or high >= logits.shape[1]:
        raise InputError(
            f"Expected every target in [0, {logits.shape[1] - 1}], but they lie in [{low}, {high}];"
            " leave out rows to be ignored (such as -100) before measuring."
        )
    return logits.to(wide(logits)), target.long()


def check_tensor(value: object, name: str, holding: str) -> None:
    """Raise `InputError` for what is no tensor: an array or a list is not turned into one."""
    if not isinstance(value, Tensor):
        kind = type(value)
        came = "a NumPy array" if kind.__module__ == "numpy" else f"a {kind.__name__}"
        raise InputError(
            f"Expected {name} to be a torch.Tensor of {holding}, but got {came}; pass "
            f"torch.as_tensor({name})."
        )


def finite(logits: Tensor, target: Tensor, classes: int = 1) -> tuple[Tensor, Tensor]:
    """`checked`, and every logit finite, and at least so many classes."""
    logits, target = checked(logits, target)
    _check_finite(logits, classes)
    return logits, target


def finite_logits(logits: Tensor, classes: int = 2) -> Tensor:
    """Logits without a target: their shape checked, finite, in float64."""
    _check_shape(logits)
    _check_size(logits)
    _check_finite(logits, classes)
    return logits.to(wide(logits))


def finite_values(values: Tensor, name: str) -> Tensor:
    """One number an example, ``(N,)``, finite and at least one; in float64."""
    check_tensor(values, name, "one floating-point number an example, (N,)")
    if values.ndim != 1 or not values.is_floating_point():
        raise InputError(
            f"Expected {name} to be a floating-point tensor of one number an example, (N,), but "
            f"got {tuple(values.shape)} {values.dtype}."
        )
    if not len(values):
        raise InputError(f"Expected at least one example in {name}, but it is empty.")
    broken = int((~values.isfinite()).sum())
    if broken:
        raise InputError(
            f"Expected {name} to be finite, but {broken} of {len(values)} numbers are not; the "
            "model has diverged, or its inputs are not what it was trained on."
        )
    return values.to(wide(values))


def whole(number: object, name: str) -> int:
    """A whole number of at least 1."""
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise InputError(f"Expected {name} to be a whole number of at least 1, but got {number!r}.")
    return number


def choice(value: object, name: str, known: tuple[str, ...]) -> str:
    """One of the known words."""
    if value not in known:
        raise InputError(f"Expected {name} to be one of {', '.join(known)}, but got {value!r}.")
    return str(value)


def _check_shape(logits: Tensor) -> None:
    check_tensor(logits, "logits", "shape (examples, classes)")
    if logits.ndim != 2 or not logits.is_floating_point():
        raise InputError(
            "Expected logits of shape (examples, classes) in a floating-point dtype, but got "
            f"{tuple(logits.shape)} {logits.dtype}."
        )


def _check_size(logits: Tensor) -> None:
    if logits.numel() == 0:
        raise InputError(
            f"Expected at least one example and one class, but got logits of shape "
            f"{tuple(logits.shape)}: a metric of nothing is not defined."
        )


def _check_finite(logits: Tensor, classes: int) -> None:
    if logits.shape[1] < classes:
        raise InputError(
            f"Expected at least {classes} classes, but the logits have {logits.shape[1]}: with "
            "one class there are no others to compare it with."
        )
    broken = int((~logits.isfinite()).any(dim=1).sum())
    if broken:
        raise InputError(
            f"Expected finite logits, but those of {broken} of {len(logits)} examples are not; the "
            "model has diverged, or its inputs are not what it was trained on. (A class that is "
            "ruled out needs a large negative logit here, not -inf.)"
        )
