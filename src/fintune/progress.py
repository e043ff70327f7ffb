"""Progress bars: on a terminal as text, in a notebook as a widget, and nowhere else."""

from __future__ import annotations

import sys
from typing import Any


def progress_bar(wanted: bool = True, **options: Any) -> Any:
    """A bar of tqdm, which takes `options`."""
    from tqdm.auto import tqdm

    notebook = "ipykernel" in sys.modules  # nothing there is a terminal
    return tqdm(**options, disable=True if not wanted else False if notebook else None)
