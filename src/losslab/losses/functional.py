"""Any ψ as a function, beside ``F.cross_entropy`` and its binary sibling."""

from __future__ import annotations

from torch import Tensor

from losslab.losses import reduction as r


def odds_loss(
    input: Tensor,
    target: Tensor,
    psi: r.Psi,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    zero_if_empty: bool = False,
) -> Tensor:
    """Any ψ of the true class's log-odds; the module is :class:`losslab.OddsLoss`.

    Math: ψ(a), a = z_y − log Σ_{j≠y} exp z_j; for soft targets t, Σ_k t_k ψ(a_k).

    Args:
        input: (C,), (N, C) or (N, C, d1, …) logits.
        target: class indices of that shape without C, or probabilities of the same shape.
        psi: an elementwise, differentiable function of a float tensor.
        weight, ignore_index, reduction, label_smoothing, zero_if_empty: see
            :class:`losslab.OddsLoss`.

    Returns:
        A scalar, or with ``reduction="none"`` the input's shape without C.

    Raises: losslab.InputError for options or shapes that do not fit.

    Example:
        >>> import torch, losslab
        >>> losslab.odds_loss(torch.tensor([[3.0, 0.0]]), torch.tensor([0]), lambda a: -a)
        tensor(-3.)
    """
    return r.classification_loss(
        input,
        target,
        r.OddsRows(psi),
        weight=weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
        zero_if_empty=zero_if_empty,
    )


def binary_odds_loss(
    input: Tensor,
    target: Tensor,
    psi: r.Psi,
    *,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Any ψ on sigmoid outputs; the module is :class:`losslab.BinaryOddsLoss`.

    Math: t·pos_weight·ψ(z) + (1 − t)·ψ(−z) for each output.

    Args:
        input: (*) logits.
        target: (*) numbers in [0, 1].
        psi: an elementwise, differentiable function of a float tensor.
        weight, pos_weight, reduction: see :class:`losslab.BinaryOddsLoss`.

    Returns:
        A scalar, or (*) with ``reduction="none"``.

    Raises: losslab.InputError for options or shapes that do not fit.

    Example:
        >>> import torch, losslab
        >>> losslab.binary_odds_loss(torch.zeros(3), torch.ones(3), torch.sigmoid)
        tensor(0.5000)
    """
    return r.binary_loss(
        input, target, psi, weight=weight, pos_weight=pos_weight, reduction=reduction
    )
