"""Untrusted text in Markdown: shown literally, never as a link, image, HTML or table cell boundary."""

from __future__ import annotations

import html
import re
from typing import Any

_SIGNS = re.compile(r"[\\`*\[\]|]")
_ADDRESS = re.compile(r"(?<=:)//|(?<=\bwww)\.", re.IGNORECASE)
"""What GitHub's and other Markdown turn into a link."""


def cell(text: Any) -> str:
    """Any text as one line of Markdown."""
    line = html.escape(" ".join(str(text).split()), quote=False)
    line = _SIGNS.sub(lambda found: f"\\{found[0]}", line)
    return _ADDRESS.sub(lambda found: "".join(f"&#{ord(sign)};" for sign in found[0]), line)
