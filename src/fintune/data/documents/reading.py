"""Read a file into a `Document`: HTML, inline XBRL, PDF, Markdown or plain text, recognized by content.

Files are untrusted: the size read is bounded, and nothing in them is run or fetched.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from fintune.data.documents.passages import Block, Document, Passage, passages
from fintune.data.documents.plain import submission, text_blocks
from fintune.data.storage import Location, locate
from fintune.errors import DataError

ENDINGS = (".html", ".htm", ".xhtml", ".pdf", ".md", ".markdown", ".txt", ".text")
"""File name endings of documents."""
MAX_BYTES = 64 * 2**20
"""The largest file: a bank's annual report with inline XBRL has 40 MB."""
MAX_FILES = 1000
_MARKUP = re.compile(
    r"^[ \t]*(?:<[?!][^>]*>[ \t]*)*<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.MULTILINE
)
_FRAGMENT = re.compile(
    r"\s*<(?:h[1-6]|p|div|table|section|article|ul|ol|span|font|center)\b[^<>]*>", re.IGNORECASE
)
_BEGINNING = 2**16
"""How many of the first characters are searched for signs of HTML."""
_CHARSET = re.compile(rb"<meta[^>]{0,200}charset\s*=\s*[\"']?([\w-]{1,40})", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")
_TEXTUAL = (".htm", ".html", ".txt", ".xhtml", "")


def documents(path: str | Path) -> list[Document]:
    """The document of a file, or those of a folder's files, by name.

    Raises:
        DataError: it is missing, too large, damaged or without text, or the folder holds no document.
    """
    place = locate(path)
    if not place.exists():
        raise DataError(f"--document is {place.shown}, which does not exist: name a file or a folder.")
    if not place.is_folder():
        return [read_document(place)]
    return [read_document(file) for file in document_files(place, "--document")]


def document_files(folder: Location, key: str) -> list[Location]:
    """The documents below a folder, by name.

    Raises:
        DataError: there are none, or too many.
    """
    files = [file for file in folder.files() if file.suffix in ENDINGS]
    if not 0 < len(files) <= MAX_FILES:
        count = f"{len(files):,} documents; at most {MAX_FILES:,} are read" if files else "no document"
        raise DataError(f"{key} is {folder.shown}, which holds {count} ({', '.join(ENDINGS)}).")
    return files


def read_document(file: Location) -> Document:
    """One file's document."""
    with file.open() as stream:
        content = stream.read(MAX_BYTES + 1)
    return parse_document(content, file.name)


def parse_document(content: bytes, name: str, limit: int = MAX_BYTES) -> Document:
    """Read a file's bytes as a document.

    Args:
        name: the file's name, for messages and citations.

    Raises:
        DataError: it is too large, damaged, of another kind, or has no text.
    """
    if len(content) > limit:
        raise DataError(f"{name} is larger than {limit / 2**20:.0f} MB, the limit for a document.")
    if content[:1024].lstrip().startswith(b"%PDF-"):
        from fintune.data.documents.pdf import pdf_blocks

        return _document(name, pdf_blocks(content, name), paged=True)
    text = _decoded(content, name)
    parts = submission(text)
    if not parts:
        return _document(name, _blocks(text, name), paged="\f" in text and not _is_html(text))
    found: list[Passage] = []
    skipped = 0
    for kind, file, body in parts:
        if Path(file.lower()).suffix not in _TEXTUAL or not body.strip():
            skipped += 1
            continue
        inner = _document(
            f"{name} {kind}".strip() if len(parts) > 1 else name, _blocks(body, name), False, empty=True
        )
        found += inner.passages
    if not found:
        raise DataError(f"{name} holds no text.")
    note = f"{skipped} of the filing's {len(parts)} files are not text (pictures, data) and were not read."
    return Document(name, tuple(found), note if skipped else "")


def page_blocks(content: bytes, name: str) -> list[Block]:
    """The blocks of HTML or text in bytes, before they are cut into passages."""
    return _blocks(_decoded(content, name), name)


def _blocks(text: str, name: str) -> list[Block]:
    from fintune.data.documents.html import html_blocks

    return html_blocks(text, name) if _is_html(text) else text_blocks(text)


def _is_html(text: str) -> bool:
    """Whether a text is an HTML page, or a fragment that begins with an element."""
    return bool(_MARKUP.search(text[:_BEGINNING]) or _FRAGMENT.match(text))


def _document(name: str, blocks: Sequence[Block], paged: bool, empty: bool = False) -> Document:
    found = passages(blocks, name, paged)
    if not found and not empty:
        raise DataError(f"{name} holds no text.")
    return Document(name, found)


def _decoded(content: bytes, name: str) -> str:
    """Decode UTF-8, UTF-16, the encoding that the HTML declares, or else Windows-1252."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return _CONTROL.sub("", content.decode("utf-16", "replace"))
    if b"\0" in content[:4096]:
        raise DataError(
            f"{name} is neither text nor a PDF: give HTML, PDF, Markdown or plain text (save a .docx as one)."
        )
    named = _CHARSET.search(content[:4096])
    for encoding in ("utf-8-sig", named[1].decode("ascii") if named else "cp1252"):
        try:
            return _CONTROL.sub("", content.decode(encoding))
        except (UnicodeDecodeError, LookupError):
            continue
    return _CONTROL.sub("", content.decode("cp1252", "replace"))
