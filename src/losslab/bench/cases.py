"""What is measured on: sizes, dtypes, and the tensors made from them."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from losslab.errors import InputError, nearest

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
DEFAULT_SIZES = ("256x10", "128x1000", "4096x1000", "1024x32000")
_SEED = 0


@dataclass(frozen=True)
class Inputs:
    """Leaf tensors that require gradients, and class indices."""

    leaves: tuple[Tensor, ...]
    target: Tensor

    def forget_gradients(self) -> None:
        for leaf in self.leaves:
            leaf.grad = None

    @property
    def gradient_bytes(self) -> int:
        """What the gradients take that a step has left."""
        gradients = (leaf.grad for leaf in self.leaves)
        return sum(g.numel() * g.element_size() for g in gradients if g is not None)


@dataclass(frozen=True)
class Case:
    """One column of the table: logits (rows, classes), or a linear layer of ``features`` before
    them that is part of what is measured."""

    rows: int
    classes: int
    dtype: str = "float32"
    features: int | None = None

    @property
    def title(self) -> str:
        """``4096×1000``; ``1024×512→32000`` with a linear layer."""
        if self.features is None:
            return f"{self.rows}×{self.classes}"
        return f"{self.rows}×{self.features}→{self.classes}"

    @property
    def logits_bytes(self) -> int:
        return self.rows * self.classes * DTYPES[self.dtype].itemsize

    @property
    def input_bytes(self) -> int:
        """What `inputs` allocates, about."""
        item = DTYPES[self.dtype].itemsize
        if self.features is None:
            return self.logits_bytes
        return item * self.features * (self.rows + self.classes)

    def inputs(self, device: torch.device, rows: int | None = None) -> Inputs:
        """Random inputs, the same each time; ``rows`` makes a shorter batch of the same kind."""
        n = rows or self.rows
        generator = torch.Generator(device).manual_seed(_SEED)

        def normal(*shape: int) -> Tensor:
            dtype = DTYPES[self.dtype]
            return torch.randn(shape, generator=generator, device=device, dtype=dtype)

        if self.features is None:
            leaves = [normal(n, self.classes)]
        else:
            weight = normal(self.classes, self.features).div_(self.features**0.5)
            leaves = [normal(n, self.features), weight]
        target = torch.randint(self.classes, (n,), generator=generator, device=device)
        return Inputs(tuple(leaf.requires_grad_() for leaf in leaves), target)


def parse_size(text: str) -> tuple[int, int]:
    """``4096x1000`` -> (4096 rows, 1000 classes).

    Example:
        >>> parse_size("4096x1000")
        (4096, 1000)
    """
    rows, classes = _numbers(text, "--size", "ROWSxCLASSES", "4096x1000", 2)
    return rows, classes


def parse_linear(text: str) -> tuple[int, int, int]:
    """``1024x512x32000`` -> (1024 rows, 512 features, 32000 classes)."""
    form = "ROWSxFEATURESxCLASSES"
    rows, features, classes = _numbers(text, "--linear", form, "1024x512x32000", 3)
    return rows, features, classes


def _numbers(text: str, option: str, form: str, example: str, count: int) -> list[int]:
    parts = re.split(r"[x×X]", text.strip())
    numbers = [int(part) for part in parts if re.fullmatch(r"[0-9]{1,12}", part)]
    if len(parts) != count or len(numbers) != count or min(numbers) < 1:
        raise InputError(f"{option} must be {form} such as {example}; got {text!r}.")
    return numbers


def check_dtype(name: str) -> str:
    if name not in DTYPES:
        raise InputError(
            f"--dtype must be one of {', '.join(DTYPES)}; got {name!r}.{nearest(name, DTYPES)}"
        )
    return name
