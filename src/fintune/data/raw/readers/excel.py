"""Stream the rows of Excel workbooks (.xlsx, .xlsm) through openpyxl.

Workbooks are untrusted: the unpacked size is bounded, and no formula or macro is run.
"""

from __future__ import annotations

import contextlib
import warnings
import zipfile
from collections.abc import Iterator
from datetime import datetime, time
from typing import Any

from fintune.data.storage import Location
from fintune.errors import DataError

MAX_BYTES = 2**30
"""A workbook may always unpack to this much."""
MAX_RATIO = 200
FREE_BYTES = 64 * 2**20
MAX_ROWS = 2**20
"""Excel's own limit."""


def sheet_of(place: Location, wanted: str | None) -> tuple[str, list[str]]:
    """The sheet to read, by default the first, and the names of all sheets.

    Raises:
        DataError: the file is not a workbook, or has no such sheet.
    """
    with _opened(place) as book:
        names = [sheet.title for sheet in book.worksheets]
    if not names:
        raise DataError(f"{place.shown} has no sheet with cells.")
    if wanted is not None and wanted not in names:
        raise DataError(f"{place.shown} has no sheet {wanted!r}; its sheets are: {', '.join(names)}.")
    return wanted or names[0], names


def sheet_rows(place: Location, sheet: str) -> Iterator[tuple[int, list[Any]]]:
    """The non-blank rows of a sheet, with their numbers; trailing empty cells are left out.

    A percentage is read as displayed (`5%`, stored as 0.05), a day without a time as a date, a formula as its
    last result.
    """
    with _opened(place) as book:
        cells = book[sheet]
        cells.reset_dimensions()  # the file's stated size may be wrong
        # A workbook stores each text once, however many cells have it, and missing cells count too.
        left = max(FREE_BYTES, MAX_RATIO * place.size())
        try:
            for number, row in enumerate(cells.iter_rows(), start=1):
                values = [_value(cell) for cell in row]
                left -= sum(len(value) if isinstance(value, str) else 1 for value in values)
                if left < 0 or number > MAX_ROWS:
                    raise DataError(
                        f"{place.shown} has cells with more characters than the limit for a workbook of its "
                        f"size ({MAX_RATIO} times its bytes, at least {FREE_BYTES:,}), or more than "
                        f"{MAX_ROWS:,} rows: save it as CSV."
                    )
                while values and values[-1] in (None, ""):
                    values.pop()
                if values:
                    yield number, values
        except DataError:
            raise
        except Exception as error:  # openpyxl and its parsers raise anything
            raise _damaged(place, error) from None


@contextlib.contextmanager
def _opened(place: Location) -> Iterator[Any]:
    """A workbook, open while rows are read."""
    import openpyxl

    with place.open() as stream:
        try:
            _check_size(place, stream)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about features that reading does not need
                book = openpyxl.load_workbook(stream, read_only=True, data_only=True)
        except DataError:
            raise
        except Exception as error:
            raise _damaged(place, error) from None
        with contextlib.closing(book):
            yield book


def _check_size(place: Location, stream: Any) -> None:
    head = stream.read(8)
    stream.seek(0)
    if head.startswith(b"\xd0\xcf\x11\xe0"):
        raise DataError(
            f"{place.shown} is an old .xls workbook, or has a password: save it as .xlsx without one."
        )
    with zipfile.ZipFile(stream) as parts:
        size = sum(part.file_size for part in parts.infolist())
    stream.seek(0)
    if size > MAX_BYTES or size > max(FREE_BYTES, MAX_RATIO * place.size()):
        raise DataError(
            f"{place.shown} unpacks to {size / 2**20:,.0f} MiB, more than the limit for a workbook: "
            "save it as CSV."
        )


def _damaged(place: Location, error: Exception) -> DataError:
    why = str(error).strip().partition("\n")[0] or type(error).__name__
    return DataError(f"{place.shown} is not an Excel workbook, or it is damaged: {why.rstrip('.')}.")


def _value(cell: Any) -> Any:
    value = cell.value
    if isinstance(value, datetime) and value.time() == time(0):
        return value.date()
    if isinstance(value, int | float) and not isinstance(value, bool) and "%" in (cell.number_format or ""):
        return f"{value * 100:.12g}%"
    return value
