"""Any loss of the log-odds on split classes: targets, weights and means as for unsplit ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from losslab import logodds
from losslab.errors import InputError
from losslab.linear.terms import LossLike, Term, as_loss, terms_of
from losslab.logodds.plain import promote
from losslab.logodds.select import target_span
from losslab.losses import reduction as r
from losslab.losses.modules import BinaryOddsLoss, _Loss
from losslab.losses.psi import times
from losslab.parallel import exchange, mesh
from losslab.parallel.expected import expected_loss
from losslab.parallel.odds import Facts, row_facts
from losslab.parallel.source import Given, Make
from losslab.parallel.split import ClassSplit
from losslab.parallel.untraced import untraced


@dataclass
class SplitRows(r.Rows):
    """Rows whose logits are spread over ranks: this rank makes its own from ``tensors``."""

    psi: r.OddsRows
    split: ClassSplit
    make: Make
    tensors: tuple[Tensor | None, ...]
    uniform: Tensor | None = None  # with label smoothing, w_k/C of this rank's classes
    # found on the way
    logsumexp: Tensor = field(init=False)
    facts: Facts | None = field(default=None, init=False)
    smoothed: Tensor | None = field(default=None, init=False)

    def hard(self, logits: Tensor, target: Tensor, ignored: Tensor | None = None) -> Tensor:
        """With label smoothing the expected loss, asked for next, is found in the same passes."""
        if self.uniform is None:
            self.facts = row_facts(self.make, self.split, target, *self.tensors)
            self.logsumexp = self.facts.logsumexp
        else:
            self.smoothed = self._expected(self.uniform, target)
        assert self.facts is not None
        return r._elementwise(self.psi.psi, r.quiet(self.facts.log_odds, ignored))

    def expected(self, logits: Tensor, share: Tensor) -> Tensor:
        return self._expected(share, None) if self.smoothed is None else self.smoothed

    def _expected(self, share: Tensor, target: Tensor | None) -> Tensor:
        losses, self.logsumexp, self.facts = expected_loss(
            self.make, self.split, self.psi, share, target, *self.tensors
        )
        return losses

    def num_classes(self, logits: Tensor) -> int:
        return self.split.total


@untraced
def target_log_odds(logits: Tensor, target: Tensor, split: ClassSplit | None = None) -> Tensor:
    """Log-odds of the true class, from logits whose classes are split over ranks.

    Math: a = z_y − log Σ_{j≠y} exp z_j over the classes of all ranks.

    Two all-reduces of about N and 2N numbers; none in the backward pass. The result is the same
    on every rank, and so must be its upstream gradient; each rank then gets the gradient of its own
    logits.

    Args:
        logits: (C_local,), (N, C_local) or (N, C_local, d1, …): this rank's classes at dimension 1.
            Or a DTensor sharded along its classes.
        target: (), (N,) or (N, d1, …) indices among all classes, the same on every rank.
        split: which classes are here; not needed for a DTensor.

    Returns:
        Log-odds of the shape of ``target``; of this rank's rows where a DTensor spreads them.

    Raises:
        InputError: shapes that do not fit, targets that differ between the ranks.
        RuntimeError: another rank died, or a second derivative is asked for.

    Example:
        >>> import torch
        >>> from losslab import parallel
        >>> split = parallel.ClassSplit.even(2)  # one process: all classes are here
        >>> parallel.target_log_odds(torch.tensor([[200.0, 0.0]]), torch.tensor([0]), split)
        tensor([200.])
    """
    share = read(logits, split)
    z, target = share.local, mesh.local(target)
    if share.split is None:
        return logodds.target_log_odds(z, target)
    if z.dim() == 1:
        return target_log_odds(z.unsqueeze(0), target.unsqueeze(0), share.split).squeeze(0)
    _, target, _ = logodds.check(stand_in(z, (len(z), 1, *z.shape[2:])), target)
    logodds.check_range(target_span(target), share.split.total)
    return row_facts(Given, share.split, target, z).log_odds


@untraced
def split_loss(
    logits: Tensor,
    target: Tensor,
    loss: LossLike = "cross_entropy",
    split: ClassSplit | None = None,
    **options: Any,
) -> Tensor:
    """A loss on logits whose classes are split over ranks; the module is :class:`SplitLoss`.

    The loss is the same on every rank, and each rank's backward pass gives the gradient of its own
    logits: no factor, and nothing to divide by the number of ranks. If those logits come from a
    layer whose input all ranks share, pass that input through :func:`sum_gradient`.

    Args:
        logits: (C_local,), (N, C_local) or (N, C_local, d1, …): this rank's classes at dimension 1.
            Or a DTensor sharded along its classes; where it also spreads rows over a mesh
            dimension, sums and means are those of all rows.
        target: indices among all classes, the same on every rank; or probabilities of this rank's
            classes, of the shape of the logits. A DTensor likewise.
        loss: a spec, a losslab loss with its own options, or a ψ. It must be a function of the
            log-odds.
        split: which classes are here; not needed for a DTensor.
        options: ``weight`` (of all classes), ``ignore_index``, ``reduction``, ``label_smoothing``,
            ``zero_if_empty``, where ``loss`` is a spec or a ψ.

    Returns:
        A scalar, or with ``reduction="none"`` the losses of (this rank's) rows.

    Raises:
        InputError: a loss that needs more than log-odds, shapes that do not fit, targets that
            differ between the ranks.
        RuntimeError: another rank died, or a second derivative is asked for.

    Example:
        >>> import torch
        >>> from losslab import parallel
        >>> split = parallel.ClassSplit.even(5)  # one process: all classes are here
        >>> parallel.split_loss(torch.randn(8, 5), torch.randint(5, (8,)), "focal", split).shape
        torch.Size([])
    """
    module = as_loss(loss, options)
    share, target = read(logits, split), mesh.local(target)
    z = share.local
    if share.split is None and not share.others:
        return module(z, target)
    if z.dim() == 1:
        losses = split_loss(z.unsqueeze(0), target.unsqueeze(0), module, share.split)
        return losses.squeeze(0) if losses.dim() else losses
    if share.split is None:  # all classes, some rows
        terms = terms_to_split(module, any_rows=True)
        return sum_of_terms(terms, [term.rows for term in terms], z, target, share.others)
    terms = terms_to_split(module)
    soft = target.is_floating_point()
    if soft and target.shape != z.shape:
        raise InputError(
            "probability targets are split as the logits are: each rank gives those of its own "
            f"classes, of shape {tuple(z.shape)}; got {tuple(target.shape)}. "
            "ClassSplit.part takes this rank's share along the first dimension."
        )
    like = stand_in(z, z.shape if soft else (len(z), 1, *z.shape[2:]))
    rows = split_rows_of(terms, share.split, Given, (z,))
    return sum_of_terms(terms, rows, like, target, share.others)


class SplitLoss(_Loss):
    """A loss on logits whose classes are split over ranks, as a module; see :func:`split_loss`.

    Args:
        loss: a spec, a losslab loss with its own options, or a ψ.
        split: which classes are here; not needed for DTensors.
        options: as in :func:`split_loss`.

    Shape: logits (C_local,), (N, C_local) or (N, C_local, d1, …), this rank's classes at dimension
        1; target indices among all classes, or probabilities of this rank's. Returns a scalar, or
        with ``reduction="none"`` the losses of the rows.

    Example:
        >>> import torch
        >>> from losslab import parallel
        >>> criterion = parallel.SplitLoss("focal(gamma=1)", parallel.ClassSplit.even(5))
        >>> criterion(torch.randn(8, 5), torch.randint(5, (8,))).shape
        torch.Size([])
    """

    def __init__(
        self, loss: LossLike = "cross_entropy", split: ClassSplit | None = None, **options: Any
    ) -> None:
        super().__init__()
        self.loss = as_loss(loss, options)
        self.split = split
        terms_to_split(self.loss)  # refuses now what could not be split

    @property
    def spec(self) -> str:  # type: ignore[override]
        return self.loss.spec

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return split_loss(logits, target, self.loss, self.split)


def terms_to_split(loss: _Loss, *, any_rows: bool = False) -> list[Term]:
    """The loss as Σ terms, each a ψ; with ``any_rows`` those that see all classes of their rows."""
    if len(loss.steps) == 1 and not isinstance(loss, BinaryOddsLoss):
        terms = terms_of(loss)
        if all(
            (any_rows or isinstance(term.rows, r.OddsRows)) and not term.changes for term in terms
        ):
            return terms
    raise InputError(
        f"{loss.spec} is more than a function of the true class's log-odds, and cannot be computed "
        "from split classes. Gather the logits of all ranks first, or take a loss that is, such as "
        "cross_entropy, encouraging, mixed, focal, expectation or mean_absolute_error. A change of "
        "the logits, such as a logit adjustment, can be made on each rank before the loss."
    )


def split_rows_of(
    terms: list[Term], split: ClassSplit, make: Make, tensors: tuple[Tensor | None, ...]
) -> list[SplitRows]:
    """Every term's view of the split logits."""
    rows = [term.rows for term in terms]
    return [SplitRows(x, split, make, tensors) for x in rows if isinstance(x, r.OddsRows)]


def sum_of_terms(
    terms: list[Term],
    rows: Sequence[r.Rows],
    like: Tensor,
    target: Tensor,
    others: tuple[Any, ...] = (),
) -> Tensor:
    """The loss, each term on its rows; ``like`` is what they see, or stands in for it in checks.

    ``others`` are the groups over which more rows are spread.
    """
    total: Tensor | float = 0.0
    for term, each in zip(terms, rows, strict=True):
        goal, options = target, term.options
        if isinstance(each, SplitRows):
            goal, options = _of_split_classes(each, like, target, options)
        total = total + times(term.factor, _reduced(like, goal, each, options, others))
    assert isinstance(total, Tensor)
    return total


def _of_split_classes(
    rows: SplitRows, like: Tensor, target: Tensor, options: dict[str, Any]
) -> tuple[Tensor, dict[str, Any]]:
    """Target and options as classification_loss takes them where it sees no classes."""
    split, weight, smoothing = rows.split, options["weight"], options["label_smoothing"]
    if weight is not None and weight.shape != (split.total,):
        raise InputError(
            f"weight must hold one number a class of all ranks, shape ({split.total},); "
            f"got {tuple(weight.shape)}."
        )
    if not target.is_floating_point():
        if smoothing > 0:
            every = r._uniform(promote(like), split.total, weight)
            rows.uniform = every.narrow(1, split.start, split.size)
        return target, options
    target = promote(target)
    if smoothing > 0:
        target = target * (1 - smoothing) + smoothing / split.total
    if weight is not None:
        target = target * r._per_class(split.part(weight).to(target.dtype), target)
    return target, options | {"label_smoothing": 0.0, "weight": None}


def _reduced(
    input: Tensor, target: Tensor, rows: r.Rows, options: dict[str, Any], others: tuple[Any, ...]
) -> Tensor:
    """The loss over the rows of this rank and of the groups ``others``, which hold other rows."""
    if not others or options["reduction"] == "none":
        return r.classification_loss(input, target, rows, **options)
    summed = options | {"reduction": "sum"}
    total = r.classification_loss(promote(input), target, rows, **summed)
    count = _count(target, options).to(total.dtype)
    for group in others:
        total = exchange.differentiable_total(total, group, "sum the loss over all rows")
        count = exchange.total(count, group, "count all rows")
    if options["reduction"] == "mean":
        total = r._mean(total, count, options["zero_if_empty"])
    return r._narrow(total, input)


def _count(target: Tensor, options: dict[str, Any]) -> Tensor:
    """What a mean over the rows of this rank divides by."""
    if target.is_floating_point():
        rows = math.prod(target.shape[:1] + target.shape[2:])
        return torch.tensor(rows, device=target.device)
    used, weight = target != options["ignore_index"], options["weight"]
    return used.sum() if weight is None else promote(weight)[target[used]].sum()


def read(
    x: Tensor, split: ClassSplit | None, *, class_dim: int | None = None, name: str = "logits"
) -> mesh.Share:
    """This rank's part of a DTensor, or of a plain tensor with its split."""
    if class_dim is None:
        class_dim = 0 if x.dim() == 1 else 1
    if x.dim() <= class_dim or not x.is_floating_point():
        raise InputError(
            f"{name} must hold floating point numbers with the classes at dimension {class_dim}; "
            f"got {str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape)}."
        )
    if mesh.is_dtensor(x):
        return mesh.share_of(x, class_dim, name)
    if split is None:
        raise InputError(
            f"which classes do these {name} hold? Give split=ClassSplit.gather("
            f"{x.shape[class_dim]}), made once on every rank, or a DTensor."
        )
    if x.shape[class_dim] != split.size:
        raise InputError(
            f"{name} must hold this rank's {split.size} classes at dimension {class_dim}; "
            f"got shape {tuple(x.shape)}."
        )
    return mesh.Share(x, split)


def stand_in(like: Tensor, shape: Any, dtype: torch.dtype | None = None) -> Tensor:
    """Logits in shape, dtype and device only, for checks that need no more."""
    return like.detach().new_zeros((), dtype=dtype).expand(shape)
