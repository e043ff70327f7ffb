"""Download one address to one file: resumes partial files, retries with growing pauses, limits time.

Web addresses go through requests, hub files through huggingface_hub; proxies come from the environment.
Knows no datasets or checksums.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

_RETRIED = (408, 429, 500, 502, 503, 504)
_CHUNK_BYTES = 2**16
_LONGEST_PAUSE = 30.0
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Limits:
    """How long and how often to try a server."""

    connect_seconds: float = 5.0
    read_seconds: float = 30.0
    """Between two pieces of a file."""
    file_seconds: float = 1800.0
    """For a file, pauses included."""
    attempts: int = 5
    """Failures in a row without a new byte."""
    pause_seconds: float = 1.0
    """Before the second attempt; doubled for each further one, minus a random part of up to a half."""


class FetchError(Exception):
    """Why an address did not give its file, as a clause."""


class OfflineError(FetchError):
    """The server cannot be reached from here."""


class TimeUpError(Exception):
    """Work exceeded its time limit."""


class _Interrupted(Exception):
    """Why an attempt ended early; another may succeed."""

    def __init__(self, why: str, wait: float = 0.0) -> None:
        super().__init__(why)
        self.wait = wait
        """Seconds that the server asks to wait."""


def host_of(url: str) -> str:
    return urlsplit(url).netloc


def unreachable(url: str, limits: Limits) -> str:
    """Why the server of an address does not answer at all; "" if it does.

    Tries once, and takes at most twice `limits.connect_seconds`.
    """
    import requests

    def ask() -> None:
        requests.head(url, timeout=limits.connect_seconds).close()

    try:
        # In a thread, because a name lookup may exceed any timeout given to it.
        within(2 * limits.connect_seconds, ask)
    except (requests.RequestException, TimeUpError) as error:
        return f"{host_of(url)} does not answer ({brief(error)})"
    return ""


def fetch(url: str, part: Path, limits: Limits, *, resume: bool = True) -> None:
    """Download a web address into `part`; a partial file is resumed at its end.

    Args:
        part: the partial file; it is kept on failure, so that another call can resume.
        resume: whether existing content is the beginning of this file.

    Raises:
        FetchError: the file is missing, the server refuses it, or attempts or time are used up.
        OSError: `part` cannot be written.
    """
    if not resume:
        part.unlink(missing_ok=True)
    deadline = time.monotonic() + limits.file_seconds
    failures = 0
    while True:
        before = _size(part)
        try:
            return _ask_for_rest(url, part, limits, deadline)
        except _Interrupted as error:
            why, wait = str(error), error.wait
        failures = 1 if _size(part) > before else failures + 1
        if failures >= limits.attempts:
            raise FetchError(f"{url} failed {failures} times in a row; the last time {why}")
        pause = min(_LONGEST_PAUSE, limits.pause_seconds * 2 ** (failures - 1)) * random.uniform(0.5, 1)
        if time.monotonic() + max(pause, wait) > deadline:
            more = f" and asks to wait for {wait:.0f} more" if wait else ""
            raise FetchError(
                f"{url} cannot be downloaded within {limits.file_seconds:g} seconds: {why}{more}"
            )
        time.sleep(max(pause, wait))


def _ask_for_rest(url: str, part: Path, limits: Limits, deadline: float) -> None:
    """One request for the rest of `part`; raises `_Interrupted` if another may succeed."""
    import requests
    from tqdm import tqdm
    from urllib3.exceptions import HTTPError

    start = _size(part)
    # Uncompressed, so that positions in the file and in the response agree.
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={start}-"} if start else {})}
    times = (limits.connect_seconds, limits.read_seconds)
    try:
        with requests.get(url, headers=headers, timeout=times, stream=True) as response:
            status = response.status_code
            if status == 416 and start:  # the partial file is longer than the server's: start over
                part.unlink()
                raise _Interrupted("the partial file was not its beginning")
            if status in _RETRIED:
                raise _Interrupted(
                    f"it answered HTTP {status}", wait_asked(response.headers.get("Retry-After"))
                )
            if not response.ok:
                raise FetchError(_refusal(url, status))
            mode = "ab" if status == 206 else "wb"  # some servers ignore the range and send everything
            with part.open(mode) as stream, tqdm(unit="B", unit_scale=True, disable=None) as bar:
                # Read pieces as they arrive: waiting for a full one lets a slow server exceed every limit.
                while piece := response.raw.read1(_CHUNK_BYTES):
                    if time.monotonic() > deadline:
                        raise FetchError(_too_long(url, limits))
                    stream.write(piece)
                    bar.update(len(piece))
    except (requests.RequestException, HTTPError) as error:
        raise _Interrupted(brief(error)) from None


def fetch_hub(repository: str, revision: str, path: str, address: str, limits: Limits) -> Path:
    """A file of a dataset on the hub, in the hub client's own cache; cached files need no network.

    Raises:
        FetchError: as in `fetch`; OfflineError if the hub cannot be reached.
        OSError: the cache cannot be written.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    def ask() -> str:
        return hf_hub_download(
            repository,
            path,
            repo_type="dataset",
            revision=revision,
            endpoint=os.environ.get("HF_ENDPOINT"),
            etag_timeout=limits.connect_seconds,
            token=False,  # public files need no credentials
        )

    try:
        return Path(within(limits.file_seconds, ask))
    except TimeUpError:
        raise FetchError(_too_long(address, limits)) from None
    except Exception as error:
        cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
        if isinstance(cause, HfHubHTTPError):
            raise FetchError(_refusal(address, cause.response.status_code)) from None
        if isinstance(cause, OfflineModeIsEnabled):
            raise OfflineError("HF_HUB_OFFLINE is set") from None
        if isinstance(error, LocalEntryNotFoundError):
            raise OfflineError(f"{host_of(address)} does not answer ({brief(cause or error)})") from None
        if getattr(error, "errno", None):  # an error of the disk, not of the hub
            raise
        raise FetchError(f"{address} failed: {brief(error)}") from None


def within(seconds: float, work: Callable[[], _Result]) -> _Result:
    """Return or raise what `work` does, or raise `TimeUpError` after this many seconds."""
    results: list[_Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeUpError("no answer in time")
    return results[0]


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def wait_asked(header: str | None) -> float:
    """The seconds in a Retry-After header; 0 if there is none, or it is neither a number nor a date."""
    text = (header or "").strip()
    if text.isdecimal():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _too_long(url: str, limits: Limits) -> str:
    return f"{url} took longer than {limits.file_seconds:g} seconds, so the download was stopped"


def _refusal(url: str, status: int) -> str:
    if status in (404, 410):
        return f"{url} is no longer there (HTTP {status})"
    if status in (401, 403, 451):
        return f"{url} refuses access from here (HTTP {status})"
    return f"{url} was refused (HTTP {status})"


def brief(error: BaseException) -> str:
    """The root cause of a library's error, without the layers around it."""
    layers = [error]
    for seen in layers:  # urllib3 and requests keep the cause in an attribute or argument
        inner = (seen.__cause__, seen.__context__, getattr(seen, "reason", None), *seen.args)
        layers += [part for part in inner if isinstance(part, BaseException) and part not in layers][:1]
    root = layers[-1]
    if isinstance(root, OSError) and root.strerror:
        return root.strerror
    return ": ".join([type(root).__name__, *str(root).strip().splitlines()[:1]])
