"""Who would not fit into the free memory, found out on a few rows before it is tried on all."""

from __future__ import annotations

from dataclasses import replace

import torch

from losslab.bench.cases import Case
from losslab.bench.contestants import Forward
from losslab.bench.memory import available_bytes, in_bytes, peak_bytes, predicted_peak
from losslab.bench.result import Column
from losslab.bench.step import noting_failure, step_of

_USABLE = 0.85
"""Of the free memory: the rest is for what the prediction does not see."""
_MOST_TIMES = 24
"""No loss known takes so many times its logits: where that fits, nothing is tried."""
_TRIAL_BYTES = 8 << 20


def refuse_what_does_not_fit(column: Column, device: torch.device, backward: bool) -> None:
    """Marks the rows that need too much; nobody is tried once the baseline does."""
    case, free = column.case, available_bytes(device)
    if free is None:
        return
    usable = int(_USABLE * free)
    if 4 * case.input_bytes + _MOST_TIMES * case.logits_bytes < usable:
        return
    for row in column.sound:
        if column.baseline.failed is not None:
            return
        if replace(case, rows=1).input_bytes > usable:  # a linear layer's weights alone
            row.failed = _too_much(case.input_bytes, usable)
            return
        with noting_failure(row):
            steps = row.contestant.like or row.contestant.steps
            needed = case.input_bytes + _predicted(steps, case, device, backward, usable)
            if needed > usable:
                row.failed = _too_much(needed, usable)


def _too_much(needed: int, usable: int) -> str:
    return f"needs about {in_bytes(needed)}, of which {in_bytes(usable)} can be used"


def _predicted(
    steps: tuple[Forward, ...], case: Case, device: torch.device, backward: bool, usable: int
) -> int:
    """Tried on batches so short that even the greediest loss has room."""
    trial = min(_TRIAL_BYTES, usable // (3 * _MOST_TIMES))

    def peak_at(rows: int) -> int:
        return peak_bytes(step_of(steps, case.inputs(device, rows), backward), device)

    return predicted_peak(peak_at, case.rows, trial * case.rows // case.logits_bytes)
