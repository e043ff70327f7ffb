"""Rows that name a document instead of holding its text: a column's path in, the document's text out."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from fintune.data.documents.reading import read_document
from fintune.data.raw.readers.json_rows import cell
from fintune.data.raw.readers.row_files import RowFile, open_rows
from fintune.data.storage import Location
from fintune.errors import DataError


def document_at(file: RowFile, named: str) -> Location:
    """The document that a row names, in or below the folder of the row's file.

    Raises:
        ValueError: it is missing or elsewhere: an untrusted table must only read files that came with it.
    """
    parts = PurePosixPath(named.replace("\\", "/")).parts
    if not parts or parts[0] == "/" or ".." in parts or ":" in parts[0]:
        raise ValueError(f"the document {named!r} is not a path below the folder of {file.name}")
    folder = file.place.parent
    place = folder.child("/".join(parts))
    outside = place.local and not place.local.resolve().is_relative_to(Path(folder.path).resolve())
    if outside or not place.is_file():
        raise ValueError(f"there is no document {named!r} below the folder of {file.name}")
    return place


def named_documents(files: Iterable[RowFile], column: str) -> dict[str, Location]:
    """The documents named by rows of some files, by path; the reader handles rows that name none."""
    found = {}
    for file in files:
        rows = (row for _, row in open_rows(file, [column])[1] if isinstance(row, dict))
        for named in dict.fromkeys(value for row in rows if isinstance(value := cell(row, column), str)):
            with contextlib.suppress(ValueError):
                place = document_at(file, named)
                found[place.shown] = place
    return found


@functools.lru_cache(maxsize=4)  # questions on one document are usually adjacent
def _text(place: Location, modified: str) -> str:
    return "\n".join(passage.text for passage in read_document(place).passages)


def document_text(file: RowFile, named: str) -> str:
    """The text of the document that a row names.

    Raises:
        ValueError: it is missing, elsewhere or unreadable.
    """
    place = document_at(file, named)
    try:
        return _text(place, place.modified())
    except DataError as error:
        raise ValueError(str(error).rstrip(".")) from None
