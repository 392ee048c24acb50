"""Peak memory of an action, what is free, and what an action would need before it is tried."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

_SYSTEM = Path("/")
_GROUP_FILES = (
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)


def peak_bytes(action: Callable[[], None], device: torch.device) -> int:
    """The most that PyTorch's allocator held during ``action`` beyond what it held before.

    Scratch that a kernel takes from the system itself is not seen.
    """
    if device.type == "cuda":
        return _cuda_peak(action, device)
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler writes to standard error
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        action()
    events = trace.profiler.kineto_results.events()
    live = peak = 0
    for event in events:
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def _cuda_peak(action: Callable[[], None], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    action()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def available_bytes(device: torch.device, root: Path = _SYSTEM) -> int | None:
    """What can still be allocated; None where the system does not tell."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    known = [_free_in_machine(root), _free_in_group(root)]
    return min((free for free in known if free is not None), default=None)


def _free_in_machine(root: Path) -> int | None:
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    return None


def _free_in_group(root: Path) -> int | None:
    """What a container's limit leaves, file caches that would be given up included."""
    group = root / "sys/fs/cgroup"
    for limit, usage, statistics in _GROUP_FILES:
        try:
            most, used = (int((group / name).read_text()) for name in (limit, usage))
            lines = (line.split() for line in (group / statistics).read_text().splitlines())
            cache = next((int(value) for name, value in lines if name == "inactive_file"), 0)
        except (OSError, ValueError):  # no such group, or "max"
            continue
        return max(0, most - used + cache)
    return None


def predicted_peak(peak_at: Callable[[int], int], rows: int, short: int) -> int:
    """Peak at ``rows`` from batches of ``short`` rows and twice as many, or fewer: what does not
    depend on the rows, and what does."""
    short = max(1, min(rows // 2, short))
    if rows < 2:
        return peak_at(rows)
    low, high = peak_at(short), peak_at(2 * short)
    return high + max(0, high - low) * (rows - 2 * short) // short


def in_bytes(count: float) -> str:
    """``4.2 GB``: three figures, powers of ten.

    Example:
        >>> in_bytes(16_384_000)
        '16.4 MB'
    """
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 999.5 or unit == "GB":
            break
        count /= 1000
    return f"{count:.3g} {unit}" if count < 999.5 else f"{count:.0f} {unit}"
