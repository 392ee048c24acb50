"""What must hold between the ranks, told by a few numbers that ride along with each exchange."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from losslab.errors import InputError
from losslab.parallel import exchange
from losslab.parallel.split import ClassSplit

SUMMING = "sum up the probabilities of each row"
_EXACT = 1 << 24  # whole numbers up to here are exact in float32
_DIFFERENT_TARGETS = (
    "the targets differ between the ranks that share the classes: they must all see the same rows "
    "in the same order. Seed the sampler alike on these ranks."
)
_NO_PARTITION = (
    "the ranks' shares do not make up {} classes, each on one rank and every target among them. "
    "Make the split with ClassSplit.gather(number of classes on this rank), and see that the "
    "targets are in range."
)


def largest(x: Tensor, target: Tensor, split: ClassSplit) -> Tensor:
    """Maximum over the ranks of some numbers a row; the targets must be alike and the classes end
    where the split says."""
    checksum = _checksum(target)
    extra = torch.stack([checksum, -checksum, torch.full_like(checksum, split.stop)])
    sent = torch.cat([x.flatten(), extra.to(x.dtype)])
    found = exchange.largest(sent, split.group, "find the largest logit of each row")
    high, minus_low, stop = found[-3:].unbind()
    _check(high == -minus_low, _DIFFERENT_TARGETS)
    if split.total < _EXACT:
        _check(stop == split.total, _NO_PARTITION.format(split.total))
    return found[:-3].view_as(x)


def gathered(x: Tensor, target: Tensor | None, split: ClassSplit) -> Tensor:
    """(ranks, *x.shape): every rank's numbers; if there are targets they must be alike."""
    checksum = x.new_zeros(1) if target is None else _checksum(target).to(x.dtype).view(1)
    sent = torch.cat([x.flatten(), checksum])
    found = exchange.gathered(sent, split.group, "find the two largest logits of each row")
    _check((found[:, -1] == checksum).all(), _DIFFERENT_TARGETS)
    return found[:, :-1].unflatten(1, x.shape)


def total(numbers: Sequence[Tensor], target: Tensor, split: ClassSplit) -> list[Tensor]:
    """Sums over the ranks of a few numbers a row; each target must be on one rank."""
    owned = split.locate(target)[1].sum()
    extra = torch.stack([torch.full_like(owned, split.size), owned])
    sent = torch.cat([*(x.flatten() for x in numbers), extra.to(numbers[0].dtype)])
    found = exchange.total(sent, split.group, SUMMING)
    size, owners = found[-2:].unbind()
    if max(split.total, target.numel()) < _EXACT:
        whole = (size == split.total) & (owners == target.numel())
        _check(whole, _NO_PARTITION.format(split.total))
    return [x.view_as(target) for x in found[:-2].chunk(len(numbers))]


def _checksum(target: Tensor) -> Tensor:
    """A whole number below 2^24 that depends on every target and its place."""
    places = torch.arange(1, target.numel() + 1, device=target.device)
    return ((target.flatten() + 1) * places).sum() % (_EXACT - 3)


def _check(holds: Tensor, message: str) -> None:
    """Raise InputError, or on an accelerator assert there, without waiting for it."""
    if holds.device.type != "cpu":
        torch._assert_async(holds, message)
    elif not holds:
        raise InputError(message)
