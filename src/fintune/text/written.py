"""Read lists and objects back that a table holds as text, as Python or JSON writes them."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

_WRITTEN = re.compile(r"\s*(\[\s*(['\"].*['\"]\s*)?\]|\{\s*['\"].*\})\s*", re.DOTALL)
_ARRAY = re.compile(r"array\((\[[^\[\]]*\])(?:, dtype=[\w'<>]+)?\)")
"""NumPy arrays as pandas writes them into a CSV."""


def parsed(text: str) -> Any:
    """The list of texts, or the object, that a text spells out; else the text itself."""
    if not _WRITTEN.fullmatch(text):
        return text
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(_ARRAY.sub(r"\1", text.strip()))
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        return found if isinstance(found, list | dict) else text
    return text
