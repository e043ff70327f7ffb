"""Progress bars: text on a terminal, a widget in a notebook, nothing elsewhere."""

from __future__ import annotations

import sys
from typing import Any


def progress_bar(wanted: bool = True, **options: Any) -> Any:
    """A tqdm bar; `options` are tqdm's."""
    from tqdm.auto import tqdm

    notebook = "ipykernel" in sys.modules  # a notebook's stderr is not a terminal
    return tqdm(**options, disable=True if not wanted else False if notebook else None)
