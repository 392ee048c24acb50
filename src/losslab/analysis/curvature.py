"""The curvature of a loss at a model's weights, and the noise of its mini-batch gradients.

With ℓ_i the loss of example i as a function of the P weights and L = mean_i ℓ_i:

- H = ∇²L, the Hessian: its trace, its largest and its smallest eigenvalue;
- Σ = (1/m)·(mean_i ∇ℓ_i ∇ℓ_iᵀ − ∇L ∇Lᵀ), the covariance of the gradient of m examples;
- Tr(HΣ), which decides how fast the noise drives the weights out of a minimum.

The criterion is free, so the minimum that one loss has found can be looked at under another.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from losslab.analysis.classifier import Data, tensors
from losslab.analysis.finding import Finding
from losslab.analysis.surface import Surface
from losslab.errors import InputError
from losslab.losses.explain import gradient_volume

_TOLERANCE = 1e-3  # of the largest eigenvalue, and of the spectrum's width for the smallest
_RESTARTS = 20


@torch.inference_mode(False)
@torch.enable_grad()
def curvature(
    model: nn.Module,
    criterion: nn.Module,
    data: Data,
    *,
    batch_size: int = 128,
    examples: int | None = 500,
    probes: int = 30,
    seed: int = 0,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> Finding:
    """Hessian, gradient noise and Tr(HΣ) of a loss at a model's weights.

    Math: by one SGD step of learning rate η the noise alone raises the expected loss by
        (η²/2)·Tr(HΣ), to second order in η. In continuous time this is the escaping efficiency
        EE ≈ (t/2)·Tr(HΣ) of Zhu et al. 2018, t being the time since the minimum and η absorbed in
        Σ; with the η of Battash et al., equation 15, outside of Σ it is (t/2)·η·Tr(HΣ), t = η for
        each step.

    Args:
        model: Looked at in evaluation mode (so batch normalisation and dropout are frozen), in a
            copy. Its weights are the parameters that require a gradient.
        criterion: A mean over examples of any loss, also one that the model was not trained with;
            a schedule stays where it is.
        data: What the loss is a mean over; the training data, to speak of training.
        batch_size: m, the examples of a mini-batch.
        examples: How many of ``data`` the loss is taken over, drawn by ``seed``; None for all.
        probes: Hessian products spent on each estimate. Up to so many weights, or for Tr(HΣ) so
            many examples, numbers are exact; beyond, ``details`` has their standard errors.
        seed: Decides what is drawn.
        device: Where the copy computes.
        dtype: What it computes in; the model's own (float32 for half types) if left out.

    Returns:
        Values ``loss``, ``gradient_norm``, ``hessian.trace``, ``hessian.top``, ``hessian.bottom``,
        ``noise.trace`` (Tr Σ), ``escaping.trace`` (Tr HΣ), and two that do not change when the loss
        is multiplied by a number: ``escaping.alignment``, P·Tr(HΣ)/(Tr H · Tr Σ), which is 1 for
        isotropic noise, and ``escaping.matched``, Tr(HΣ)/(V/½)³, that of the loss scaled to
        cross-entropy's gradient volume V = ½ (absent for losses without a volume).

    Raises:
        InputError: If the loss is not a mean of its examples' losses, it or a derivative is not
            finite, or the targets are not classes of the model.

    Example:
        >>> from losslab import ExpectationLoss
        >>> data = torch.randn(32, 4), torch.arange(32) % 3
        >>> found = curvature(nn.Linear(4, 3), ExpectationLoss(), data)
        >>> found.details["weights"], found.details["exact"]
        (15, True)
    """
    _check_counts(batch_size=batch_size, examples=examples, probes=probes)
    inputs, target = _drawn(*tensors(data), examples, seed)
    surface = Surface(model, criterion, inputs, target, device=device, dtype=dtype)
    loss, gradient = surface.loss_and_gradient()
    sizes = surface.deviations(gradient)
    noise = float(sizes.mean())  # of single examples; a mini-batch has this / m
    exact = surface.size <= probes
    hessian = surface.hessian() if exact else None
    trace = _trace(surface, hessian, probes, seed)
    top, bottom, flags = _ends(surface, hessian, seed)
    product = _noise_product(surface, hessian, gradient, sizes, probes, seed)
    values = {
        "loss": loss,
        "gradient_norm": float(gradient.norm()),
        "hessian.trace": trace.value,
        "noise.trace": noise / batch_size,
        "escaping.trace": product.value / batch_size,
    }
    values |= {f"hessian.{k}": v for k, v in (("top", top), ("bottom", bottom)) if v is not None}
    if trace.value > 0 and noise > 0:
        values["escaping.alignment"] = surface.size * product.value / (trace.value * noise)
    volume = _volume(criterion)
    if volume is not None and 0 < volume < math.inf:
        values["escaping.matched"] = values["escaping.trace"] / (2 * volume) ** 3
    details: dict[str, Any] = {
        "weights": surface.size,
        "examples": len(target),
        "batch_size": batch_size,
        "exact": exact,
        "standard_errors": {
            "hessian.trace": trace.error,
            "escaping.trace": product.error / batch_size,
        },
        "volume": volume if volume is None or math.isfinite(volume) else None,
    }
    return Finding(values, details, (*flags, *_warnings(values, details)))


@dataclass(frozen=True)
class _Estimate:
    value: float
    error: float = 0.0  # standard error; 0 where exact


def _trace(surface: Surface, hessian: Tensor | None, probes: int, seed: int) -> _Estimate:
    """Tr(H): exact, or the mean of vᵀHv over random signs v (Hutchinson)."""
    if hessian is not None:
        return _Estimate(float(hessian.trace()))
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(probes):
        signs = torch.randint(0, 2, (surface.size,), generator=generator) * 2 - 1
        vector = signs.to(surface.device, surface.dtype)
        found.append(vector @ surface.product(vector))
    return _mean(torch.stack(found))


def _noise_product(
    surface: Surface,
    hessian: Tensor | None,
    gradient: Tensor,
    sizes: Tensor,
    probes: int,
    seed: int,
) -> _Estimate:
    """Tr(HΣ) for batches of one: the mean of d_iᵀHd_i, d_i = ∇ℓ_i − ∇L.

    Where not all examples are asked, they are drawn in proportion to ‖d_i‖²: the mean over those of
    d_iᵀHd_i/‖d_i‖², which lies between H's eigenvalues, times Tr(Σ). Late in training few examples
    carry all the noise, and a plain sample would miss them.
    """
    if hessian is not None:
        parts = [
            ((g - gradient) @ hessian * (g - gradient)).sum(1) for g in surface.example_gradients()
        ]
        return _Estimate(float(torch.cat(parts).mean()))
    total = float(sizes.sum())
    if total == 0:
        return _Estimate(0.0)
    if len(surface) <= probes:
        drawn = sizes.nonzero().flatten()
    else:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.multinomial(sizes, probes, replacement=True, generator=generator)
    rows, which = drawn.unique(return_inverse=True)
    along = []
    for found in surface.example_gradients(rows):
        for d in found - gradient:
            along.append(d @ surface.product(d) / (d @ d))
    if len(surface) <= probes:
        return _Estimate(float((torch.stack(along).cpu() * sizes[rows]).sum()) / len(surface))
    mean = _mean(torch.stack(along).cpu()[which])
    noise = total / len(surface)
    return _Estimate(noise * mean.value, noise * mean.error)


def _ends(
    surface: Surface, hessian: Tensor | None, seed: int
) -> tuple[float | None, float | None, list[str]]:
    """The largest and the smallest eigenvalue of H, and what did not converge."""
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    if hessian is not None:
        found = torch.linalg.eigvalsh((hessian + hessian.T) / 2)
        return float(found[-1]), float(found[0]), []

    def largest(multiply: Callable[[Any], Any]) -> float | None:
        shape = (surface.size, surface.size)
        operator = LinearOperator(shape, matvec=multiply, dtype="float64")
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(surface.size, generator=generator).double().numpy()
        if not multiply(start).any():  # nor is any other vector's product anything
            return 0.0
        limits = {"tol": _TOLERANCE, "maxiter": _RESTARTS, "return_eigenvectors": False}
        try:
            return float(eigsh(operator, k=1, which="LA", v0=start, **limits)[0])
        except ArpackNoConvergence:
            return None

    def product(x: Any) -> Any:
        vector = torch.as_tensor(x).flatten().to(surface.device, surface.dtype)
        return surface.product(vector).double().cpu().numpy()

    top = largest(product)
    # Of a spectrum that ends in many small eigenvalues the last is found against the first.
    far = None if top is None else largest(lambda x: top * x.flatten() - product(x))
    bottom = None if top is None or far is None else top - far
    missing = [name for name, value in (("largest", top), ("smallest", bottom)) if value is None]
    told = "The {} eigenvalue of the Hessian has not converged and is left out."
    return top, bottom, [told.format(name) for name in missing]


def _warnings(values: dict[str, float], details: dict[str, Any]) -> Iterator[str]:
    top, bottom = values.get("hessian.top"), values.get("hessian.bottom")
    if top is not None and bottom is not None and bottom < -0.1 * abs(top):
        yield (
            f"These weights are no minimum of this loss: the Hessian's smallest eigenvalue is "
            f"{bottom:.3g}, the largest {top:.3g}. Escaping efficiency is derived at a minimum."
        )
    for name, error in details["standard_errors"].items():
        if error > 0.25 * abs(values[name]):
            yield f"{name} is uncertain: {values[name]:.3g} ± {error:.2g} (raise probes)."


def _volume(criterion: nn.Module) -> float | None:
    if type(criterion) is nn.CrossEntropyLoss:
        return 0.5 if criterion.label_smoothing == 0 else None
    if getattr(criterion, "label_smoothing", 0):
        return None
    return gradient_volume(copy.deepcopy(criterion).cpu())


def _drawn(
    inputs: Tensor, target: Tensor, examples: int | None, seed: int
) -> tuple[Tensor, Tensor]:
    if len(target) == 0 or len(inputs) != len(target):
        raise InputError(
            f"Expected at least one example, and a target for each, but got {len(inputs)} inputs "
            f"and {len(target)} targets."
        )
    if examples is None or examples >= len(target):
        return inputs, target
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(target), generator=generator)[:examples].sort().values
    return inputs[rows.to(inputs.device)], target[rows.to(target.device)]


def _check_counts(**counts: int | None) -> None:
    for name, value in counts.items():
        least = 2 if name == "probes" else 1
        if value is None and name == "examples":
            continue
        if type(value) is not int or value < least:
            raise InputError(
                f"Expected {name} to be a whole number of at least {least}, but got {value!r}."
            )


def _mean(draws: Tensor) -> _Estimate:
    return _Estimate(float(draws.mean()), float(draws.std()) / math.sqrt(len(draws)))
