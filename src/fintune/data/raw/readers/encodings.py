"""Detect a text file's encoding: its byte order mark, else UTF-8, else a reported guess.

Streams of bytes in, a codec's name out.
"""

from __future__ import annotations

import codecs
import re
from typing import IO

SAMPLE_BYTES = 64 * 2**10
"""The most bytes of non-ASCII lines to guess from."""
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is its beginning
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_OTHER_SCRIPTS = "cp1251 koi8_r cp1253 cp1255 cp1256 gb18030 big5 cp932 euc_jp cp949".split()
"""Encodings of texts whose letters are mostly non-ASCII."""
UTF8 = "utf-8-sig"


def marked(head: bytes) -> str:
    """The encoding that a file's first bytes show; "" if none."""
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    odd, even = head[1::2].count(0), head[0::2].count(0)
    if max(odd, even) > len(head) // 8:  # in UTF-16, half of the bytes of Latin letters are 0
        return "utf-16-le" if odd > even else "utf-16-be"
    return ""


def guessed(stream: IO[bytes]) -> tuple[str, str]:
    """The encoding of a text without a byte order mark, and a line that shows it; "" for UTF-8.

    For single non-ASCII letters among Latin ones it is cp1252, the default of the web; otherwise
    charset-normalizer's best guess.
    """
    sample = b"".join(_not_ascii(stream))
    if not sample:
        return UTF8, ""
    encoding = _likely(sample)
    line = sample.partition(b"\n")[0].decode(encoding, "replace").strip()
    beyond = next((place for place, letter in enumerate(line) if letter > "\x7f"), 0)
    begin = max(0, beyond - 20)
    return encoding, f"{'…' if begin else ''}{line[begin : beyond + 20]}"


def _not_ascii(stream: IO[bytes]) -> list[bytes]:
    """Some of the lines that are not ASCII; none if the whole stream is UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    kept: list[bytes] = []
    size, good = 0, True
    while good or size < SAMPLE_BYTES:
        chunk = stream.read(2**16)
        if good:
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError:
                good = False
        if not chunk:
            break
        if size < SAMPLE_BYTES and not chunk.isascii():
            found = [line + b"\n" for line in chunk.splitlines() if not line.isascii()]
            kept += found
            size += sum(map(len, found))
    return [] if good else kept


def _likely(sample: bytes) -> str:
    runs = re.findall(rb"[\x80-\xff]+", sample)
    single = sum(len(run) == 1 for run in runs) > len(runs) / 2
    if not single:
        from charset_normalizer import from_bytes

        best = from_bytes(sample, cp_isolation=[*_OTHER_SCRIPTS, "cp1252"]).best()
        if best is not None:
            return str(best.encoding)
    try:
        sample.decode("cp1252")
    except UnicodeDecodeError:
        return "latin-1"
    return "cp1252"
