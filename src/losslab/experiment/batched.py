"""Many runs of one task trained as one computation.

On a small model the time of a step is the number of operations, not their size. Runs that differ in
loss, seed and learning rate have the same operations, so their parameters are stacked and a step of
all of them costs little more than a step of one. Each run is the one that `train` makes, up to
rounding: the same initial weights, batches, schedules, stopping and measurements; on the same
machine a repetition gives the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from losslab.experiment.batches import Batches, Reseed, derive_seed, own_randomness
from losslab.experiment.denormals import denormals_flushed
from losslab.experiment.stack import Stack, Unstackable
from losslab.experiment.stack_losses import StackLosses, alike
from losslab.experiment.stack_optimizer import StackOptimizer, rates_of, refuses
from losslab.experiment.task import Task, tensors_of
from losslab.experiment.train import Stopped
from losslab.experiment.watch import (
    Diverged,
    Epoch,
    TrainingResult,
    Watch,
    check_outputs,
    followed_splits,
)
from losslab.reading import Reading

Scale = float | Callable[[float], float]
FEWEST = 4  # runs that are worth a stack
_SMALL_STEP = 2e7  # operations of a run's step below which overhead outweighs arithmetic


@dataclass(frozen=True)
class Member:
    """One run of the stack: what `train` takes for it."""

    criterion: nn.Module
    seed: int
    lr_scale: Scale = 1.0


def pays(task: Task, runs: int) -> bool:
    """Whether a stack is likely to be faster: several runs of a model whose steps are small."""
    if runs < FEWEST or tensors_of(task.train) is None:
        return False
    parameters = sum(p.numel() for p in task.model().parameters())
    return 6 * parameters * task.batch_size < _SMALL_STEP


def why_not(
    task: Task, members: Sequence[Member], device: str | torch.device = "cpu"
) -> str | None:
    """Why these runs cannot be trained as one, in words; None where they can."""
    try:
        with own_randomness(torch.device(device)) as reseed:
            _Run(task, members, torch.device(device), reseed)
    except Unstackable as reason:
        return str(reason)
    return None


def train_together(
    task: Task,
    members: Sequence[Member],
    *,
    device: str | torch.device = "cpu",
    progress_callback: Callable[[int, Epoch], None] | None = None,
    stop: Callable[[], bool] | None = None,
    follow: Sequence[str] = (),
) -> list[TrainingResult]:
    """Train all ``members`` at once; their results in the order given.

    Args:
        task: What is learned: from a ``TensorDataset``, without augmentation, by SGD, Adam, AdamW.
        members: Loss, seed and learning-rate scale of each run, as `train` takes them.
        device: Where the models and the data go.
        progress_callback: Called with a member's number and its `Epoch` after each sound one.
        stop: Asked before each batch; when it says yes, `Stopped` is raised.
        follow: Splits of which each result has a ``trace``, as of `train`.

    Raises:
        Unstackable: Where they cannot be trained as one; `why_not` says so beforehand.
        Stopped: If ``stop()`` said so.

    Example:
        >>> from losslab.experiment.batched import Member, train_together
        >>> members = [Member(loss, seed=0) for loss in losses]  # doctest: +SKIP
        >>> [run.accuracy for run in train_together(task, members)]  # doctest: +SKIP
    """
    tell = progress_callback or (lambda number, epoch: None)
    with own_randomness(torch.device(device)) as reseed, denormals_flushed():
        run = _Run(task, members, torch.device(device), reseed, followed_splits(follow))
        for epoch in range(1, task.epochs + 1):
            run.epoch(epoch, stop)
            run.measure(epoch, tell)
            if not len(run.order):
                break
        run.finish()
    return [run.results[number] for number in range(len(members))]


class _Run:
    """The stack and everything that goes with it; ``order`` holds the members still in it."""

    def __init__(
        self,
        task: Task,
        members: Sequence[Member],
        device: torch.device,
        reseed: Reseed,
        followed: Sequence[str] = (),
    ) -> None:
        self.task, self.members, self.device = task, members, device
        self.followed = followed
        self.begun = time.perf_counter()
        self.results: dict[int, TrainingResult] = {}
        data = tensors_of(task.train)
        if data is None:
            raise Unstackable("its training examples are not two tensors")
        if task.augment is not None:
            raise Unstackable("it augments its batches, which draws from a run's own generator")
        if task.attack is not None:
            raise Unstackable("it attacks its batches, each against a run's own model")
        if type(task.reading) is not Reading:
            raise Unstackable("its model's answers are not one row of logits an example")
        if task.model_scores is not None or task.average > 1:
            raise Unstackable("it asks more of the finished model, which the ordinary loop does")
        for member in members:
            _check_loss(member.criterion.to(device))
        self.order = _by_loss(members)
        seeds = sorted({member.seed for member in members})
        modules = {}
        for seed in seeds:
            reseed(derive_seed(seed, "model"), everything=True)
            modules[seed] = task.model().to(device)
        reason = refuses(task, modules[seeds[0]])
        if reason:
            raise Unstackable(reason)
        self.stack = Stack([modules[members[k].seed] for k in self.order])
        self.batches = {seed: Batches(task, seed, device, reseed) for seed in seeds}
        self.inputs, self.target = data[0].to(device), data[1].to(device)
        self.splits = {
            name: tuple(x.to(device) for x in tensors_of(getattr(task, name)) or ())
            for name in ("validation", "test")
        }
        if not all(self.splits.values()):
            raise Unstackable("its validation or test examples are not two tensors")
        first = self.inputs[: min(3, len(self.inputs))]
        self.stack.check(first.expand(len(self.stack), *first.shape).contiguous())
        self.optimizer = StackOptimizer(task, self.stack.values)
        self.losses = StackLosses([members[k].criterion for k in self.order], task.num_classes)
        self.watches = [
            Watch(task.epochs, tuple(self.splits), task.patience, task.metrics) for _ in members
        ]
        self.steps = len(self.batches[seeds[0]])
        self.rates = _Rates(task, [m.lr_scale for m in members], self.steps * task.epochs)
        self.step = 0

    @torch.no_grad()
    def epoch(self, number: int, stop: Callable[[], bool] | None) -> None:
        """One pass; leaves the losses (steps, R) and what must be said of the runs."""
        total = self.steps * self.task.epochs
        self.first_rates = self.rates.at(self.step)
        self.seen = []
        for rows in self._batches():
            if stop is not None and stop():
                raise Stopped
            self.losses.set_progress(self.step / total)
            flat, shape = rows.view(-1), rows.shape
            inputs = self.inputs.index_select(0, flat).view(*shape, *self.inputs.shape[1:])
            target = self.target.index_select(0, flat).view(shape)
            grad = self.stack.gradient(inputs, partial(self.losses.gradient, target=target))
            self.optimizer.step(self.stack.values, grad, self.rates.column(self.step, self.order))
            self.seen.append(self.losses.values)
            self.step += 1

    def _batches(self) -> list[Tensor]:
        """The examples (R, B) of each step of the next pass."""
        orders = torch.stack([torch.cat(batches.chunks()) for batches in self.batches.values()])
        seeds = list(self.batches)
        mine = torch.tensor([seeds.index(self.members[k].seed) for k in self.order])
        *full, last = self._sizes()
        whole, rest = orders[mine].to(self.device).split([sum(full), last], 1)
        steps = whole.reshape(len(mine), len(full), self.task.batch_size)
        steps = steps.transpose(0, 1).contiguous()
        return [*steps.unbind(), rest.contiguous()]

    def measure(self, epoch: int, tell: Callable[[int, Epoch], None]) -> None:
        """Note down what each run has come to; those that are over leave the stack."""
        losses = torch.stack(self.seen).double()
        sizes = torch.tensor([float(b) for b in self._sizes()], dtype=torch.float64)
        mean = (losses * sizes.unsqueeze(1).to(losses)).sum(0) / len(self.inputs)
        outputs = {n: (self.stack.predict(x), y) for n, (x, y) in self.splits.items()}
        scores = {n: _scores(*output) for n, output in outputs.items()}
        traced = {n: outputs[n] for n in self.followed if n in outputs}
        if "train" in self.followed:
            traced["train"] = self.stack.predict(self.inputs), self.target
        leaving = []
        for row, number in enumerate(self.order):
            mine = {n: (z[row], y) for n, (z, y) in outputs.items()}
            watch = self.watches[number]
            try:
                _check_losses(losses[:, row], epoch)
                check_outputs(mine, epoch)
            except Diverged as broken:
                leaving.append(row)
                module = self.stack.unstacked(row)
                self.results[number] = watch.diverged(module, str(broken), self._seconds())
                continue
            own = {n: (accuracy[row], nll[row]) for n, (accuracy, nll) in scores.items()}
            rate = self.first_rates[number]
            watch.follow({n: (z[row], y) for n, (z, y) in traced.items()})
            tell(number, watch.note(epoch, rate, float(mean[row]), mine, own))
            if watch.is_over:
                leaving.append(row)
                self._finish(row)
        if leaving:
            self._let_go(leaving)

    def finish(self) -> None:
        for row in range(len(self.order)):
            self._finish(row)

    def _finish(self, row: int) -> None:
        number = self.order[row]
        module = self.stack.unstacked(row)
        self.results[number] = self.watches[number].finished(module, self._seconds())

    def _let_go(self, leaving: list[int]) -> None:
        staying = [row for row in range(len(self.order)) if row not in leaving]
        self.order = [self.order[row] for row in staying]
        if staying:
            rows = torch.tensor(staying, device=self.device)
            self.stack.keep(rows)
            self.optimizer.keep(rows)
            criterions = [self.members[k].criterion for k in self.order]
            self.losses = StackLosses(criterions, self.task.num_classes)

    def _seconds(self) -> float:
        """A run's share of the time since the beginning."""
        return (time.perf_counter() - self.begun) / len(self.members)

    def _sizes(self) -> list[int]:
        size = self.task.batch_size
        rest = len(self.inputs) - size * (self.steps - 1)
        return [size] * (self.steps - 1) + [rest]


class _Rates:
    """The learning rate of every run at every step."""

    def __init__(self, task: Task, scales: Sequence[Scale], total: int) -> None:
        self.rates, self.scales, self.total = rates_of(task, total), scales, total
        self.dtype = next(task.model().parameters()).dtype
        self.fixed = len({*self.rates}) == 1 and not any(callable(s) for s in scales)
        self.known: tuple[tuple[float, ...], Tensor] = ((), torch.empty(0))

    def at(self, step: int) -> list[float]:
        progress, rate = step / self.total, self.rates[step]
        return [rate * (s(progress) if callable(s) else s) for s in self.scales]

    def column(self, step: int, order: Sequence[int]) -> Tensor:
        """(R, 1) rates of the runs in ``order``, made anew only where one has changed."""
        if self.fixed and len(order) == len(self.known[0]):
            return self.known[1]
        every = self.at(step)
        rates = tuple(every[number] for number in order)
        if rates != self.known[0]:
            self.known = rates, torch.tensor(rates, dtype=self.dtype).unsqueeze(1)
        return self.known[1]


def _check_loss(criterion: nn.Module) -> None:
    if len(getattr(criterion, "steps", None) or (criterion,)) > 1:
        raise Unstackable("a loss that alternates two steps needs a loop of its own")
    if any(p.requires_grad for p in criterion.parameters()):
        raise Unstackable("a loss with parameters of its own needs a loop of its own")


def _by_loss(members: Sequence[Member]) -> list[int]:
    """The members' numbers, equal losses side by side."""
    groups: list[list[int]] = []
    for number, member in enumerate(members):
        for group in groups:
            if alike(members[group[0]].criterion, member.criterion):
                group.append(number)
                break
        else:
            groups.append([number])
    return [number for group in groups for number in group]


def _check_losses(losses: Tensor, epoch: int) -> None:
    broken = (~losses.isfinite()).nonzero()
    if len(broken):
        step = int(broken[0])
        raise Diverged(
            f"the training loss became {float(losses[step])} in epoch {epoch}, "
            f"step {step + 1} of {len(losses)}"
        )


def _scores(logits: Tensor, target: Tensor) -> tuple[list[float], list[float]]:
    """Accuracy and NLL of every run, from logits (R, N, C), as `metrics` has them."""
    accuracy = (logits.argmax(2) == target).sum(1).double() / len(target)
    own = target.expand(len(logits), -1).unsqueeze(2)
    nll = -logits.double().log_softmax(2).gather(2, own).squeeze(2).mean(1)
    return accuracy.tolist(), nll.tolist()


__all__ = ["Member", "Unstackable", "pays", "train_together", "why_not"]
