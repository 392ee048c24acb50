"""The machine and its state, as plain JSON; what speaks against trusting a measurement."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch

from losslab.bench.cases import DTYPES, Case
from losslab.bench.step import using
from losslab.errors import InputError
from losslab.experiment.environment import describe_environment
from losslab.logodds import select


def describe_machine(device: torch.device) -> dict[str, Any]:
    """The environment, vector instructions, load at the start, and losslab's backend."""
    return {
        **describe_environment(device),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.version.cuda,
        "load_average": load_average(),
        "LOSSLAB_BACKEND": os.environ.get("LOSSLAB_BACKEND"),
        "backend_report": select.backend_report(),
    }


def load_average() -> float | None:
    """Processes that wanted to run in the last minute, on average; None where unknown."""
    try:
        return round(os.getloadavg()[0], 2)
    except (OSError, AttributeError):
        return None


def check_device(name: str) -> str:
    """``cpu``, ``cuda`` or ``cuda:1``, if it works."""
    try:
        kind = torch.device(name).type
    except RuntimeError:
        kind = ""
    if kind not in ("cpu", "cuda"):
        raise InputError(f"--device must be cpu, cuda or cuda:NUMBER; got {name!r}.")
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(
            f"--device {name!r} cannot be used here: {reason}. Try --device cpu."
        ) from None
    return name


def backend_of(case: Case, device: torch.device) -> str:
    """The backend that losslab takes by itself for a case's logits."""
    return select.backend_for(device, DTYPES[case.dtype])


def check_backends(names: Sequence[str]) -> tuple[str, ...]:
    """Backends that can run here, without repetition; the user's environment is checked too."""
    for name in (*names, os.environ.get("LOSSLAB_BACKEND") or "auto"):
        with using(name):
            pass
    return tuple(dict.fromkeys(names))
