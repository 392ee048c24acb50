"""One step of a contestant on inputs: what is timed, and what memory is measured of."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from losslab.bench.cases import Inputs
from losslab.bench.contestants import Forward
from losslab.bench.result import Measured
from losslab.errors import InputError
from losslab.logodds import select


def step_of(steps: tuple[Forward, ...], inputs: Inputs, backward: bool) -> Callable[[], None]:
    """Forward and backward into fresh gradients, or forward alone as in validation."""
    leaves, target = inputs.leaves, inputs.target

    def both() -> None:
        for step in steps:
            for leaf in leaves:
                leaf.grad = None
            step(*leaves, target).backward()

    def forward() -> None:
        with torch.no_grad():
            for step in steps:
                step(*leaves, target)

    return both if backward else forward


@contextmanager
def using(backend: str | None) -> Iterator[None]:
    """Compute log-odds by one backend; by the user's or losslab's own choice where None."""
    if backend is None:
        yield
        return
    select.set_backend(backend)
    try:
        yield
    finally:
        select.set_backend(os.environ.get("LOSSLAB_BACKEND") or "auto")


@contextmanager
def noting_failure(row: Measured) -> Iterator[None]:
    """A contestant that cannot do a case is told of, and the others go on."""
    try:
        with using(row.contestant.backend):
            yield
    except (RuntimeError, MemoryError, InputError, IndexError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        row.failed = lines[0] if len(lines[0]) <= 200 else f"{lines[0][:199]}…"
