"""Download filings from SEC's EDGAR through edgartools, which respects SEC's rate limit and has a cache.

SEC asks downloaders for name and address. The cache is edgartools' own (`EDGAR_LOCAL_DATA_DIR`, else
~/.edgar); `EDGAR_BASE_URL` and `EDGAR_DATA_URL` name a mirror.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fintune.data.raw.fetch import brief
from fintune.errors import ConfigError, DataError, FintuneError, MissingExtraError
from fintune.files import atomic_write

FOLDER = "data/filings"
MAX_COUNT = 100
_IDENTITY = re.compile(r"\S.*\s<?[^\s@<>]+@[^\s@<>]+\.[^\s@<>]+>?")
_TICKER = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,14}")
_FORM = re.compile(r"[A-Za-z0-9][A-Za-z0-9 /-]{0,19}")
_TEXTUAL = (".htm", ".html", ".txt")


def fetch_filings(
    ticker: str, form: str = "10-K", count: int = 1, identity: str | None = None, folder: str | Path = FOLDER
) -> Iterator[Path]:
    """Save a company's newest filings, each with its text exhibits, and yield each file's path.

    Args:
        ticker: a ticker or a CIK number.
        identity: "Name email", as SEC asks for; None is EDGAR_IDENTITY.

    Raises:
        ConfigError: there is no identity, or an argument is invalid.
        MissingExtraError: edgartools is not installed.
        DataError: EDGAR has no such company or filing, or cannot be reached.
    """
    identity = (identity or os.environ.get("EDGAR_IDENTITY", "")).strip()
    if not _IDENTITY.fullmatch(identity):
        raise ConfigError(
            f"SEC asks who downloads, and {f'«{identity}» has' if identity else 'there is'} no name and "
            'e-mail address: give --identity "Your Name you@example.com", or set EDGAR_IDENTITY.'
        )
    for value, pattern, name in ((ticker, _TICKER, "a ticker or CIK"), (form, _FORM, "a form such as 10-K")):
        if not pattern.fullmatch(value):
            raise ConfigError(f"«{value}» is not {name}.")
    if not 1 <= count <= MAX_COUNT:
        raise ConfigError(f"--count must be from 1 to {MAX_COUNT}, got {count}.")
    try:
        import edgar
    except ImportError:
        raise MissingExtraError("Filings from EDGAR", "filings") from None
    edgar.set_identity(identity)
    try:
        company = edgar.Company(int(ticker) if ticker.isdigit() else ticker)
        # Filings older than the newest thousand or so are in further files of EDGAR's index.
        filings = company.get_filings(form=form.upper(), trigger_full_load=count > 10)
        newest = list(filings.head(count)) if len(filings) else []
        if not newest:
            raise DataError(f"EDGAR has no {form} of {ticker}: name another form, such as 10-Q or 8-K.")
        for filing in newest:
            yield from _save(filing, f"{ticker.upper()}-{form.upper()}-{filing.filing_date}", Path(folder))
    except FintuneError:
        raise
    except Exception as error:  # edgartools, httpx and pandas each have their own errors
        if "NotFound" in type(error).__name__:
            raise DataError(f"EDGAR knows no company {ticker}: give its ticker or its CIK number.") from None
        raise DataError(
            f"{form} of {ticker} cannot be downloaded from EDGAR ({type(error).__name__}: {brief(error)}): "
            "try again later."
        ) from None


def _save(filing: Any, stem: str, folder: Path) -> Iterator[Path]:
    """The filing's main document and its text exhibits, named by company, form, date and kind."""
    for attachment in filing.attachments.documents:
        kind, ending = str(attachment.document_type), Path(str(attachment.document)).suffix.lower()
        main = kind.upper() == str(filing.form).upper()
        if ending not in _TEXTUAL or not (main or kind.upper().startswith("EX-")):
            continue
        name = re.sub(r"[^A-Za-z0-9.-]+", "-", stem if main else f"{stem}-{kind}")
        content = attachment.content
        path = folder / f"{name}{ending}"
        yield atomic_write(path, content if isinstance(content, bytes) else str(content))
