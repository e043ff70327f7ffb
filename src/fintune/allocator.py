"""The memory allocator and the waiting threads of a command that computes on a CPU.

**mimalloc in place of glibc's.** A training step allocates and frees some 20,000 tensors of ever other sizes.
glibc's heap (2.36 was measured) goes to pieces under that: it takes more memory, is searched longer and is
faulted in again, and a run loses a fifth of its speed within fifty steps. mimalloc (Leijen et al., 2019),
told to keep what it has, is faster from the first step and stays so. docs/LOG.md has the figures.

**Threads that wait soon sleep.** OpenMP's threads meet at a barrier after each operator. By libgomp's default
a thread spins there for 300,000 turns: on a machine that does other work it takes the core that the other one
needs. After 1,000 turns it hardly ever sleeps where the machine is idle, and gives way where it is not.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

MARK = "FINTUNE_ALLOCATOR"
"""Environment variable: `system` keeps the system's allocator; anything else is for this module's own use."""


WAITING = {"GOMP_SPINCOUNT": "1000"}
"""libgomp's settings of a thread at a barrier; `benchmarks/busy.py` compares some."""


def let_threads_sleep() -> None:
    """Have OpenMP's threads sleep where they wait; to be called before torch is imported, which reads it."""
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(os.environ):
        os.environ.update(WAITING)


def library() -> Path | None:
    """mimalloc, where the package `cmeel-mimalloc` is installed; only Linux preloads it here."""
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
    """Start this process again with mimalloc, once, with the same arguments; to be called before all else.

    Does nothing where mimalloc is not installed, where the user preloads something else or asked for
    `FINTUNE_ALLOCATOR=system`, and with an NVIDIA driver, under which tensors are not in this memory.
    Child processes get the environment as it was.
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
    """The environment of a process that is to run with mimalloc."""
    return {"LD_PRELOAD": str(found), "MIMALLOC_PURGE_DELAY": "-1", MARK: str(found)}
