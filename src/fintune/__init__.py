"""fintune: one causal LLM, one LoRA adapter, five finance tasks.

Importing this package imports nothing heavy; torch and transformers load only where they are used.
"""

import importlib
from typing import Any

__version__ = "0.2.0"
_FROM_PYTHON = ("Recipe", "evaluate", "load", "prepare", "train")
__all__ = ["Recipe", "__version__", "evaluate", "load", "prepare", "train"]


def __getattr__(name: str) -> Any:
    """The Python API, imported when it is first used; see `fintune.python`."""
    if name in _FROM_PYTHON:
        return getattr(importlib.import_module("fintune.python"), name)
    raise AttributeError(f"module 'fintune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_FROM_PYTHON})
