"""The losses of a stack of runs: one value a run, and the gradient of all their logits.

Runs with the same loss lie side by side. Where all that a loss needs is ψ and ψ' of the log-odds,
the native kernel takes the log-odds of the whole stack in one call, runs each loss's programs on
its own runs, and takes the gradient in one call. Any other loss is called run by run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from losslab.logodds import native
from losslab.logodds.select import kernel_for
from losslab.losses.modules import CatalogLoss, ClassificationLoss
from losslab.losses.program import NativeOdds, native_odds
from losslab.losses.reduction import OddsRows


class StackLosses:
    """``criterions`` has one loss a run; runs with equal losses follow each other."""

    def __init__(self, criterions: Sequence[nn.Module], classes: int) -> None:
        self.classes = classes
        self.groups: list[_Group] = []
        for run, criterion in enumerate(criterions):
            if self.groups and alike(self.groups[-1].criterion, criterion):
                self.groups[-1].stop = run + 1
            else:
                self.groups.append(_Group(run, run + 1, criterion, classes))
        self.values = torch.empty(0)
        self._plans: dict[int, _Plan] = {}

    def set_progress(self, progress: float) -> None:
        for group in self.groups:
            if group.moves and group.set_progress(progress):
                self._plans.clear()

    def gradient(self, logits: Tensor, target: Tensor) -> Tensor:
        """Gradient of Σ of the runs' mean losses by logits (R, B, C); leaves ``values`` (R,)."""
        rows = logits.reshape(-1, logits.shape[2])
        result = torch.empty_like(logits)
        self.values = logits.new_empty(len(logits))
        fast = [group for group in self.groups if group.odds is not None]
        if fast and kernel_for(rows, target.view(-1)) is native:
            batch = target.shape[1]
            if batch not in self._plans:
                self._plans[batch] = _Plan(fast, len(logits), batch)
            self._plans[batch].run(rows, target.view(-1), result.view(rows.shape))
            torch.mean(self._plans[batch].losses, 1, out=self.values)
        else:
            fast = []
        for group in self.groups:
            if group not in fast:
                group.by_run(logits, target, result, self.values)
        return result


class _Plan:
    """The native calls of one batch size, on memory that every step uses again."""

    def __init__(self, groups: Sequence[_Group], runs: int, batch: int) -> None:
        a, shift, total = torch.empty(3, runs * batch).unbind()
        self.found = a, shift, total
        self.losses, self.upstream = torch.zeros(runs, batch), torch.zeros(runs * batch)
        self.one = torch.ones(())
        self.calls = []
        for group in groups:
            assert group.odds is not None
            at = slice(group.start * batch, group.stop * batch)
            a, losses = self.found[0][at], self.losses.view(-1)[at]
            self.calls.append(native.prepared(group.odds.value_program, a, losses))
            self.calls.append(
                native.prepared(group.odds.slope_program, a, self.upstream[at], self.one, 1 / batch)
            )

    def run(self, rows: Tensor, target: Tensor, result: Tensor) -> None:
        _, shift, total = native.statistics(rows, target, self.found)
        for call in self.calls:
            call()
        native.gradient(rows, target, shift, total, self.upstream, out=result)


class _Group:
    """The runs from ``start`` to ``stop``, which have the same loss."""

    def __init__(self, start: int, stop: int, criterion: nn.Module, classes: int) -> None:
        self.start, self.stop, self.criterion = start, stop, criterion
        self.classes = classes
        self.schedules = getattr(criterion, "_scheduled", {})
        fixed = isinstance(criterion, CatalogLoss) and not self.schedules
        fixed = fixed and criterion._weight_schedule is None
        self.moves = hasattr(criterion, "set_progress") and not fixed
        self.numbers: tuple[float, ...] | None = None
        self.odds = None if self.schedules else self._programs()

    def set_progress(self, progress: float) -> bool:
        """Move schedules on; whether the programs have been made anew, since a number changed."""
        if not self.schedules:
            self.criterion.set_progress(progress)  # type: ignore[operator]
            return False
        numbers = tuple(schedule(progress) for schedule in self.schedules.values())
        if numbers == self.numbers:
            return False
        self.numbers = numbers
        self.criterion.set_progress(progress)  # type: ignore[operator]
        self.odds = self._programs(progress)
        return True

    def by_run(self, logits: Tensor, target: Tensor, result: Tensor, values: Tensor) -> None:
        for run in range(self.start, self.stop):
            with torch.enable_grad():
                leaf = logits[run].detach().requires_grad_()
                loss = self.criterion(leaf, target[run])
            result[run] = torch.autograd.grad(loss, leaf)[0]
            values[run] = loss.detach()

    def _programs(self, progress: float = 0.0) -> NativeOdds | None:
        loss = self.criterion
        if native.unavailable() or not isinstance(loss, ClassificationLoss):
            return None
        options = loss.options()
        plain = options["weight"] is None and not options["label_smoothing"]
        ignores = 0 <= options["ignore_index"] < self.classes
        if not plain or options["reduction"] != "mean" or ignores:
            return None
        rows = loss.rows_at(progress) if isinstance(loss, CatalogLoss) else loss.rows
        return native_odds(rows.key, rows.psi) if isinstance(rows, OddsRows) else None


def alike(one: nn.Module, other: nn.Module) -> bool:
    """Whether two losses are the same function now and in every moment to come."""
    if one is other:
        return True
    if type(one) is not type(other) or not isinstance(one, CatalogLoss):
        return False
    assert isinstance(other, CatalogLoss)
    mine, its = one.options(), other.options()
    if mine.pop("weight") is not None or its.pop("weight") is not None:
        return False  # class weights, which a schedule may move, go by themselves
    return one.spec == other.spec and mine == its
