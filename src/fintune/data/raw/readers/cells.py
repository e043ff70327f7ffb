"""Convert cells to text, but never a list or an object to its Python notation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fintune.text.written import parsed


def plain(value: Any, name: str) -> str:
    """A cell as text: an empty value is "", 1.0 in a float column is «1», a list of sentences is joined, also
    if it is written as text.

    Args:
        name: the cell's name in errors.

    Raises:
        ValueError: it is another kind of list, an object, or bytes that are not text.
    """
    if isinstance(value, str):
        written = parsed(value) if value[:1] == "[" else value
        if written is value:
            return value.strip()
        value = written
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, bytes):
        try:
            return value.decode().strip()
        except UnicodeDecodeError:
            raise ValueError(f"the {name} is bytes that are not UTF-8 text") from None
    if isinstance(value, list | tuple):
        if not all(isinstance(item, str) for item in value):
            raise ValueError(f"the {name} is a list of something other than texts")
        return " ".join(filter(None, map(str.strip, value)))
    if isinstance(value, Mapping):
        raise ValueError(f"the {name} is an object with {', '.join(map(str, value)) or 'nothing in it'}")
    return str(value)
