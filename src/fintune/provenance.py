"""What a result depends on besides its recipe (versions, commit, machine), for manifests and reports."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fintune.allocator import in_use
from fintune.extras import version

_ROOT = Path(__file__).parents[2]
"""The project's folder, in its repository."""


def stamp() -> dict[str, Any]:
    """What each manifest records: time, versions, commit and machine."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "git_commit": git_commit(),
        "machine": machine(),
    }


def versions() -> dict[str, str]:
    """Versions of the packages that affect results; packages that are not installed are left out."""
    names = ("fintune", "torch", "transformers", "peft", "accelerate", "bitsandbytes")
    known = {name: found for name in names if (found := version(name))}
    return {"python": platform.python_version(), **known}


def git_commit() -> str | None:
    """The commit of the running code, with `+` if a tracked file was changed; None outside git.

    Untracked files, such as your own recipes and results, are not a change. The commit of another project
    whose folder contains the installed package does not count.
    """
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)
        changed = _git(
            "--no-optional-locks", "status", "--porcelain", "--untracked-files=no", "--", str(_ROOT)
        )
        return _git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    folder = Path(__file__).parent
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def machine() -> dict[str, Any]:
    """The system, the processor, the cores this process may use, its allocator, the GPU (None without)."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": cores,
        "allocator": in_use(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or "unknown")


def peak_memory() -> int:
    """The peak memory of this process in bytes: on the GPU if it uses one."""
    import resource

    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024
