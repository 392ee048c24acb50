"""A loss as a sum of terms: rows of logits, and how each is reduced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from losslab.errors import InputError
from losslab.losses import reduction as r
from losslab.losses.catalog import ALIASES, CATALOG, Row
from losslab.losses.margins import AdjustedLoss
from losslab.losses.modules import ClassificationLoss, OddsLoss, SumLoss, _Loss
from losslab.losses.spec import loss as loss_of_spec

LossLike = str | nn.Module | Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Term:
    """factor · (rows, reduced by its options) on logits that ``changes`` have gone over."""

    factor: float
    rows: r.Rows
    options: dict[str, Any]
    changes: tuple[nn.Module, ...] = ()

    @property
    def is_psi(self) -> bool:
        """Whether class indices need only their log-odds."""
        odds = isinstance(self.rows, r.OddsRows)
        return odds and not self.changes and not self.options["label_smoothing"]

    def loss(self, logits: Tensor, target: Tensor, **options: Any) -> Tensor:
        """The term but for its factor, on all logits of some rows."""
        for change in self.changes:
            logits = change(logits, target)
        return r.classification_loss(logits, target, self.rows, **self.options | options)

    def counts(self, target: Tensor) -> Tensor | None:
        """Which rows are not ignored; None for all."""
        return None if target.is_floating_point() else target != self.options["ignore_index"]

    def divisor(self, target: Tensor) -> Tensor | float:
        """What a mean over the rows of ``target`` divides by; NaN where there are none."""
        if self.options["reduction"] != "mean":
            return 1.0
        counted, weight = self.counts(target), self.options["weight"]
        target = target if counted is None else target[counted]
        empty = 1.0 if self.options["zero_if_empty"] else torch.nan
        if counted is None or weight is None or len(target) == 0:
            return float(len(target)) or empty
        total = weight[target].sum(dtype=torch.promote_types(weight.dtype, torch.float32))
        return total.masked_fill(total == 0, 1) if self.options["zero_if_empty"] else total


def as_loss(loss: LossLike, options: dict[str, Any]) -> _Loss:
    """A losslab module from a spec, a module or a ψ."""
    if isinstance(loss, str):
        return loss_of_spec(loss, **options)  # type: ignore[return-value]
    if isinstance(loss, _Loss):
        if options:
            raise InputError(
                f"{next(iter(options))} was given beside a loss that has its own options; make "
                "the loss with it, such as losslab.loss(SPEC, label_smoothing=0.1)."
            )
        return loss
    if isinstance(loss, nn.Module) or not callable(loss):
        raise InputError(
            "loss must be a spec such as 'encouraging(log_end=0.5)', a losslab loss, or a psi such "
            f"as `lambda a: torch.relu(1 - a)`; got {type(loss).__name__}. A module that computes "
            "a psi goes into losslab.OddsLoss(module)."
        )
    return OddsLoss(loss, **options)


def terms_of(loss: nn.Module) -> list[Term]:
    """The loss as Σ terms: one, where that is a single pass over the logits."""
    if isinstance(loss, SumLoss):
        first, psi = loss.losses[0], loss.psi
        if psi is not None and isinstance(first, ClassificationLoss) and loss._same_options():
            return [Term(1.0, r.OddsRows(psi, loss.slope), first.options())]
        pairs = zip(loss.coefficients, loss.losses, strict=True)
        return [replace(t, factor=c * t.factor) for c, each in pairs for t in terms_of(each)]
    if isinstance(loss, AdjustedLoss):
        inner = terms_of(loss.loss)
        return [replace(t, changes=(loss.change, *t.changes)) for t in inner]
    if isinstance(loss, ClassificationLoss):
        return [Term(1.0, loss.rows, loss.options())]
    spec = getattr(loss, "spec", type(loss).__name__)
    if len(getattr(loss, "steps", ())) > 1:
        raise InputError(
            f"{spec} alternates two steps. Call linear_loss once for each of them: "
            "`for step in criterion.steps: linear_loss(hidden, weight, target, step)`."
        )
    raise InputError(
        f"a linear layer goes with losslab's losses on (N, V) logits; got {spec}, which is none."
    )


def terms_given(loss: LossLike, options: dict[str, Any], device: torch.device) -> list[Term]:
    """The terms of a loss with options given in a call, its tensors on ``device``."""
    if not isinstance(loss, str):
        return terms_of(as_loss(loss, options))
    _check_options(options)
    terms = _from_spec(loss, device)
    return [replace(t, options=t.options | options) for t in terms]


def _from_spec(spec: str, device: torch.device) -> list[Term]:
    if not torch.compiler.is_compiling():
        return terms_of(_made(spec, str(device)))
    if spec not in _BARE:  # a compiler cannot follow the parsing
        raise InputError(
            f"under torch.compile only a bare name can be a spec; got {spec!r}. Make the loss "
            "outside of what is compiled, losslab.loss(SPEC), or use losslab.LinearLoss."
        )
    return [_BARE[spec]]


@lru_cache(maxsize=256)
def _made(spec: str, device: str) -> nn.Module:
    loss = loss_of_spec(spec).to(device)
    if any(getattr(m, "_scheduled", None) for m in loss.modules()):
        raise InputError(
            f"{spec!r} has a schedule, and a function has no progress: use losslab.LinearLoss, or "
            "pass losslab.loss(SPEC) and call its set_progress."
        )
    return loss


def _bare(row: Row) -> Term:
    defaults = {name: default for name, (default, _, _) in r.OPTIONS.items()}
    return Term(1.0, row.softmax_rows(row.resolve(row.check({}))), defaults)


_BARE = {name: _bare(row) for name, row in (CATALOG | ALIASES).items()}


def _check_options(options: dict[str, Any]) -> None:
    r.check_reduction(options.get("reduction", "mean"))
    r.check_label_smoothing(options.get("label_smoothing", 0.0))
    weight = options.get("weight")
    if weight is not None and not isinstance(weight, Tensor):
        raise InputError(f"weight must be a tensor of one number a class; got {weight!r}.")


def is_scalar(terms: list[Term]) -> bool:
    """Whether the loss is one number; its terms must agree on that."""
    kinds = [t.options["reduction"] for t in terms]
    if "none" in kinds and any(kind != "none" for kind in kinds):
        raise InputError(
            "the terms of a sum must all have reduction='none', or none of them; got "
            f"{', '.join(repr(kind) for kind in kinds)}."
        )
    return "none" not in kinds


def is_mean(terms: list[Term]) -> bool:
    """Whether what is added to the loss is averaged over the rows that count."""
    return any(term.options["reduction"] == "mean" for term in terms)


def psi_of(terms: list[Term], target: Tensor) -> r.OddsRows | None:
    """ψ, where the loss is a function of the log-odds of class indices."""
    rows = terms[0].rows
    if len(terms) > 1 or not terms[0].is_psi or target.is_floating_point():
        return None
    assert isinstance(rows, r.OddsRows)
    return rows


def used_rows(terms: list[Term], target: Tensor) -> Tensor | None:
    """The rows that some term looks at; None where that is all of them."""
    if target.is_floating_point():
        return None
    used = terms[0].counts(target)
    for term in terms[1:]:
        used = used | term.counts(target)  # type: ignore[operator]
    return used
