"""Text damaged by a wrong encoding («â‚¬» for «€»): detect it, and repair it on request.

Off by default (`data.repair_encoding`), so that the published test sets stay as others use them.
"""

from __future__ import annotations

import re
from typing import Literal

HALF = re.compile("[\ud800-\udfff]")
"""Half a surrogate pair, which can be neither written nor tokenized."""

Problem = Literal["repairable", "lost"]
_LOST = "\ufffd"


def repair(text: str) -> str:
    """Repair UTF-8 that was decoded as another encoding (Speer's `ftfy`); other text is unchanged."""
    if text.isascii():
        return text
    from ftfy import fix_encoding

    return fix_encoding(text)


def problem(text: str) -> Problem | None:
    """`repairable` if `repair` would change the text, `lost` if it contains U+FFFD."""
    if text.isascii():
        return None
    if repair(text) != text:
        return "repairable"
    return "lost" if _LOST in text else None
