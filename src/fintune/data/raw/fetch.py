"""One address in, one file out: resumed where it was cut, tried again after growing pauses, in limited time.

Web addresses go through pooch, hub files through huggingface_hub; proxies are those of the environment.
Knows nothing of datasets and checksums.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

_RETRIED = (408, 429, 500, 502, 503, 504)
_CHUNK_BYTES = 2**14
_LONGEST_PAUSE = 30.0
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Limits:
    """How long and how often a server is asked."""

    connect_seconds: float = 5.0
    read_seconds: float = 30.0
    """Between two pieces of a file."""
    file_seconds: float = 1800.0
    """For a file, pauses included."""
    attempts: int = 5
    """In a row without a new byte."""
    pause_seconds: float = 1.0
    """Before the second attempt; doubled before each further one, less up to a half by chance."""


class FetchError(Exception):
    """Why an address did not give its file, in half a sentence."""


class OfflineError(FetchError):
    """There is no way to the server from here."""


def host_of(url: str) -> str:
    return urlsplit(url).netloc


def check_reachable(url: str, limits: Limits) -> None:
    """Ask the server of an address for anything at all, once, in at most twice `limits.connect_seconds`.

    Raises:
        OfflineError: it does not answer.
    """
    import requests

    def ask(stop: threading.Event) -> None:
        requests.head(url, timeout=limits.connect_seconds).close()

    try:
        # In a thread, because looking up a name may take longer than any limit given to it.
        within(2 * limits.connect_seconds, ask)
    except (requests.RequestException, TimeUpError) as error:
        raise OfflineError(f"{host_of(url)} does not answer ({_brief(error)})") from None


def fetch(url: str, part: Path, limits: Limits, *, resume: bool = True) -> None:
    """Fill `part` with the file at a web address; a file cut short is asked for from where it ends.

    Args:
        part: the partial file; it stays when this fails, so that another call goes on from there.
        resume: whether what stands there already is the beginning of this very file.

    Raises:
        FetchError: the file is not there, the server refuses it, or attempts or time are used up.
        OSError: `part` cannot be written.
    """
    import requests
    from urllib3.exceptions import HTTPError
    from urllib3.util import Retry

    if not resume:
        part.unlink(missing_ok=True)
    transfer = _Transfer(url, part, limits)
    deadline = time.monotonic() + limits.file_seconds
    failures = 0
    while True:
        before = _size(part)
        asked_to_wait = 0.0
        try:
            return within(deadline - time.monotonic(), transfer)
        except requests.HTTPError as error:
            response: Any = error.response
            status = response.status_code
            if status == 416 and before:  # it ends elsewhere than the server's: begin again
                part.unlink()
                why = "the partial file was no beginning of it"
            elif status not in _RETRIED:
                raise FetchError(_refusal(url, status)) from None
            else:
                header = response.headers.get("Retry-After")
                try:
                    asked_to_wait = Retry().parse_retry_after(header) if header else 0.0
                except Exception:  # neither seconds nor a date
                    asked_to_wait = 0.0
                why = f"it answered HTTP {status}"
        except (requests.RequestException, HTTPError) as error:
            why = _brief(error)
        except TimeUpError:
            raise FetchError(
                f"{url} took longer than {limits.file_seconds:g} seconds, so it was given up"
            ) from None
        failures = 1 if _size(part) > before else failures + 1
        if failures >= limits.attempts:
            raise FetchError(f"{url} failed {failures} times in a row; the last time {why}")
        pause = min(_LONGEST_PAUSE, limits.pause_seconds * 2 ** (failures - 1)) * random.uniform(0.5, 1)
        pause = max(pause, asked_to_wait)
        if time.monotonic() + pause > deadline:
            raise FetchError(
                f"{url} cannot be had within {limits.file_seconds:g} seconds: {why}"
                + (f" and asks to wait for {asked_to_wait:.0f} more" if asked_to_wait else "")
            )
        time.sleep(pause)


def fetch_hub(repository: str, revision: str, path: str, address: str, limits: Limits) -> Path:
    """A file of a dataset on the hub, in the hub client's own cache; cached files need no network.

    Raises:
        FetchError: as for `fetch`; OfflineError where there is no way to the hub.
        OSError: the cache cannot be written.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    def ask(stop: threading.Event) -> str:
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
        raise FetchError(
            f"{address} took longer than {limits.file_seconds:g} seconds, so it was given up"
        ) from None
    except Exception as error:
        cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
        if isinstance(cause, HfHubHTTPError):
            raise FetchError(_refusal(address, cause.response.status_code)) from None
        if isinstance(cause, OfflineModeIsEnabled):
            raise OfflineError("HF_HUB_OFFLINE is set") from None
        if isinstance(error, LocalEntryNotFoundError):
            raise OfflineError(f"{host_of(address)} does not answer ({_brief(cause or error)})") from None
        if getattr(error, "errno", None):  # the disk's fault, not the hub's
            raise
        raise FetchError(f"{address} failed: {_brief(error)}") from None


class _Transfer:
    """One request for what is still missing of a file."""

    def __init__(self, url: str, part: Path, limits: Limits) -> None:
        self.url, self.part, self.limits = url, part, limits
        self.etag = ""

    def __call__(self, stop: threading.Event) -> None:
        from pooch import HTTPDownloader

        start = _size(self.part)
        headers = {"Accept-Encoding": "identity"}  # so that a position in the file is one in what comes
        if start:
            headers["Range"] = f"bytes={start}-"
            if self.etag:
                headers["If-Range"] = self.etag
        with self.part.open("ab") as stream:

            def answered(response: Any, **_: Any) -> None:
                """Before the content: begin the file anew, where the server sends all of it."""
                if response.status_code == 200 and start:
                    stream.truncate(0)
                expected = f"bytes {start}-"
                if response.status_code == 206 and expected not in response.headers.get("Content-Range", ""):
                    raise FetchError(f"{self.url} sent another part of the file than was asked for")
                if response.ok and not response.is_redirect:
                    etag = response.headers.get("ETag", "")
                    self.etag = "" if etag.startswith("W/") else etag

            download = HTTPDownloader(
                progressbar=sys.stderr.isatty(),
                chunk_size=_CHUNK_BYTES,
                timeout=(self.limits.connect_seconds, self.limits.read_seconds),
                headers=headers,
                hooks={"response": answered},
            )
            download(self.url, _Stoppable(stream, stop), None)


class _Stoppable:
    """A file that takes nothing more once its time is up."""

    def __init__(self, stream: Any, stop: threading.Event) -> None:
        self.stream, self.stop = stream, stop

    def write(self, data: bytes) -> None:
        if self.stop.is_set():
            raise TimeUpError
        self.stream.write(data)

    def flush(self) -> None:
        self.stream.flush()


class TimeUpError(Exception):
    pass


def within(seconds: float, work: Callable[[threading.Event], _Result]) -> _Result:
    """What `work` returns or raises; after so many seconds `TimeUpError`, whatever it waits for."""
    stop = threading.Event()
    results: list[_Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work(stop))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(max(seconds, 0))
    if errors:
        raise errors[0]
    if results:
        return results[0]
    stop.set()
    raise TimeUpError("no answer in time")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _refusal(url: str, status: int) -> str:
    if status in (404, 410):
        return f"{url} is no longer there (HTTP {status})"
    if status in (401, 403, 451):
        return f"{url} may not be had from here (HTTP {status})"
    return f"{url} was not given (HTTP {status})"


def _brief(error: BaseException) -> str:
    """The root of a library's error, without the layers around it."""
    seen: BaseException = error
    while (inner := seen.__cause__ or seen.__context__ or _wrapped(seen)) is not None and inner is not seen:
        seen = inner
    if isinstance(seen, OSError) and seen.strerror:
        return seen.strerror
    text = str(seen).strip().splitlines()
    return f"{type(seen).__name__}{f': {text[0]}' if text else ''}"


def _wrapped(error: BaseException) -> BaseException | None:
    """urllib3 and requests put what went wrong into an attribute or argument."""
    for inner in (getattr(error, "reason", None), *error.args):
        if isinstance(inner, BaseException):
            return inner
    return None
