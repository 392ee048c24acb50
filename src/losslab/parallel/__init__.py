"""Losses on a vocabulary that is split over ranks (tensor parallel).

Each rank holds the logits, or the rows of the last layer's weight, of some of the classes; the
ranks exchange a few numbers a row. See docs/parallel.md.
"""

from torch import Tensor

from losslab.parallel import exchange
from losslab.parallel.linear import linear_loss
from losslab.parallel.loss import SplitLoss, split_loss, target_log_odds
from losslab.parallel.split import ClassSplit
from losslab.parallel.untraced import untraced

__all__ = [
    "ClassSplit",
    "SplitLoss",
    "linear_loss",
    "split_loss",
    "sum_gradient",
    "target_log_odds",
]


@untraced
def sum_gradient(x: Tensor, split: ClassSplit) -> Tensor:
    """``x`` unchanged, for the input of a layer whose outputs are split over ranks.

    Its gradient is the sum of the ranks' gradients: each rank's shard of the layer accounts for a
    part of it. :func:`linear_loss` and DTensors do this by themselves.

    Example:
        >>> import torch
        >>> from losslab import parallel
        >>> hidden, shard = torch.randn(8, 3), torch.nn.Linear(3, 5)
        >>> split = parallel.ClassSplit.even(5)
        >>> shard(parallel.sum_gradient(hidden, split)).shape
        torch.Size([8, 5])
    """
    return exchange.sum_gradient(x, split.group)
