"""The functions and modules of every loss, made from the catalogue's rows.

For a row ``encouraging``: ``encouraging_loss(input, target, …)`` beside ``F.cross_entropy``,
``EncouragingLoss(…)`` beside ``nn.CrossEntropyLoss``, and on sigmoid outputs
``binary_encouraging_with_logits`` and ``BinaryEncouragingWithLogitsLoss`` beside PyTorch's binary
cross-entropies. The type checker and the editor see them through ``api.pyi``, which
``python -m losslab.losses.stubs`` writes and a test keeps current.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from losslab.errors import InputError
from losslab.losses import reduction as r
from losslab.losses.catalog import ROWS, Row
from losslab.losses.modules import BinaryCatalogLoss, CatalogLoss
from losslab.schedules import Schedule

_SHAPES = (
    "Shape: input (C,), (N, C) or (N, C, d1, …) logits; target class indices of that shape without "
    'C,\n    or probabilities of the same shape. Returns a scalar, or with ``reduction="none"`` '
    "the\n    input's shape without C, in the input's dtype (float32 under autocast)."
)
_BINARY_SHAPES = (
    "Shape: input (*) logits, target (*) numbers in [0, 1]. Returns a scalar, or (*) with\n"
    '    ``reduction="none"``.'
)


def documentation(row: Row, *, binary: bool = False, example: str) -> str:
    """Docstring of one public function or module."""
    text = inspect.cleandoc(row.psi.__doc__ or "") if binary and row.psi else row.documentation
    options = r.BINARY_OPTIONS if binary else r.OPTIONS
    arguments = [f"    {p.name}: {p.meaning}; in {p.domain}." for p in row.parameters]
    arguments += [f"    {name}: {meaning}" for name, (_, _, meaning) in options.items()]
    parts = [text, "Args:\n" + "\n".join(arguments), _BINARY_SHAPES if binary else _SHAPES]
    if row.identities and not binary:
        parts.append("Identities:\n" + "\n".join(f"    {i}" for i in row.identities))
    if row.note and not binary:
        parts.append(f"Note: {row.note}")
    parts.append(
        "Raises: losslab.InputError for a value outside its domain or shapes that do not fit."
    )
    parts.append(f"Example:\n{example}")
    parts.append(f"Source: {row.source}.")
    return "\n\n".join(parts)


def signature(row: Row, *, binary: bool, tensors: bool) -> inspect.Signature:
    """``weight`` comes first and may be positional, as PyTorch's; all else goes by name."""
    kind = inspect.Parameter
    options = r.BINARY_OPTIONS if binary else r.OPTIONS
    named = [(p.name, p.default) for p in row.parameters]
    named += [(name, default) for name, (default, _, _) in options.items() if name != "weight"]
    parameters = [
        kind(name, kind.POSITIONAL_OR_KEYWORD) for name in (("input", "target") if tensors else ())
    ]
    parameters.append(kind("weight", kind.POSITIONAL_OR_KEYWORD, default=None))
    parameters += [kind(name, kind.KEYWORD_ONLY, default=value) for name, value in named]
    return inspect.Signature(parameters)


def make_module(row: Row, *, binary: bool = False) -> type:
    name = row.binary_module_name if binary else row.module_name
    base = BinaryCatalogLoss if binary else CatalogLoss
    cls = type(name, (base,), {"row": row, "__module__": "losslab.losses.api"})
    cls.__signature__ = signature(row, binary=binary, tensors=False)  # type: ignore[attr-defined]
    target = "torch.ones(8, 5)" if binary else "torch.randint(5, (8,))"
    example = (
        f"    >>> import torch, losslab\n    >>> loss = losslab.{name}()\n"
        f"    >>> loss(torch.randn(8, 5), {target}).shape\n    torch.Size([])"
    )
    cls.__doc__ = documentation(row, binary=binary, example=example)
    return cls


def make_function(row: Row, *, binary: bool = False) -> Callable[..., Tensor]:
    name = row.binary_function_name if binary else row.function_name
    names = r.BINARY_OPTIONS if binary else r.OPTIONS

    def function(
        input: Tensor, target: Tensor, weight: Tensor | None = None, **keywords: Any
    ) -> Tensor:
        options, parameters = r.split_options({"weight": weight, **keywords}, names)
        values = row.check(parameters)
        if any(isinstance(value, Schedule) for value in parameters.values()):
            module = row.binary_module_name if binary else row.module_name
            raise InputError(
                f"{name} is a function and has no progress: a schedule needs the module {module}, "
                "or pass the schedule's value, schedule(progress)."
            )
        arguments = row.resolve(values)
        if binary:
            return r.binary_loss(input, target, lambda a: row.psi(a, **arguments), **options)  # type: ignore[misc]
        return r.classification_loss(input, target, row.softmax_rows(arguments), **options)

    function.__name__ = function.__qualname__ = name
    function.__module__ = "losslab.losses.api"
    function.__signature__ = signature(row, binary=binary, tensors=True)  # type: ignore[attr-defined]
    target = "torch.ones(8, 5)" if binary else "torch.randint(5, (8,))"
    example = (
        f"    >>> import torch, losslab\n"
        f"    >>> losslab.{name}(torch.randn(8, 5), {target}).shape\n    torch.Size([])"
    )
    function.__doc__ = documentation(row, binary=binary, example=example)
    return function


__all__: list[str] = []
for _row in ROWS:
    for _binary in (False, True) if _row.psi else (False,):
        for _made in (make_function(_row, binary=_binary), make_module(_row, binary=_binary)):
            globals()[_made.__name__] = _made
            __all__.append(_made.__name__)
del _row, _binary, _made
