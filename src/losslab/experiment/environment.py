"""What a run ran on: versions, machine and git state, as plain JSON."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from losslab.logodds.select import backend_for

_GIT_SECONDS = 5.0  # a huge or far-away repository must not hold up a comparison


def describe_environment(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Versions, platform, processor, threads, device and the git state of the current directory.

    Example:
        >>> sorted(describe_environment())[:4]
        ['backend', 'cores', 'cpu', 'device']
    """
    return {
        "losslab": package_version("losslab"),
        "torch": torch.__version__,
        "numpy": package_version("numpy"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device_name(torch.device(device)),
        "backend": backend_for(device),
        "git": git_state(),
    }


def package_version(name: str) -> str | None:
    """The installed version of a package; None when it is used without being installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def processor_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's model name, as far as the system tells."""
    try:
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def device_name(device: torch.device) -> str:
    """``cpu``, or the accelerator with its model: ``cuda:0 (NVIDIA H100)``."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


def git_state(folder: str | Path = ".") -> dict[str, Any] | None:
    """``{"commit": …, "dirty": bool}`` of the repository around ``folder``; None outside of one.

    ``dirty`` says that tracked files differ from the commit; untracked files do not count.
    """
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    if not commit:
        return None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _git(folder: str | Path, *arguments: str) -> str | None:
    """What git prints, or None when it fails, is missing, or takes too long."""
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_GIT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
