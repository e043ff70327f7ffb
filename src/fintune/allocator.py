"""Memory allocator and OpenMP thread settings for commands that compute on a CPU.

**mimalloc instead of glibc's malloc.** A training step allocates and frees some 20,000 tensors of varying
sizes. They fragment glibc's heap (measured with 2.36): it takes more memory, longer searches and more page
faults, and a run loses a fifth of its speed within fifty steps. mimalloc (Leijen et al., 2019), set to keep
its memory, is faster from the first step and stays so. docs/LOG.md has the figures.

**Waiting threads sleep soon.** OpenMP's threads meet at a barrier after each operator. By default, libgomp's
threads spin there for 300,000 turns, which on a busy machine takes a core that another process needs. With
1,000 turns, threads hardly ever sleep on an idle machine, and give way on a busy one.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

MARK = "FINTUNE_ALLOCATOR"
"""Environment variable: `system` keeps the system's allocator; other values are internal."""


WAITING = {"GOMP_SPINCOUNT": "1000"}
"""libgomp's settings for a thread at a barrier; `benchmarks/busy.py` compares several."""


def let_threads_sleep() -> None:
    """Make waiting OpenMP threads sleep. Call it before importing torch, which reads these variables."""
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(os.environ):
        os.environ.update(WAITING)


def library() -> Path | None:
    """mimalloc's file, if the package `cmeel-mimalloc` is installed; only on Linux, where it is preloaded."""
    path = Path(sysconfig.get_path("purelib")) / "cmeel.prefix" / "lib" / "libmimalloc.so"
    return path.resolve() if sys.platform == "linux" and path.is_file() else None


def in_use() -> str:
    """The allocator of this process: `mimalloc`, `jemalloc`, `tcmalloc` or `system`."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    except OSError:
        return "system"
    return next((name for name in ("mimalloc", "jemalloc", "tcmalloc") if f"/lib{name}" in maps), "system")


def use_mimalloc() -> None:
    """Restart this process once with mimalloc and the same arguments. Call it before anything else.

    Does nothing if mimalloc is not installed, if the user preloads another library or set
    `FINTUNE_ALLOCATOR=system`, or with an NVIDIA driver, whose tensors are in GPU memory.
    Child processes get the original environment.
    """
    found = library()
    if os.environ.get(MARK) == str(found):
        for name in ("LD_PRELOAD", "MIMALLOC_PURGE_DELAY", MARK):
            os.environ.pop(name, None)
        return
    if found is None or MARK in os.environ or "LD_PRELOAD" in os.environ or Path("/dev/nvidiactl").exists():
        return
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **preload(found)})


def preload(found: Path) -> dict[str, str]:
    """The environment variables that run a process with mimalloc."""
    return {"LD_PRELOAD": str(found), "MIMALLOC_PURGE_DELAY": "-1", MARK: str(found)}
