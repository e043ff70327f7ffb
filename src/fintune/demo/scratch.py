"""Where the demo keeps uploads and answers: nobody else can read them, and they go with the process."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

_PREFIX = "fintune-demo-"
_NEW = 60.0
"""Seconds in which a folder may not have its lock yet."""


@functools.cache
def folder() -> Path:
    """This process's folder; those of demos that were killed go now."""
    _sweep(Path(tempfile.gettempdir()))
    made = Path(tempfile.mkdtemp(prefix=_PREFIX))  # 0700
    lock = _lock(made)
    lock.acquire()

    def leave() -> None:
        lock.release()
        shutil.rmtree(made, ignore_errors=True)

    atexit.register(leave)
    return made


def _sweep(parent: Path) -> None:
    import filelock

    for left in parent.glob(f"{_PREFIX}*"):
        try:
            if left.is_symlink() or time.time() - left.stat().st_mtime < _NEW:
                continue
            with _lock(left).acquire(blocking=False):
                shutil.rmtree(left, ignore_errors=True)
        except (OSError, filelock.Timeout):  # in use, or another user's
            continue


def _lock(path: Path) -> Any:
    from filelock import FileLock

    return FileLock(path / ".lock")
