"""What goes into and comes out of a model's layers; which of them makes the logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from losslab.analysis.classifier import Data, batches, evaluating, logits_of, predict
from losslab.errors import InputError

Heard = dict[str, list[tuple[Any, Any]]]  # by a module's name: what came in and went out


def output_layer(
    model: nn.Module,
    data: Data,
    name: str | None = None,
    *,
    device: str | torch.device = "cpu",
) -> str:
    """The name of the ``nn.Linear`` whose output is the logits, checked on a batch of ``data``.

    Raises:
        InputError: If none is, or the one that was named is not.
    """
    model.to(device)
    inputs = next((x for x, _ in batches(data)), None)
    if inputs is None:
        raise InputError("Expected at least one example, but the data set is empty.")
    linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    if name is not None and name not in linear:
        raise InputError(
            f"Expected the output layer to be one of the model's nn.Linear layers "
            f"({', '.join(map(repr, linear)) or 'it has none'}), but got {name!r}."
        )
    asked = linear if name is None else {name: linear[name]}
    with evaluating(model), torch.no_grad(), _listening(asked) as heard:
        logits = logits_of(model, inputs.to(device))
    reasons = {n: _why_not_output(asked[n], heard[n], logits) for n in asked}
    found = [n for n, reason in reasons.items() if reason is None]
    if found:
        return found[-1]
    told = "; ".join(f"{n!r} {reason}" for n, reason in list(reasons.items())[-3:])
    raise InputError(
        "Expected the model's logits to be what one nn.Linear layer returns, so that it can be "
        f"learned anew, but {told or 'the model has no nn.Linear'}. "
        "Wrap the model in one that ends with such a layer, or use a linear probe of another."
    )


def _why_not_output(layer: nn.Linear, heard: list[tuple[Any, Any]], logits: Tensor) -> str | None:
    if layer.out_features != logits.shape[1]:
        return f"returns {layer.out_features} numbers, not {logits.shape[1]}"
    if len(heard) != 1:
        return f"is used {len(heard)} times in a forward pass"
    features, output = heard[0]
    if not _same(output, logits):
        return "returns something else than the logits"
    if not _same(nn.functional.linear(features, layer.weight, layer.bias), logits):
        return "is not linear, or its output is changed on the way to the logits"
    return None


def _same(found: Any, logits: Tensor) -> bool:
    if not isinstance(found, Tensor) or found.shape != logits.shape:
        return False
    return torch.allclose(found.float(), logits.float(), rtol=1e-3, atol=1e-5)


@contextmanager
def _listening(modules: Mapping[str, nn.Module]) -> Iterator[Heard]:
    """What goes through some modules, call by call, on the device where it is."""
    heard: Heard = {name: [] for name in modules}

    def hook(name: str) -> Callable[..., None]:
        def listen(_: nn.Module, args: tuple, keywords: dict, output: Any) -> None:
            heard[name].append((args[0] if args else next(iter(keywords.values()), None), output))

        return listen

    handles = [m.register_forward_hook(hook(n), with_kwargs=True) for n, m in modules.items()]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def features_of(
    model: nn.Module, name: str, data: Data, device: str | torch.device, *, incoming: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """What comes into (or out of) a module, flattened, and the logits and targets, on the CPU."""
    modules = dict(model.named_modules())
    if name not in modules:
        known = ", ".join(repr(n) for n in modules if n)
        raise InputError(f"Expected layer to be one of {known}, but got {name!r}.")
    with _listening({name: modules[name]}) as heard:
        logits, target = predict(model, data, device=device)
    features = []
    for call in heard[name]:
        found = call[0 if incoming else 1]
        if not isinstance(found, Tensor) or found.ndim < 2:
            raise InputError(
                f"Expected {name!r} to return one tensor with a row an example, but it returns "
                f"{type(found).__name__}; name another layer."
            )
        features.append(found.detach().flatten(1).float().cpu())
    if sum(map(len, features)) != len(target) or len({f.shape[1] for f in features}) != 1:
        raise InputError(
            f"Expected {name!r} to see each example once in a forward pass and to return as many "
            f"features for each, but it was called {len(features)} times on "
            f"{sum(map(len, features))} rows for {len(target)} examples; name another layer."
        )
    joined = torch.cat(features)
    if not bool(joined.isfinite().all()):
        raise InputError(f"Expected finite features, but some of those at {name!r} are not.")
    return joined, logits, target
