"""DTensors: what of them is here, which classes these are, and who holds the other rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from losslab.errors import InputError
from losslab.parallel.exchange import Group
from losslab.parallel.split import ClassSplit


@dataclass(frozen=True)
class Share:
    """This rank's part of a tensor: ``split`` is None where it has all classes; ``others`` are the
    groups over which the rows are spread."""

    local: Tensor
    split: ClassSplit | None
    others: tuple[Group, ...] = ()


def is_dtensor(x: Any) -> bool:
    return hasattr(x, "placements") and hasattr(x, "device_mesh")


def share_of(x: Any, class_dim: int, name: str) -> Share:
    """A DTensor's part on this rank; the classes may be sharded on one dimension of its mesh."""
    split, others = None, []
    for i, placement in enumerate(x.placements):
        if placement.is_replicate():
            continue
        if type(placement).__name__ != "Shard":
            raise InputError(
                f"{name} must be sharded (Shard) or replicated on every mesh dimension; got "
                f"{placement} on dimension {i}. Redistribute it first: "
                f"{name}.redistribute(placements=…)."
            )
        group = x.device_mesh.get_group(i)
        if placement.dim % x.dim() != class_dim:
            others.append(group)
        elif split is None:
            ranks, rank = x.device_mesh.size(i), x.device_mesh.get_local_rank(i)
            split = ClassSplit.chunk(x.shape[class_dim], rank, ranks, group)
        else:
            raise InputError(
                f"{name} may be sharded along its classes (dimension {class_dim}) on one mesh "
                f"dimension; got {tuple(x.placements)}."
            )
    return Share(local(x), split, tuple(others))


def local(x: Any) -> Any:
    """This rank's part of a DTensor; other things as they are. Gradients go back as a DTensor."""
    return x.to_local() if is_dtensor(x) else x


def is_whole(x: Any) -> bool:
    """Whether every rank has all of a DTensor."""
    return all(placement.is_replicate() for placement in x.placements)


def dims(x: Any) -> int:
    """Dimensions of a DTensor's mesh."""
    return x.device_mesh.ndim


def describe(x: Any) -> str:
    return f"{tuple(x.placements)} on a mesh of shape {tuple(x.device_mesh.shape)}"
