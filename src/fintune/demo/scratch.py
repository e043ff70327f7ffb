"""The demo's folder for uploads and answers: private, and deleted with the process."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path

from fintune import files

_PREFIX = "fintune-demo-"


@functools.cache
def folder() -> Path:
    """This process's folder; also deletes those of killed demos."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        if not left.is_symlink() and files.abandoned(left, files.YOUNG):
            shutil.rmtree(left, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=_PREFIX))  # 0700
    end = ExitStack()
    end.callback(shutil.rmtree, made, ignore_errors=True)
    end.enter_context(files.held(made))
    atexit.register(end.close)
    return made
