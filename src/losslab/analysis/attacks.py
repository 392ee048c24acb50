"""Adversarial inputs: the smallest changes that make a model wrong, searched for by its gradient.

`Attack` is FGSM (one step) and PGD (several), in L∞ or L2, on an objective to increase:

- ``"cross_entropy"``: the usual one, as people and papers run it, computed by PyTorch in float32;
- ``"log_odds"``: −a, the log-odds against the true class;
- or any function ``(logits, target) -> (examples,)``.

Cross-entropy is softplus(−a), so its gradient is that of −a times σ(−a), and an attack takes only
the gradient's signs or its direction: the two are *the same attack*, but for rounding. In float32,
the part of the gradient that comes through z_y vanishes from a ≈ 17 on, and all of it from a ≈ 100:
there an attack on cross-entropy goes astray, then nowhere. The model looks robust and is not.

Attacks of the library pyautoattack are in `losslab.analysis.black_box`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from losslab.analysis.ball import NORMS, Ball, Box, one_of, positive, read_box
from losslab.analysis.classifier import evaluating, logits_of
from losslab.errors import InputError
from losslab.logodds import target_log_odds
from losslab.metrics.checks import checked

Objective = Callable[[Tensor, Tensor], Tensor]
KEEPS = ("best", "last")


def _usual(logits: Tensor, target: Tensor) -> Tensor:
    return cross_entropy(logits, target, reduction="none")


def _against(logits: Tensor, target: Tensor) -> Tensor:
    return -target_log_odds(logits, target)


OBJECTIVES: dict[str, Objective] = {"cross_entropy": _usual, "log_odds": _against}


@dataclass(frozen=True)
class Attacked:
    """What an attack has found, example by example.

    Args:
        inputs: The changed inputs.
        fooled: Whether the model is wrong about them.
        zero_first: Whether the gradient was exactly zero at the first step (FGSM: the only one).
        zero_always: Whether it was so at every step that was taken: the example was not attacked.
    """

    inputs: Tensor
    fooled: Tensor
    zero_first: Tensor
    zero_always: Tensor


@dataclass(frozen=True)
class Attack:
    """How inputs are changed: by ``steps`` steps uphill, each brought back into ball and box.

    Args:
        epsilon: Radius of the ball around an input, in units of the box's width (so 0.3 is 0.3 of
            [0, 1] whatever the inputs' own units), or in the inputs' units if there is no box.
        norm: ``"linf"``: the largest change of a number; ``"l2"``: the root of the squares' sum.
        objective: What to increase: ``"log_odds"``, ``"cross_entropy"`` or a function of
            ``(logits, target)`` that returns one number an example.
        steps: Gradients taken; 1 without a random start is FGSM.
        step_size: Length of a step, in ε's unit; None: 2.5 ε / steps, and ε if that is more.
        random_start: Start at a random point of the ball, not at the input.
        restarts: Random starts tried, for what was not fooled before.
        box: ``(low, high)``: what the numbers of an input may be. ``"image"``: (0, 255) for uint8,
            (0, 1) for floats. None: any number.
        keep: ``"best"``: of the input and every point on the way, the first that fools the model
            (that example is then left in peace), or else the one of the lowest log-odds.
            ``"last"``: where the last step ends, as torchattacks does and training wants.
        floor: Added to a gradient's L2 norm before dividing by it. torchattacks has 1e-10, which
            stops its attack where the gradient is merely small.

    Example:
        >>> model = nn.Linear(4, 3)
        >>> inputs, target = torch.rand(8, 4), torch.randint(3, (8,))
        >>> found = Attack(0.1)(model, inputs, target)
        >>> bool(((found.inputs - inputs).abs() <= 0.1).all())
        True
    """

    epsilon: float
    norm: str = "linf"
    objective: str | Objective = "log_odds"
    steps: int = 40
    step_size: float | None = None
    random_start: bool = True
    restarts: int = 1
    box: Box = "image"
    keep: str = "best"
    floor: float = 0.0

    def __post_init__(self) -> None:
        positive("epsilon", self.epsilon)
        one_of("norm", self.norm, NORMS)
        one_of("keep", self.keep, KEEPS)
        if not callable(self.objective):
            one_of("objective", self.objective, OBJECTIVES)
        for name in ("steps", "restarts"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise InputError(
                    f"Expected {name} to be a whole number of at least 1, but got {value!r}."
                )
        if self.step_size is not None:
            positive("step_size", self.step_size)
        if self.restarts > 1 and not (self.random_start and self.keep == "best"):
            raise InputError(
                f"Expected random_start=True and keep='best' with restarts={self.restarts}: "
                "without them every start comes to the same, or all but the last are lost."
            )
        object.__setattr__(self, "box", read_box(self.box))

    def settings(self) -> dict[str, Any]:
        """What decides the changed inputs, in JSON."""
        names = ("epsilon", "norm", "steps", "step_size", "random_start", "restarts", "keep")
        own = {name: getattr(self, name) for name in (*names, "floor")}
        objective = self.objective if isinstance(self.objective, str) else _name(self.objective)
        box = list(self.box) if isinstance(self.box, tuple) else self.box
        return {**own, "objective": objective, "box": box}

    def __call__(
        self,
        model: nn.Module,
        inputs: Tensor,
        target: Tensor,
        generator: torch.Generator | None = None,
        *,
        surely_right: bool = False,
    ) -> Attacked:
        """Attack a batch; the model is asked in evaluation mode, and left as it was.

        Args:
            model: On the inputs' device.
            inputs: (N, …) float32, float64, or uint8, which is taken as floats of 0 to 255.
            target: (N,) true classes.
            generator: Of the CPU; decides the random starts. None: always the same.
            surely_right: The model is known to be right about all inputs, so it is not asked again.

        Raises:
            InputError: If an input lies outside the box, the targets are not classes of the model,
                or its logits are not finite.
        """
        search = _Search(self, model, inputs, target, generator)
        with evaluating(model):
            if self.keep == "best":
                search.keep_best(surely_right)
            else:
                search.walk(noting=False)
            return search.found()

    def last(
        self, model: nn.Module, inputs: Tensor, target: Tensor, generator: torch.Generator
    ) -> Tensor:
        """The changed inputs alone, where the last step ends, for training.

        Logits that are not finite are let pass: that a run diverges, its loss will say.
        """
        search = _Search(self, model, inputs, target, generator)
        with evaluating(model):
            search.walk(noting=False)
        return search.inputs


class _Search:
    """One attack on one batch; ``inputs`` are the changed ones so far."""

    def __init__(
        self,
        attack: Attack,
        model: nn.Module,
        inputs: Tensor,
        target: Tensor,
        generator: torch.Generator | None,
    ) -> None:
        check_targets(inputs, target)
        self.attack, self.model, self.target = attack, model, target.long()
        self.generator = generator or torch.Generator().manual_seed(0)
        self.ball = Ball(attack.norm, attack.epsilon, inputs, attack.box)
        self.inputs = self.ball.clean.clone()
        step = min(1.0, 2.5 / attack.steps) * attack.epsilon
        self.size = (step if attack.step_size is None else attack.step_size) * self.ball.width
        objective = attack.objective
        self.objective = objective if callable(objective) else OBJECTIVES[objective]
        self.rows = torch.arange(len(inputs), device=inputs.device)
        no = torch.zeros_like(self.rows, dtype=torch.bool)
        self.fooled, self.zero_first, self.stepped, self.moved = (no.clone() for _ in range(4))
        self.lowest = torch.full_like(self.rows, torch.inf, dtype=self.ball.wide)
        self.asked = False

    def keep_best(self, surely_right: bool) -> None:
        """The best point of every walk, and of the inputs themselves."""
        if self.attack.random_start and not surely_right:
            self.note(self.rows, self.ball.clean, self.ask(self.ball.clean, self.target))
        for _ in range(self.attack.restarts):
            if not self.fooled.all():
                self.walk(noting=True)

    def walk(self, noting: bool) -> None:
        """All steps from one start, of those not fooled; who is fooled leaves, if noting."""
        first = not self.stepped.any()
        random = self.attack.random_start
        at = self.ball.random(self.generator) if random else self.ball.clean
        rows, ball = self.rows, self.ball
        if self.fooled.any():
            rows = rows[~self.fooled]
            at, ball = at[rows], ball.only(rows)
        for step in range(self.attack.steps):
            logits, uphill = self.gradient(at, self.target[rows])
            zero = (uphill == 0).flatten(1).all(1)
            if first and step == 0:
                self.zero_first[rows] = zero
            if noting:
                self.note(rows, at, logits)
                live = ~self.fooled[rows]
                if not live.any():
                    return
                if not live.all():
                    rows, at, uphill, zero = rows[live], at[live], uphill[live], zero[live]
                    ball = ball.only(live)
            self.stepped[rows] = True
            self.moved[rows] |= ~zero
            at = ball.step(at, uphill, self.size, self.attack.floor)
        if noting:
            self.note(rows, at, self.ask(at, self.target[rows]))
        else:
            self.inputs = at

    def gradient(self, at: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Logits there, and which way the objective rises."""
        with torch.inference_mode(False), torch.enable_grad():
            at, target = at.detach().clone().requires_grad_(), target.clone()
            logits = self.logits(at, target)
            value = self.objective(logits, target)
            if value.shape != target.shape:
                raise InputError(
                    "Expected the objective to return one number an example, shape "
                    f"{tuple(target.shape)}, but got {tuple(value.shape)}."
                )
            found = None
            if value.requires_grad:  # a model that cuts the graph has no gradient: zero
                (found,) = torch.autograd.grad(value.sum(), at, allow_unused=True)
        return logits.detach(), torch.zeros_like(at) if found is None else found

    @torch.no_grad()
    def ask(self, at: Tensor, target: Tensor) -> Tensor:
        return self.logits(at, target)

    def logits(self, at: Tensor, target: Tensor) -> Tensor:
        found = logits_of(self.model, at)
        if not self.asked and len(at):
            check_classes(found.detach(), target)
            self.asked = True
        return found

    def note(self, rows: Tensor, at: Tensor, logits: Tensor) -> None:
        """Keep, of the examples ``rows``, those points that are better than what they have."""
        check_finite(logits)
        target = self.target[rows]
        wrong = logits.argmax(1) != target
        odds = target_log_odds(logits, target).to(self.lowest.dtype)
        better = (wrong | (odds < self.lowest[rows])) & ~self.fooled[rows]
        chosen = rows[better]
        self.inputs[chosen], self.lowest[chosen] = at[better], odds[better]
        self.fooled[chosen] |= wrong[better]

    def found(self) -> Attacked:
        if self.attack.keep == "last":
            logits = self.ask(self.inputs, self.target)
            check_finite(logits)
            self.fooled = logits.argmax(1) != self.target
        return Attacked(self.inputs, self.fooled, self.zero_first, self.stepped & ~self.moved)


def check_targets(inputs: Tensor, target: Tensor) -> None:
    """Raise `InputError` unless there is one whole number an input."""
    whole = not (target.is_floating_point() or target.is_complex() or target.dtype == torch.bool)
    if target.shape != inputs.shape[:1] or not whole:
        raise InputError(
            f"Expected the class number of each input, shape {tuple(inputs.shape[:1])}, but got "
            f"{tuple(target.shape)} {target.dtype}."
        )


def check_classes(logits: Tensor, target: Tensor) -> None:
    """Raise `InputError` unless the targets are classes of a model that has more than one."""
    checked(logits, target)
    if logits.shape[1] < 2:
        raise InputError(
            "Expected a model of at least 2 classes, but its logits have 1, so that it is never "
            "wrong; a model of yes or no needs a logit for each."
        )


def check_finite(logits: Tensor) -> None:
    """Raise `InputError` for logits that are not finite."""
    if not logits.isfinite().all():
        broken = int((~logits.isfinite()).any(1).sum())
        raise InputError(
            f"Expected finite logits, but those of {broken} of {len(logits)} examples are not, near"
            " inputs where the model's logits are finite; it cannot be attacked by its gradient."
        )


def _name(function: Objective) -> str:
    return getattr(function, "__qualname__", type(function).__name__)
