"""Records every answer, whichever route gave it: metrics, drift and, with consent, the store."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import replace

from fintune.monitoring.metrics import METRICS, Outcome
from fintune.monitoring.recorder import Recorder
from fintune.serving.errors import ApiError
from fintune.serving.jobs import Answered, Done, Failed
from fintune.tasks import Record, Task

PLAIN = "text"
"""The metrics' task for chats and completions without one."""
_OUTCOMES: dict[str | None, Outcome] = {
    "overloaded": "overloaded",
    "share_exceeded": "overloaded",
    "rate_limit_exceeded": "overloaded",
    "stopping": "unavailable",
    "model_lost": "unavailable",
    "timeout": "timeout",
    "client_closed_request": "cancelled",
    "cannot_answer": "invalid",
    "context_length_exceeded": "invalid",
}


def refusal(task: str, error: ApiError, seconds: float) -> None:
    """Count a request without an answer, `seconds` after it arrived."""
    METRICS.observe_request(task, seconds, _OUTCOMES.get(error.code, "error"))


def answers(
    recorder: Recorder, model: str, task: str, records: list[Record], found: list[Answered], seconds: float
) -> list[str | None]:
    """Record the answers to some records; return their ids in the store, None if not stored.

    Words are counted for drift, which takes a while with many records: call it from a worker thread.
    """
    ids: list[str | None] = []
    for record, each in zip(records, found, strict=True):
        if isinstance(each.answer, str):
            METRICS.observe_request(task, seconds, "error" if isinstance(each.answer, Failed) else "invalid")
            ids.append(None)
            continue
        METRICS.observe_request(
            task,
            seconds,
            prediction=each.answer,
            input_tokens=each.prompt_tokens,
            cached_tokens=each.cached_tokens,
            completion_tokens=each.completion_tokens,
            queue_seconds=each.queue_seconds,
        )
        ids.append(recorder.record(task, record.text, each.answer, question=record.question, model=model))
    return ids


async def text(
    pieces: AsyncIterator[str | Done],
    recorder: Recorder,
    model: str,
    task: Task | None = None,
    record: Record | None = None,
) -> AsyncIterator[str | Done]:
    """Pass on the pieces of a text as they come; at the end record the whole, and put its id into `Done`.

    Args:
        task: the task that `record` is for; None is a plain chat, which is counted but not stored.
    """
    name, begun, whole = task.name if task else PLAIN, time.perf_counter(), ""
    outcome: Outcome = "cancelled"  # unless it ends normally below
    try:
        async with contextlib.aclosing(pieces):  # type: ignore[type-var]
            async for piece in pieces:
                if not isinstance(piece, Done):
                    whole += piece
                    yield piece
                    continue
                outcome = "timeout" if piece.finish == "cancelled" else "ok"
                prediction = piece.prediction or (task.parse(whole) if task else None)
                if outcome == "ok":
                    scored = piece.prediction is not None  # the model thread counts what it writes
                    METRICS.observe_request(
                        name,
                        time.perf_counter() - begun,
                        prediction=prediction,
                        input_tokens=piece.prompt_tokens if scored else None,
                        cached_tokens=piece.cached_tokens,
                        queue_seconds=piece.queue_seconds,
                    )
                    if task and record and prediction:
                        kept = recorder.record(
                            task.name, record.text, prediction, question=record.question, model=model
                        )
                        piece = replace(piece, prediction_id=kept)
                yield piece
                return
    except ApiError as error:
        outcome = _OUTCOMES.get(error.code, "error")
        raise
    except Exception:
        outcome = "error"
        raise
    finally:
        if outcome != "ok":
            METRICS.observe_request(name, time.perf_counter() - begun, outcome)
