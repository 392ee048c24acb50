"""Attacks of the library pyautoattack, kept quiet, in our units and inside our ball.

- `square`: random search that sees logits alone. What it fools and an attack by the gradient does
  not, had a gradient that led astray.
- `auto_attack`: the standard ensemble (APGD on cross-entropy, targeted APGD on DLR, targeted FAB,
  Square). DLR, a difference of logits divided by another, has a blind spot of its own where the
  true class ranks third or lower. Targeted it needs four classes; with three it takes its place
  untargeted, with two there is none.

They want images with numbers in [0, 1]; a model of anything else is put behind a change of units.
What comes back is cut to the ball and asked again, so no rounding of theirs counts.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from losslab.analysis.attacks import check_classes, check_finite, check_targets
from losslab.analysis.ball import NORMS, Ball, Box, one_of
from losslab.analysis.classifier import evaluating, logits_of
from losslab.errors import InputError

_THEIR_NORM = {"linf": "Linf", "l2": "L2"}
INSTALL = "pip install 'losslab[attacks]'"
LEAST_SIDE = 5  # pixels, for Square in L2


class Fooled(NamedTuple):
    """The changed inputs, whether the model is wrong about each, and what the library warned of."""

    inputs: Tensor
    fooled: Tensor
    notes: tuple[str, ...]


def why_not(inputs: Tensor, norm: str) -> str | None:
    """Why `square` cannot be run on these inputs, in words; None where it can."""
    try:
        import pyautoattack  # noqa: F401
    except ImportError:
        return f"needs pyautoattack: {INSTALL}"
    side = min(_image(inputs.shape[1:])[1:])
    if norm == "l2" and side < LEAST_SIDE:
        return f"in L2 it needs images of at least {LEAST_SIDE}×{LEAST_SIDE} pixels"
    return None


def square(
    model: nn.Module,
    inputs: Tensor,
    target: Tensor,
    epsilon: float,
    *,
    norm: str = "linf",
    box: Box = "image",
    queries: int = 5000,
    seed: int = 0,
) -> Fooled:
    """Square Attack (Andriushchenko et al. 2020): no gradient, only logits.

    Its squares may lie anywhere. Those of the library never come to the last row and column, so
    that of a row of features the last one is all but left alone.

    Args:
        model: On the inputs' device.
        inputs: (N, …) floats, or uint8.
        target: (N,) true classes.
        epsilon, norm, box: As `losslab.analysis.attacks.Attack` has them.
        queries: How often an example's logits may be asked for.
        seed: Decides everything random.

    Raises:
        InputError: If the library is missing or cannot attack inputs of this shape, an input lies
            outside the box, the targets are not classes of the model, or logits are not finite.
    """
    _usable(inputs, norm)
    from pyautoattack.square import SquareAttack

    class Anywhere(SquareAttack):
        def random_int(self, low: int, high: int) -> Tensor:
            return super().random_int(low, high + 1)  # of places, the last one included

    def made(unit: Callable[[Tensor], Tensor], radius: float, _: int) -> Callable[..., Tensor]:
        options = {"norm": _THEIR_NORM[norm], "eps": radius, "n_queries": queries, "seed": seed}
        return Anywhere(unit, device=inputs.device, **options).perturb

    return _attacked(model, inputs, target, Ball(norm, epsilon, inputs, box), made)


def auto_attack(
    model: nn.Module,
    inputs: Tensor,
    target: Tensor,
    epsilon: float,
    *,
    norm: str = "linf",
    box: Box = "image",
    seed: int = 0,
) -> Fooled:
    """AutoAttack, standard version (Croce and Hein 2020); it takes long. Arguments as `square`."""
    _usable(inputs, norm)
    from pyautoattack import AutoAttack

    def made(
        unit: Callable[[Tensor], Tensor], radius: float, classes: int
    ) -> Callable[..., Tensor]:
        options: dict[str, Any] = {"norm": _THEIR_NORM[norm], "eps": radius, "seed": seed}
        attack = AutoAttack(unit, device=inputs.device, **options)
        attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = min(9, classes - 1)
        if classes < 4:
            dlr = ["apgd-dlr"] if classes == 3 else []
            attack.attacks_to_run = ["apgd-ce", *dlr, "fab-t", "square"]
        return lambda *batch: attack.run_standard_evaluation(*batch)[0]

    return _attacked(model, inputs, target, Ball(norm, epsilon, inputs, box), made)


@torch.inference_mode(False)
def _attacked(
    model: nn.Module,
    inputs: Tensor,
    target: Tensor,
    ball: Ball,
    make: Callable[[Callable[[Tensor], Tensor], float, int], Callable[..., Tensor]],
) -> Fooled:
    """Attack those inputs about which the model is right; the others are fooled as they are."""
    check_targets(inputs, target)
    shape, dtype = ball.clean.shape[1:], ball.clean.dtype

    def unit(images: Tensor) -> Tensor:
        rows = (low + images * (high - low)).to(dtype).reshape(-1, *shape)
        return logits_of(model, rows).float().clone()  # Square writes into what it gets

    with evaluating(model):
        logits = _asked(model, ball.clean)
        if len(target):
            check_classes(logits, target)
        fooled = logits.argmax(1) != target
        changed, rows = ball.clean.clone(), (~fooled).nonzero()[:, 0]
        if not len(rows):
            return Fooled(changed, fooled, ())
        low, high = ball.limits or _room(ball)
        images = _as_images(((ball.clean[rows] - low) / (high - low)).clamp(0, 1).float())
        with _frozen(model), _own_randomness(inputs.device), _quiet() as notes:
            attack = make(unit, ball.radius / (high - low), logits.shape[1])
            found = attack(images, target[rows]).detach().reshape(-1, *shape)
        there = low + found.to(ball.wide) * (high - low)
        chosen = ball.only(rows)
        changed[rows] = chosen.place(there - chosen.centre)
        fooled[rows] = _asked(model, changed[rows]).argmax(1) != target[rows]
    return Fooled(changed, fooled, tuple(notes))


@torch.no_grad()
def _asked(model: nn.Module, inputs: Tensor) -> Tensor:
    logits = logits_of(model, inputs)
    check_finite(logits)
    return logits


def _usable(inputs: Tensor, norm: str) -> None:
    one_of("norm", norm, NORMS)
    reason = why_not(inputs, norm)
    if reason is not None:
        raise InputError(f"Square and AutoAttack cannot be run: {reason}.")


def _room(ball: Ball) -> tuple[float, float]:
    """Ends of a box that binds nothing."""
    return float(ball.clean.min()) - ball.radius, float(ball.clean.max()) + ball.radius


def _image(shape: torch.Size) -> tuple[int, ...]:
    """Channels, height and width; what is no image is one of a single row."""
    if len(shape) == 3:
        return tuple(shape)
    return (1, *shape) if len(shape) == 2 else (1, 1, shape.numel())


def _as_images(rows: Tensor) -> Tensor:
    return rows.reshape(-1, *_image(rows.shape[1:]))


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No parameter gathers a gradient: FAB calls ``backward``."""
    learning = [p for p in model.parameters() if p.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


@contextmanager
def _own_randomness(device: torch.device) -> Iterator[None]:
    """The library sets torch's global generators; the caller's are given back."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


@contextmanager
def _quiet() -> Iterator[list[str]]:
    """What the library logs as a warning, instead of showing it; and the tracer that it unsets."""
    notes: list[str] = []

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            notes.append(record.getMessage())

    logger, handler, tracer = (
        logging.getLogger("auto-attack"),
        Notes(logging.WARNING),
        sys.gettrace(),
    )
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield notes
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
        sys.settrace(tracer)
