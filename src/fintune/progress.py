"""Progress for people: bars on a terminal and in a notebook, sparklines, times and sizes in words."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Sequence
from typing import Any

_LEVELS = "▁▂▃▄▅▆▇█"


def progress_bar(wanted: bool = True, **options: Any) -> Any:
    """A tqdm bar; `options` are tqdm's."""
    from tqdm.auto import tqdm

    ipython = sys.modules.get("IPython")
    notebook = ipython and hasattr(
        ipython.get_ipython(), "kernel"
    )  # its stderr is no terminal, but shows bars
    return tqdm(**options, disable=True if not wanted else False if notebook else None)


def sparkline(values: Sequence[float], width: int = 12) -> str:
    """The values as bars, left to right, scaled from lowest to highest; more than `width` are averaged."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return ""
    count = min(width, len(known))
    ends = [len(known) * i // count for i in range(count + 1)]
    means = [sum(known[a:b]) / (b - a) for a, b in itertools.pairwise(ends)]
    low, high = min(means), max(means)
    if low == high:
        return _LEVELS[0] * count
    return "".join(_LEVELS[round((mean - low) / (high - low) * 7)] for mean in means)


def duration(seconds: float | None) -> str:
    """A time in words: 48 s, 13 min, 2.4 h; – for None."""
    if seconds is None:
        return "–"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def megabytes(count: float) -> str:
    """A number of bytes in words: 0.4 MB, 271 MB, 1.25 GB."""
    if count >= 1e9:
        return f"{count / 1e9:.2f} GB"
    return f"{count / 1e6:.{1 if count < 1e7 else 0}f} MB"
