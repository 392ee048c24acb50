"""Which classes each rank holds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from losslab.errors import InputError
from losslab.parallel import exchange
from losslab.parallel.exchange import Group

T = TypeVar("T")


@dataclass(frozen=True)
class ClassSplit:
    """The classes of this rank: ``size`` of them from ``start`` on, of ``total`` in all.

    Shards may be uneven, and a rank may hold none. Make it once, on every rank of the group, and
    hand it to each call.

    Args:
        start: first class of this rank.
        size: number of classes of this rank.
        total: number of classes of all ranks together.
        group: the process group that shares the classes; None is the default group, or this
            process alone where ``torch.distributed`` is not initialised.

    Example:
        >>> from losslab.parallel import ClassSplit
        >>> ClassSplit(start=0, size=10, total=10).part(list(range(10)))[:3]
        [0, 1, 2]
    """

    start: int
    size: int
    total: int
    group: Group = None

    def __post_init__(self) -> None:
        if not (self.start >= 0 and self.size >= 0 and 0 < self.total >= self.start + self.size):
            raise InputError(
                "ClassSplit needs 0 ≤ start, 0 ≤ size and start + size ≤ total; got "
                f"start={self.start}, size={self.size}, total={self.total}."
            )
        _refuse_outsider(self.group)

    @classmethod
    def gather(cls, size: int, group: Group = None) -> ClassSplit:
        """The split found by asking every rank of ``group`` for its number of classes.

        Ranks hold consecutive classes in the order of their rank. All ranks must call it.
        """
        _refuse_outsider(group)
        sizes = exchange.objects(int(size), group, "tell each other how many classes they hold")
        rank = exchange.rank(group)
        return cls(sum(sizes[:rank]), sizes[rank], sum(sizes), group)

    @classmethod
    def even(cls, total: int, group: Group = None) -> ClassSplit:
        """``total`` classes as ``torch.chunk`` and DTensor share them; nothing is communicated.

        Every rank holds ⌈total/ranks⌉ classes, until there are none left.
        """
        _refuse_outsider(group)
        return cls.chunk(total, exchange.rank(group), exchange.ranks(group), group)

    @classmethod
    def chunk(cls, total: int, rank: int, ranks: int, group: Group = None) -> ClassSplit:
        """The share of one rank by the rule of ``torch.chunk``."""
        each = -(-total // ranks)
        start = min(rank * each, total)
        return cls(start, min(each, total - start), total, group)

    @property
    def ranks(self) -> int:
        return exchange.ranks(self.group)

    @property
    def rank(self) -> int:
        return exchange.rank(self.group)

    @property
    def stop(self) -> int:
        return self.start + self.size

    def part(self, values: T) -> T:
        """This rank's share of something that lists all classes along its first dimension."""
        return values[self.start : self.stop]  # type: ignore[index]

    def some(self, classes: slice) -> ClassSplit:
        """A run of this rank's classes."""
        return replace(self, start=self.start + classes.start, size=classes.stop - classes.start)

    def columns(self, logits: Tensor) -> Tensor:
        """The class of each column of local logits, shaped to broadcast against them."""
        every = torch.arange(self.start, self.stop, device=logits.device)
        return every.view(1, -1, *[1] * (logits.dim() - 2))

    def locate(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """Each target's place among this rank's classes (any place if elsewhere), and if here."""
        place = target - self.start
        owned = (place >= 0) & (place < self.size)
        return place.clamp(0, max(self.size - 1, 0)), owned


def _refuse_outsider(group: Group) -> None:
    if exchange.ranks(group) < 1:
        raise InputError(
            "this process does not belong to the process group of its ClassSplit: give the group "
            "that holds this rank's share of the classes."
        )
