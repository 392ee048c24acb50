"""Who is measured: the baseline, losslab's losses and rivals, each as calls on a case's tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import losslab
from losslab.bench import published
from losslab.bench.cases import Case
from losslab.errors import InputError, nearest

Forward = Callable[..., Tensor]
Role = Literal["baseline", "loss", "rival"]

OWN_PSI = "own_psi"
DEFAULT_LOSSES = ("cross_entropy", "encouraging", "mixed(focus=0.3)", "focal", OWN_PSI)
DEFAULT_RIVALS = ("published", "linear_cross_entropy")
RIVALS = {
    "compiled": "torch.compile of the baseline",
    "published": "the encouraging loss by probabilities, as its paper's code computes it",
    "linear_cross_entropy": "F.linear_cross_entropy in chunks (with --linear)",
}


@dataclass(frozen=True)
class Contestant:
    """A row of the table: ``steps(*leaves, target)`` are its losses, one after another.

    ``backend`` is the one of losslab's it was measured on, if one was asked for.
    ``like`` predicts its memory where trying it on fewer rows would change it (a compiler's
    shapes). ``unavailable`` says why it cannot be measured.
    """

    label: str
    role: Role
    steps: tuple[Forward, ...]
    spec: str | None = None
    backend: str | None = None
    like: tuple[Forward, ...] = ()
    unavailable: str | None = None


def loss_named(text: str, label_smoothing: float) -> nn.Module:
    """The module of ``--loss``; ``own_psi`` is a ψ that is not in the catalogue."""
    if text == OWN_PSI:
        return losslab.OddsLoss(_own_psi, label_smoothing=label_smoothing)
    return losslab.loss(text, label_smoothing=label_smoothing)


def _own_psi(a: Tensor) -> Tensor:
    return torch.relu(1 - a)


def check_rivals(names: Sequence[str], linear: bool) -> tuple[str, ...]:
    """Known names, without repetition; ``none`` alone is no rival."""
    if list(names) == ["none"]:
        return ()
    for name in names:
        if name not in RIVALS:
            raise InputError(
                f"--rival must be one of {', '.join(RIVALS)}, or none alone; got {name!r}."
                f"{nearest(name, RIVALS)}"
            )
    if "linear_cross_entropy" in names and not linear:
        raise InputError(
            "--rival linear_cross_entropy has a linear layer in it: give --linear "
            "ROWSxFEATURESxCLASSES, such as --linear 1024x512x32000."
        )
    return tuple(dict.fromkeys(names))


def contestants(
    case: Case,
    losses: Sequence[str],
    rivals: Sequence[str],
    backends: Sequence[str] = (),
    label_smoothing: float = 0.0,
    device: torch.device | str = "cpu",
) -> list[Contestant]:
    """The rows of a case's column, the baseline first."""
    smooth: dict[str, Any] = {"label_smoothing": label_smoothing} if label_smoothing else {}
    plain: Forward = partial(F.cross_entropy, **smooth) if smooth else F.cross_entropy
    if case.features is None:
        baseline = Contestant("F.cross_entropy", "baseline", (plain,))
    else:
        baseline = Contestant("F.linear + F.cross_entropy", "baseline", (_on_linear(plain),))
    rows = [baseline]
    for text in dict.fromkeys(losses):
        module = loss_named(text, label_smoothing).to(device)
        row = _loss(module, text) if case.features is None else _fused(module, text)
        rows += _on_backends(row, backends)
    for name in rivals:
        if name == "compiled":
            rows.append(_compiled(baseline))
        elif name == "published":
            naive: Forward = partial(published.encouraging, **smooth)
            forward = naive if case.features is None else _on_linear(naive)
            rows.append(Contestant("encouraging, published", "rival", (forward,)))
        elif case.features is not None:
            rows.append(_linear_cross_entropy(smooth))
    return rows


def _on_linear(loss: Forward) -> Forward:
    def forward(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        return loss(F.linear(hidden, weight), target)

    return forward


def _label(module: Any, text: str) -> str:
    return "OddsLoss, your own ψ" if text == OWN_PSI else module.spec


def _on_backends(row: Contestant, backends: Sequence[str]) -> list[Contestant]:
    """The row once for each backend, which its label names where there are several."""
    named = len(backends) > 1
    return [
        replace(row, backend=name, label=f"{row.label}, {name}" if named else row.label)
        for name in backends
    ] or [row]


def _loss(module: Any, text: str) -> Contestant:
    """An alternating loss takes all of its steps."""
    return Contestant(_label(module, text), "loss", tuple(module.steps), text)


def _fused(module: Any, text: str) -> Contestant:
    """Linear and loss without the logits."""
    label = f"linear_loss, {_label(module, text)}"
    linear_loss = getattr(losslab, "linear_loss", None)
    if linear_loss is None:
        missing = f"losslab {losslab.__version__} has no linear_loss"
        return Contestant(label, "loss", (), text, unavailable=missing)

    def forward(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        return linear_loss(hidden, weight, target, module)

    return Contestant(label, "loss", (forward,), text)


def _compiled(baseline: Contestant) -> Contestant:
    """Compiled for the case's shape alone; compilers count how often a function was compiled."""
    torch.compiler.reset()
    steps = tuple(torch.compile(step, dynamic=False) for step in baseline.steps)
    return Contestant("torch.compile(baseline)", "rival", steps, like=baseline.steps)


def _linear_cross_entropy(options: dict[str, Any]) -> Contestant:
    label = "F.linear_cross_entropy, chunked"
    if not hasattr(F, "linear_cross_entropy"):
        missing = f"torch {torch.__version__} has no linear_cross_entropy"
        return Contestant(label, "rival", (), unavailable=missing)
    if options:  # it would warn and make the logits
        return Contestant(label, "rival", (), unavailable="has no label smoothing in chunks")
    chunks = torch.nn.LinearCrossEntropyOptions()
    forward = partial(F.linear_cross_entropy, options=chunks, **options)
    return Contestant(label, "rival", (forward,))
