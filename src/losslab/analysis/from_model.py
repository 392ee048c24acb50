"""The analyses that work on the model itself, as `losslab analyse` asks for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from losslab.analysis.ball import Box, read_box
from losslab.analysis.classifier import tensors
from losslab.analysis.finding import Finding
from losslab.analysis.robustness import ATTACKS, EPSILONS, EPSILONS_L2
from losslab.analysis.robustness import robustness as measure_robustness
from losslab.analysis.subject import Subject
from losslab.errors import InputError


def robustness(
    subject: Subject,
    epsilons: Sequence[float] = EPSILONS,
    epsilons_l2: Sequence[float] = EPSILONS_L2,
    attacks: str | Sequence[str] = tuple(ATTACKS),
    box: str | Sequence[float] = "auto",
    examples: int = 500,
    steps: int = 40,
    huge: float | None = None,
) -> Finding:
    """Accuracy of the test examples under attack.

    ``box`` is ``auto``: that of images where the inputs are uint8 or lie in [0, 1], else none, and
    the radii are in the inputs' own units.
    """
    return measure_robustness(
        subject.model,
        subject.test,
        attacks=[attacks] if isinstance(attacks, str) else attacks,
        epsilons=epsilons,
        epsilons_l2=epsilons_l2,
        box=limits_for(box, tensors(subject.test)[0]),
        examples=examples,
        steps=steps,
        seed=subject.seed,
        device=subject.device,
        huge=huge,
    )


def limits_for(box: str | Sequence[float], inputs: Tensor) -> Box:
    """The box that an option names for some inputs."""
    if not isinstance(box, str):
        return read_box(box)
    if box.lower() == "auto":
        return "image" if _like_images(inputs) else None
    return read_box(box.lower())


def _like_images(inputs: Tensor) -> bool:
    if not inputs.is_floating_point():
        return inputs.dtype == torch.uint8
    low, high = inputs.aminmax()
    return bool(low >= 0 and high <= 1)


def representation(
    subject: Subject,
    layer: str | None = None,
    epochs: int = 20,
    lr: float = 0.1,
    weight_decay: float = 1e-4,
    balanced: bool = False,
    probe: bool = True,
) -> Finding:
    """What the features are worth to a new output layer, and to a logistic regression."""
    from losslab.analysis.representation import linear_probe, retrain_output_layer

    given = subject.model, subject.train, subject.test
    found = {
        "retrained": retrain_output_layer(
            *given,
            layer=layer,
            epochs=epochs,
            lr=lr,
            weight_decay=weight_decay,
            balanced=balanced,
            seed=subject.seed,
            device=subject.device,
        )
    }
    if probe:
        found["probe"] = linear_probe(*given, device=subject.device)
    return _together(found)


def curvature(
    subject: Subject, loss: str | None = None, examples: int = 500, probes: int = 30
) -> Finding:
    """The training loss's curvature and noise at the weights, or another loss's there."""
    import losslab
    from losslab.analysis.curvature import curvature

    criterion = subject.criterion if loss is None else losslab.loss(loss)
    return curvature(
        subject.model,
        criterion,
        subject.train,
        batch_size=subject.batch_size,
        seed=subject.seed,
        device=subject.device,
        examples=examples,
        probes=probes,
    )


def generalisation(subject: Subject) -> Finding:
    """How much better the model does on its training examples than on the test examples."""
    from losslab.analysis.dynamics import generalisation

    return generalisation(subject.model, subject.train, subject.test, device=subject.device)


def dynamics(subject: Subject, epoch: int | None = None, threshold: float = 0.2) -> Finding:
    """What was learned and forgotten on the way; needs a trace."""
    from losslab.analysis.dynamics import dynamics

    if subject.trace is None:
        raise InputError(
            "Expected a run whose log-odds were recorded after every epoch, but this one's were "
            "not; train it by losslab compare --analyse dynamics."
        )
    return dynamics(subject.trace, epoch=epoch, threshold=threshold)


def _together(found: dict[str, Finding]) -> Finding:
    """Several findings as one: every name begins with the finding's own."""
    return Finding(
        {f"{part}.{k}": v for part, one in found.items() for k, v in one.values.items()},
        {part: one.details for part, one in found.items()},
        tuple(f"{part}: {flag}" for part, one in found.items() for flag in one.flags),
    )
