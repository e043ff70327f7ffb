"""Text damaged by a wrong encoding («â‚¬» for «€»): found, and repaired where the user asks for it.

Off by default (`data.repair_encoding`), so that the published test sets stay as others use them.
"""

from __future__ import annotations

import re
from typing import Literal

HALF = re.compile("[\ud800-\udfff]")
"""Half a character (a surrogate without its other half), which cannot be written nor tokenized."""

Problem = Literal["repairable", "lost"]
_LOST = "\ufffd"


def repair(text: str) -> str:
    """The text with UTF-8 that was read as another encoding put right (Speer's `ftfy`); else unchanged."""
    if text.isascii():
        return text
    from ftfy import fix_encoding

    return fix_encoding(text)


def problem(text: str) -> Problem | None:
    """`repairable` if `repair` would change the text, `lost` if U+FFFD stands for a character."""
    if text.isascii():
        return None
    if repair(text) != text:
        return "repairable"
    return "lost" if _LOST in text else None
