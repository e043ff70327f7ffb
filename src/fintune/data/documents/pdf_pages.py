"""A separate program: a PDF on standard input → its pages' text runs as JSON on standard output.

PDFs are untrusted, and PDFium is not written in Python. So it runs in a process with limited memory and time,
whose crash costs one document. Imports nothing from fintune.
"""

from __future__ import annotations

import json
import sys
from typing import Any

MEMORY = 2 * 2**30
"""Bytes of address space, if the system can limit it."""
MAX_PAGES = 2000
KERNED = 0.3
"""In letter heights: the widest gap between two pieces of one word."""
MAX_CHARACTERS = 200_000
"""The most per page."""
MAX_RUNS = 20_000
"""The most text runs per page."""


def runs_of(text: Any) -> list[list[Any]]:
    """A page's runs: the characters of a text object, and of the next ones if there is no gap between them.

    Programs that kern write a word as several objects («V», «ictor») with overlapping boxes; so text is read
    character by character, never by position.
    """
    import ctypes

    from pypdfium2 import raw

    runs: list[list[Any]] = []  # left, right, top, bottom, text
    sides = [ctypes.c_double() for _ in range(4)]
    box = [ctypes.byref(side) for side in sides]
    last, space = None, False  # the last character's object; whether a gap follows it
    for i in range(min(text.count_chars(), MAX_CHARACTERS)):
        code = raw.FPDFText_GetUnicode(text, i)
        if code in (2, 0xFFFE):
            code = ord("-")  # PDFium's codes for a hyphen that divides a word at a line's end
        if code in (0, 0xFFFE, 0xFFFF) or chr(code).isspace():
            space = True
            if runs and chr(code) == " " and not raw.FPDFText_IsGenerated(text, i):
                runs[-1][4] += " "
            continue
        raw.FPDFText_GetCharBox(text, i, *box)
        left, right, bottom, top = (side.value for side in sides)
        place = ctypes.cast(raw.FPDFText_GetTextObject(text, i), ctypes.c_void_p).value
        if runs:
            run = runs[-1]
            level = min(top, run[2]) - max(bottom, run[3]) > 0
            near = level and -0.5 * KERNED < (left - run[1]) / max(1.0, run[2] - run[3]) < KERNED
            if place == last or (near and not space):
                run[:4] = min(run[0], left), max(run[1], right), max(run[2], top), min(run[3], bottom)
                run[4] += " " * (space and not run[4].endswith(" ")) + chr(code)
                last, space = place, False
                continue
        if len(runs) == MAX_RUNS:
            break
        runs.append([left, right, top, bottom, chr(code)])
        last, space = place, False
    for run in runs:
        whole = run[4].encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # joins surrogate pairs
        run[4] = " ".join(whole.split())
    return [run for run in runs if run[4]]


def pages(content: bytes) -> dict[str, Any]:
    """`pages`: for each a list of (left, right, top, bottom, text); or `error`, PDFium's message."""
    import pypdfium2

    try:
        pdf = pypdfium2.PdfDocument(content)
        count = len(pdf)
    except pypdfium2.PdfiumError as error:
        return {"error": str(error)}
    if count > MAX_PAGES:
        return {"error": f"it has {count:,} pages, and at most {MAX_PAGES:,} are read"}
    found = []
    for page in pdf:
        text = page.get_textpage()
        found.append(runs_of(text))
        text.close()
        page.close()
    return {"pages": found}


if __name__ == "__main__":
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except (ImportError, ValueError, OSError):  # no memory limit on this system; the time is still limited
        pass
    json.dump(pages(sys.stdin.buffer.read()), sys.stdout)
