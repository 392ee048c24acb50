"""The mean loss over some examples as a function of a model's weights: its derivatives."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from losslab.analysis.classifier import logits_of
from losslab.errors import InputError
from losslab.logodds.plain import compute_dtype
from losslab.metrics.checks import checked

_AT_ONCE = 250  # examples of a Hessian product
_HELD = 1 << 24  # numbers of the examples' gradients held at once


class Surface:
    """The mean loss over some examples as a function of a model's weights, in a copy of it."""

    def __init__(
        self,
        model: nn.Module,
        criterion: nn.Module,
        inputs: Tensor,
        target: Tensor,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        if len(getattr(criterion, "steps", None) or (criterion,)) > 1:
            raise InputError(
                "Expected a loss that is one function of the weights, but this one alternates "
                "several; give one of its parts."
            )
        dtype = dtype or next((compute_dtype(p.dtype) for p in model.parameters()), torch.float32)
        self.model = copy.deepcopy(model).to(device=device, dtype=dtype).eval()
        self.criterion = copy.deepcopy(criterion).to(device=device, dtype=dtype)
        self.inputs = inputs.to(device, dtype if inputs.is_floating_point() else inputs.dtype)
        self.target = target.to(device)
        named = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        if not named:
            raise InputError(
                "Expected a model with weights that require a gradient, but it has none; set "
                "requires_grad of those that the loss is to be a function of."
            )
        self.names, self.weights = list(named), list(named.values())
        self.shapes = [p.shape for p in self.weights]
        self.size = sum(p.numel() for p in self.weights)
        self.device, self.dtype = torch.device(device), dtype
        self._check_model()

    def _check_model(self) -> None:
        """That it computes in its dtype, and the targets, if class numbers, are its classes."""
        try:
            with torch.no_grad():
                logits = logits_of(self.model, self.inputs[:1])
        except RuntimeError as error:
            raise InputError(
                f"Expected a model that computes in {self.dtype}, but it fails there "
                f"({str(error).splitlines()[0]}); leave dtype out for the model's own."
            ) from error
        if self.target.ndim == 1 and not self.target.is_floating_point():
            checked(logits.expand(len(self), -1), self.target)

    def __len__(self) -> int:
        return len(self.target)

    def loss_and_gradient(self) -> tuple[float, Tensor]:
        """L and ∇L, (P,)."""
        value, gradient = 0.0, self._zeros()
        for loss in self._losses():
            value += float(loss.detach())
            gradient += _flat(_gradients(loss, self.weights))
        if not (math.isfinite(value) and bool(gradient.isfinite().all())):
            raise InputError(
                f"Expected a finite loss with a finite gradient, but the loss is {value}; the "
                "model has diverged, or the targets are not this loss's."
            )
        return value, gradient

    def product(self, vector: Tensor) -> Tensor:
        """H·vector, (P,), by double backward.

        Raises:
            InputError: If a second derivative is not finite.
        """
        found, parts = self._zeros(), self._split(vector)
        for loss in self._losses():
            first = _gradients(loss, self.weights, create_graph=True)
            slope = torch.stack([(g * v).sum() for g, v in zip(first, parts, strict=True)]).sum()
            found += _flat(_gradients(slope, self.weights))
        if not bool(found.isfinite().all()):
            raise InputError(
                "Expected a loss with finite second derivatives, but at these weights some are "
                "not (as those of a square root at 0), so nothing is said of its curvature."
            )
        return found

    def hessian(self) -> Tensor:
        """H written out, (P, P)."""
        return torch.stack([self.product(row) for row in torch.eye(self.size).to(self._zeros())])

    def example_gradients(self, rows: Tensor | None = None) -> Iterator[Tensor]:
        """∇ℓ_i of the examples (or of ``rows`` of them), in order, some (n, P) at a time."""
        rows = torch.arange(len(self)) if rows is None else rows
        weights = dict(zip(self.names, (w.detach() for w in self.weights), strict=True))
        each = vmap(grad(self._loss_of_one), in_dims=(None, 0, 0))
        for some in rows.split(max(1, min(_AT_ONCE, _HELD // self.size))):
            inputs, target = self.inputs[some.to(self.device)], self.target[some.to(self.device)]
            try:
                with sdpa_kernel(SDPBackend.MATH):
                    found = list(each(weights, inputs, target).values())
            except RuntimeError:  # an operation that vmap does not know, or the memory of many
                alone = [self._alone(x, y) for x, y in zip(inputs, target, strict=True)]
                yield torch.stack(alone)
                continue
            yield torch.cat([g.flatten(1) for g in found], dim=1)

    def deviations(self, gradient: Tensor) -> Tensor:
        """‖∇ℓ_i − ∇L‖² of every example; their mean is Tr(Σ) for batches of one.

        Raises:
            InputError: If the examples' gradients do not average to ∇L.
        """
        total, sizes = self._zeros(), []
        for found in self.example_gradients():
            total += found.sum(0)
            sizes.append((found - gradient).square().sum(1))
        joined = torch.cat(sizes)
        off = (total / len(self) - gradient).norm()
        scale = (joined.mean() + gradient.square().sum()).sqrt()
        if not bool(off <= 1e3 * torch.finfo(self.dtype).eps * scale):
            raise InputError(
                "Expected the loss of many examples to be the mean of the losses of each alone, "
                "but it is not: use reduction='mean', no class weights and no ignored targets, "
                "and a model whose logits of an example do not depend on the others."
            )
        return joined.cpu()

    def _loss_of_one(self, weights: dict[str, Tensor], inputs: Tensor, target: Tensor) -> Tensor:
        logits = logits_of(
            lambda x: functional_call(self.model, weights, (x,)),  # type: ignore[arg-type]
            inputs.unsqueeze(0),
        )
        return self.criterion(logits, target.unsqueeze(0))

    def _alone(self, inputs: Tensor, target: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            loss = self.criterion(logits_of(self.model, inputs[None]), target[None])
            return _flat(_gradients(loss, self.weights))

    def _losses(self) -> Iterator[Tensor]:
        """Shares of L, each with its graph."""
        pieces = self.inputs.split(_AT_ONCE), self.target.split(_AT_ONCE)
        for inputs, target in zip(*pieces, strict=True):
            with sdpa_kernel(SDPBackend.MATH):  # the others cannot be differentiated twice
                loss = self.criterion(logits_of(self.model, inputs), target)
            if loss.ndim:
                raise InputError(
                    "Expected the loss of a batch to be one number, but its shape is "
                    f"{tuple(loss.shape)}; use reduction='mean'."
                )
            yield loss * (len(target) / len(self))

    def _split(self, vector: Tensor) -> list[Tensor]:
        parts = vector.split([math.prod(shape) for shape in self.shapes])
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def _zeros(self) -> Tensor:
        return torch.zeros(self.size, device=self.device, dtype=self.dtype)


def _gradients(value: Tensor, weights: list[nn.Parameter], create_graph: bool = False) -> Any:
    if not value.requires_grad:  # a loss that is constant, or linear, in the weights
        return [torch.zeros_like(w) for w in weights]
    return torch.autograd.grad(value, weights, create_graph=create_graph, materialize_grads=True)


def _flat(parts: Any) -> Tensor:
    return torch.cat([part.flatten() for part in parts])
