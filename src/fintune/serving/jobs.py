"""Jobs for the model thread: a caller's request, its records, and its result."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fintune.errors import FintuneError
from fintune.inference.engine import Engine
from fintune.monitoring import tracing
from fintune.serving.errors import ApiError
from fintune.serving.shares import CALLER, Caller
from fintune.tasks import Prediction, Record

if TYPE_CHECKING:
    from fintune.inference.decoding import Allowed

log = logging.getLogger("fintune.serving")
Answer = Prediction | str
"""A prediction, or the sentence that says why there is none."""


class Failed(str):
    """Why there is no answer, if that is the server's fault."""


FAILED = Failed("The model failed on this text: see the server's log.")


@dataclass(eq=False)
class Job:
    """One request to the model thread. Jobs of equal `key` are computed together."""

    key: tuple[str, ...]
    costs: list[int]
    """Tokens of each of its records; [] if it has no records."""
    work: Any
    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[Any]
    deadline: float
    caller: Caller = field(default_factory=CALLER.get)
    arrived: float = field(default_factory=time.monotonic)
    started: float = 0.0
    label: str = ""
    """For a text: the task name under which the metrics count its tokens."""
    trace: Any = field(default_factory=tracing.here)
    dropped: bool = False
    taken: int = 0
    """Number of its records that the model has been given."""
    said: Callable[[], Sequence[str]] = tuple
    """Its texts, which the log must not show."""

    @property
    def owner(self) -> str:
        return self.caller.name

    @property
    def size(self) -> int:
        """Number of records that still wait."""
        return len(self.costs) - self.taken

    @property
    def begun(self) -> bool:
        return self.taken > 0

    def send(self, event: Any) -> None:
        try:
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)
        except RuntimeError:  # the loop is closed: nobody waits any more
            self.dropped = True

    def given_up(self) -> bool:
        return self.dropped or time.monotonic() > self.deadline


@dataclass
class Ask:
    """Some records for a task."""

    records: list[Record]
    engine: Engine
    """The engine that made the prompts."""
    prompts: list[list[int] | str]
    allowed: list[Allowed] | None = None
    """One per record, if the task has a format."""
    answers: list[Answered | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.answers = [None] * len(self.records)


Piece = tuple[Job, int]
"""A job and the index of one of its records."""


@dataclass(frozen=True)
class Answered:
    """An answer and its costs."""

    answer: Answer
    queue_seconds: float
    """Seconds from the request's arrival to the start of its batch."""
    prompt_tokens: int | None = None
    """None if there is no answer."""
    cached_tokens: int = 0
    """Prompt tokens that were not computed again."""
    completion_tokens: int = 0


@dataclass(frozen=True)
class Done:
    """The end of a text: why it ended, its tokens and, once stored, the id of its prediction."""

    finish: str
    prompt_tokens: int
    completion_tokens: int
    queue_seconds: float = 0.0
    cached_tokens: int = 0
    prediction: Prediction | None = None
    """The prediction of a task that scores its answers."""
    prediction_id: str | None = None


def fail(jobs: list[Job], error: BaseException) -> None:
    """Tell every caller; log errors that are not the callers' fault, and keep their details private."""
    if not isinstance(error, ApiError | FintuneError):
        log_failure(error, jobs)
        error = server_error()
    for job in jobs:
        job.send(error)
        job.dropped = True


def server_error() -> ApiError:
    return ApiError(500, "The model failed: see the server's log.", "server_error", "internal_error")


def log_failure(error: BaseException, jobs: Sequence[Job] = ()) -> None:
    """Log where and why the model failed; omit a message that repeats eight characters of a text."""
    message = str(error)[:500]
    runs = [message[i : i + 8] for i in range(max(1, len(message) - 7))]
    if message and any(run in text for job in jobs for text in job.said() for run in runs):
        message = "(message omitted: it contains the text)"
    where = "".join(traceback.format_tb(error.__traceback__))
    log.error("the model failed: %s: %s\n%s", type(error).__name__, message, where)
