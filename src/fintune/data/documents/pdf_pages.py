"""A PDF on standard input → its pages' runs of text as JSON on standard output: a program of its own.

A PDF is a stranger's, and PDFium is not written in Python: it runs in a process that has little memory and
time, and whose end costs one document. It imports nothing of fintune.
"""

from __future__ import annotations

import json
import sys
from typing import Any

MEMORY = 2 * 2**30
"""Bytes of address space, where the system can limit it."""
MAX_PAGES = 2000
MAX_RUNS = 20_000
"""Runs of text on one page."""


def pages(content: bytes) -> dict[str, Any]:
    """`pages`: for each a list of (left, right, top, bottom, text); or `error`, PDFium's word for it."""
    import pypdfium2

    try:
        pdf = pypdfium2.PdfDocument(content)
        count = len(pdf)
    except pypdfium2.PdfiumError as error:
        return {"error": str(error)}
    if count > MAX_PAGES:
        return {"error": f"it has {count:,} pages, and {MAX_PAGES:,} are read at most"}
    found = []
    for page in pdf:
        text = page.get_textpage()
        runs = []
        for i in range(min(text.count_rects(), MAX_RUNS)):
            left, bottom, right, top = text.get_rect(i)
            words = text.get_text_bounded(left, bottom, right, top)
            runs.append((left, right, top, bottom, " ".join(words.split())))
        found.append([run for run in runs if run[-1]])
        text.close()
        page.close()
    return {"pages": found}


if __name__ == "__main__":
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except (ImportError, ValueError, OSError):  # another system; the time is limited all the same
        pass
    json.dump(pages(sys.stdin.buffer.read()), sys.stdout)
