"""Foreign text within Markdown: shown as it is, never a link, an image, HTML or the end of a table's cell."""

from __future__ import annotations

import html
import re
from typing import Any

_SIGNS = re.compile(r"[\\`*\[\]|]")
_ADDRESS = re.compile(r"(?<=:)//|(?<=\bwww)\.", re.IGNORECASE)
"""What makes GitHub's Markdown and others take an address for a link."""


def cell(text: Any) -> str:
    """Text that may hold anything as one line of Markdown."""
    line = html.escape(" ".join(str(text).split()), quote=False)
    line = _SIGNS.sub(lambda found: f"\\{found[0]}", line)
    return _ADDRESS.sub(lambda found: "".join(f"&#{ord(sign)};" for sign in found[0]), line)
