"""A split of its own for every seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

from losslab.experiment.task import Task
from losslab.experiment.tasks.options import TaskOptions


def resampled(build: Callable[[TaskOptions], Task], options: TaskOptions) -> Callable[[int], Task]:
    """``task_of`` for a `Comparison`: seed k has the split ``split_seed + k``.

    Args:
        build: Makes the task of some options.
        options: Those of the comparison.
    """
    return cache(lambda seed: build(replace(options, split_seed=options.split_seed + seed)))
