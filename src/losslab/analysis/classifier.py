"""How a model, losslab's or a user's own, is asked for its logits.

The rules, the same for every analysis:

- a model is measured in evaluation mode, and given back in the mode in which it came;
- its parameters and their ``.grad`` are left as they were;
- ``model(inputs)`` returns logits ``(examples, classes)``, or a mapping or an object that has them
  under ``logits`` (as Hugging Face models do); anything else is refused, not guessed at;
- logits that are not finite are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from losslab.errors import InputError

Data = Dataset | DataLoader | tuple[Tensor, Tensor]
BATCH_SIZE = 500


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; every module's own mode again afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def logits_of(model: nn.Module, inputs: Tensor) -> Tensor:
    """The model's logits for a batch, differentiable, as a tensor ``(examples, classes)``.

    Raises:
        InputError: If the model returns something else.
    """
    output = model(inputs)
    if isinstance(output, Mapping):
        output = output.get("logits", output)
    elif not isinstance(output, Tensor):
        output = getattr(output, "logits", output)
    if not isinstance(output, Tensor):
        raise InputError(
            "Expected the model to return its logits as one tensor, or under the name logits, but "
            f"it returns {_kind(output)}; wrap it in a module that returns the logits."
        )
    if output.ndim != 2 or len(output) != len(inputs) or not output.is_floating_point():
        raise InputError(
            f"Expected the model to return logits of shape ({len(inputs)}, classes) for "
            f"{len(inputs)} examples, but got {tuple(output.shape)} {output.dtype}."
        )
    return output


def predict(
    model: nn.Module,
    data: Data,
    *,
    device: str | torch.device = "cpu",
    batch_size: int = BATCH_SIZE,
) -> tuple[Tensor, Tensor]:
    """The logits and targets of all examples, on the CPU, the model in evaluation mode.

    Args:
        model: Moved to ``device``.
        data: A data set of ``(input, target)``, a loader of such batches, or the two tensors.
        device: Where the model computes.
        batch_size: Examples at once, for a data set or tensors.

    Raises:
        InputError: If there are no examples, or the logits are not what they should be.

    Example:
        >>> logits, target = predict(nn.Linear(4, 3), (torch.randn(5, 4), torch.zeros(5).long()))
        >>> logits.shape, target.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """
    logits, targets = [], []
    model.to(device)
    with evaluating(model), torch.no_grad():
        for inputs, target in batches(data, batch_size):
            logits.append(logits_of(model, inputs.to(device)).float().cpu())
            targets.append(target.cpu())
    if not logits:
        raise InputError("Expected at least one example to measure the model on, but got none.")
    found = torch.cat(logits)
    broken = int((~found.isfinite()).any(dim=1).sum())
    if broken:
        raise InputError(
            f"Expected finite logits, but those of {broken} of {len(found)} examples are not; the "
            "model has diverged, or its inputs are not what it was trained on."
        )
    return found, torch.cat(targets)


def batches(data: Data, batch_size: int = BATCH_SIZE) -> Iterator[tuple[Tensor, Tensor]]:
    """The examples in order, ``(inputs, targets)`` at a time."""
    if isinstance(data, tuple):
        yield from zip(data[0].split(batch_size), data[1].split(batch_size), strict=True)
        return
    for batch in data if isinstance(data, DataLoader) else DataLoader(data, batch_size):
        if not isinstance(batch, (list, tuple)) or len(batch) != 2:
            raise InputError(
                f"Expected examples to be (input, target) pairs, but a batch is {_kind(batch)}."
            )
        yield batch[0], batch[1]


def tensors(data: Data, most: int | None = None) -> tuple[Tensor, Tensor]:
    """All examples, or the first ``most``, as two tensors."""
    if isinstance(data, tuple):
        return data[0][:most], data[1][:most]
    inputs, targets, count = [], [], 0
    for x, y in batches(data):
        inputs.append(x)
        targets.append(y)
        count += len(y)
        if most is not None and count >= most:
            break
    if not inputs:
        raise InputError("Expected at least one example, but the data set is empty.")
    return torch.cat(inputs)[:most], torch.cat(targets)[:most]


def _kind(value: Any) -> str:
    kind = type(value).__name__
    if isinstance(value, (list, tuple)):
        return f"a {kind} of {len(value)}"
    return f"a {kind} with {', '.join(map(str, value))}" if isinstance(value, Mapping) else kind
