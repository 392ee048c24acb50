"""What the ranks exchange, and what is said when one of them is gone.

Every exchange is named by what the ranks do together, so that an error tells where they parted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    Group = dist.ProcessGroup | None
else:
    Group = Any  # a PyTorch built without torch.distributed has no such class


def ranks(group: Group) -> int:
    """Size of the group; 1 where nothing is distributed, −1 outside the group."""
    return dist.get_world_size(group) if _initialized() else 1


def rank(group: Group) -> int:
    return dist.get_rank(group) if _initialized() else 0


def largest(x: Tensor, group: Group, doing: str) -> Tensor:
    """Elementwise maximum over the ranks, of anything but NaN: backends treat it variously."""
    return _reduced(x, dist.ReduceOp.MAX, group, doing) if ranks(group) > 1 else x


def total(x: Tensor, group: Group, doing: str) -> Tensor:
    """Elementwise sum over the ranks; half types are summed in float32."""
    return _reduced(x, dist.ReduceOp.SUM, group, doing) if ranks(group) > 1 else x


def gathered(x: Tensor, group: Group, doing: str) -> Tensor:
    """(ranks, *x.shape): every rank's tensor."""
    if ranks(group) == 1:
        return x.unsqueeze(0)
    parts = [torch.empty_like(x) for _ in range(ranks(group))]
    with _together(doing, group):
        dist.all_gather(parts, x.contiguous(), group=group)
    return torch.stack(parts)


def objects(x: Any, group: Group, doing: str) -> list[Any]:
    """Every rank's object."""
    if ranks(group) == 1:
        return [x]
    parts: list[Any] = [None] * max(ranks(group), 0)
    with _together(doing, group):
        dist.all_gather_object(parts, x, group=group)
    return parts


class _SumGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        refuse_second_derivative()
        wide = torch.promote_types(grad.dtype, torch.float32)
        doing = "sum the gradients of the input of a split layer"
        return total(grad.to(wide, copy=True), ctx.group, doing).to(grad.dtype), None


def sum_gradient(x: Tensor, group: Group) -> Tensor:
    """``x`` unchanged; its gradient is the sum of the ranks' gradients."""
    return _SumGradient.apply(x, group)


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, doing: str) -> Tensor:
        return total(x.clone(), group, doing)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad, None, None


def differentiable_total(x: Tensor, group: Group, doing: str) -> Tensor:
    """Sum over the ranks; each rank's term gets the sum's gradient, which all ranks share."""
    return _Total.apply(x, group, doing)


def refuse_second_derivative() -> None:
    """Called in a backward pass: raises if it is to be differentiated (``create_graph=True``)."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "losslab.parallel has first derivatives only: backward(create_graph=True) would need "
            "second ones. Take them from the unsplit loss, on logits gathered from all ranks."
        )


def _initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def _reduced(x: Tensor, how: Any, group: Group, doing: str) -> Tensor:
    result = x.contiguous()
    with _together(doing, group):
        dist.all_reduce(result, how, group=group)
    return result


@contextmanager
def _together(doing: str, group: Group) -> Iterator[None]:
    """Names the exchange in the error of a broken connection."""
    try:
        yield
    except RuntimeError as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RuntimeError(
            f"losslab.parallel: rank {rank(group)} of {ranks(group)} could not {doing}: another "
            "rank has died, raised an error, or did something else. Look for the first error in "
            "the output of the other ranks, see that all ranks make the same calls with the same "
            f"number of rows, and start the job again. ({first_line})"
        ) from error
