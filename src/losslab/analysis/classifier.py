"""How a model, losslab's or a user's own, is asked for its logits.

The rules, the same for every analysis:

- a model is measured in evaluation mode, and given back in the mode in which it came;
- its parameters and their ``.grad`` are left as they were;
- ``model(inputs)`` returns logits ``(examples, classes)``, or a mapping or an object that has them
  under ``logits`` (as Hugging Face models do); anything else is refused, not guessed at;
- logits that are not finite are refused;
- outputs that look like a softmax of logits are measured as they are, with a warning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from losslab.errors import InputError
from losslab.inputs import length, moved
from losslab.reading import Reading

Data = Dataset | DataLoader | tuple[Tensor, Tensor]
BATCH_SIZE = 500
_ROUNDING = 5e-3  # of a row's sum in bfloat16
_PROBABILITIES = (
    "the model seems to return probabilities, not logits: every row of its outputs is non-negative "
    "and sums to 1, so that what is measured here is of a softmax of a softmax; let it return what "
    "goes into its softmax"
)
_LOG_PROBABILITIES = (
    "the model seems to return log-probabilities, of which margins and probabilities are right but "
    "energies are −log p, and the free energy is 0 of every example; let it return what goes into "
    "its log-softmax"
)


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


def logits_of(model: nn.Module, inputs: Any, examples: int | None = None) -> Tensor:
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
    examples = length(inputs) if examples is None else examples
    if output.ndim != 2 or len(output) != examples or not output.is_floating_point():
        raise InputError(
            f"Expected the model to return logits of shape ({examples}, classes) for "
            f"{examples} examples, but got {tuple(output.shape)} {output.dtype}."
        )
    return output


def predict(
    model: nn.Module,
    data: Data,
    *,
    device: str | torch.device = "cpu",
    batch_size: int = BATCH_SIZE,
    reading: Reading | None = None,
) -> tuple[Tensor, Tensor]:
    """The logits and targets of all examples, on the CPU, the model in evaluation mode.

    Args:
        model: Moved to ``device``.
        data: A data set of ``(input, target)``, a loader of such batches, or the two tensors.
        device: Where the model computes.
        batch_size: Examples at once, for a data set or tensors.
        reading: How the model's answer becomes rows of logits, where it is not one row an example.

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
            inputs, target = moved(inputs, device), moved(target, device)
            if reading is None or type(reading) is Reading:
                rows, labels = logits_of(model, inputs, len(target)), target
            else:
                rows, labels = reading.logits(model(inputs), target), reading.labels(target)
            logits.append(rows.float().cpu())
            targets.append(labels.cpu())
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


def scale_flags(logits: Tensor, energies: bool = False) -> tuple[str, ...]:
    """A warning if a model's outputs, taken for logits, are seemingly a softmax of them.

    Probabilities are told by every row: none of its numbers is below 0, and they sum to 1. Log-
    probabilities (exp of which does) are logits like others but for what ``energies`` are: they
    have the margins and the probabilities of the logits that they were made of.

    Example:
        >>> scale_flags(torch.tensor([[0.2, 0.8], [0.5, 0.5]]))[0].partition(":")[0]
        'the model seems to return probabilities, not logits'
    """
    if logits.shape[1] < 2:
        return ()
    if bool((logits >= 0).all()) and _all_near(logits.sum(1), 1):
        return (_PROBABILITIES,)
    if energies and _all_near(logits.logsumexp(1), 0):
        return (_LOG_PROBABILITIES,)
    return ()


def _all_near(sums: Tensor, value: float) -> bool:
    return bool(((sums - value).abs() < _ROUNDING).all())


def batches(data: Data, batch_size: int = BATCH_SIZE) -> Iterator[tuple[Tensor, Tensor]]:
    """The examples in order, ``(inputs, targets)`` at a time."""
    if isinstance(data, tuple):
        inputs, targets = _pair(data)
        yield from zip(inputs.split(batch_size), targets.split(batch_size), strict=True)
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
        first, second = _pair(data)
        return first[:most], second[:most]
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


def _pair(data: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    inputs, targets = data
    if not len(inputs) or len(inputs) != len(targets):
        raise InputError(
            f"Expected at least one example, and a target for each, but got {len(inputs)} inputs "
            f"and {len(targets)} targets."
        )
    return inputs, targets


def _kind(value: Any) -> str:
    kind = type(value).__name__
    if isinstance(value, (list, tuple)):
        return f"a {kind} of {len(value)}"
    return f"a {kind} with {', '.join(map(str, value))}" if isinstance(value, Mapping) else kind
