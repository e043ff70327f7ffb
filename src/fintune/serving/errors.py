"""Errors of requests, in the shape that OpenAI's clients read."""

from __future__ import annotations

import logging
import math
from typing import Any

from fintune.errors import ConfigError, FintuneError, ModelError

log = logging.getLogger("fintune.serving")


class ApiError(Exception):
    """An error response; its message is one sentence for the caller."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.code = code
        self.param = param
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        error = {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}


def for_caller(error: ApiError | FintuneError) -> ApiError:
    """The error that a caller sees. Messages that may name folders and blame no request are only logged."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ModelError | ConfigError):
        log.error("a model could not be used: %s", error)
        message = "This model cannot be used: see the server's log."
        return ApiError(500, message, "server_error", "model_error", "model")
    return ApiError(400, str(error))


def later(status: int, message: str, kind: str, code: str, seconds: float) -> ApiError:
    """An error that says to try again in `seconds`; `message` ends before that."""
    wait = max(1, math.ceil(seconds))
    return ApiError(
        status, f"{message} try again in {wait} s.", kind, code, headers={"Retry-After": str(wait)}
    )


def overloaded(seconds: float) -> ApiError:
    """The queue is full; there may be room in `seconds`."""
    return later(503, "The server's queue is full:", "server_error", "overloaded", seconds)


def crowded(share: int, room: int, seconds: float) -> ApiError:
    """The caller exceeds its share of the queue while others wait."""
    message = (
        f"Your share of the queue is {share:,} of its {room:,} records, while others wait too: send fewer at "
        "once, or"
    )
    return later(429, message, "rate_limit_error", "share_exceeded", seconds)


def timed_out(seconds: float) -> ApiError:
    return ApiError(
        504, f"There was no answer within {seconds:g} s: send less at once.", "server_error", "timeout"
    )


def stopping() -> ApiError:
    return later(503, "The server is stopping:", "server_error", "stopping", 5)


def lost() -> ApiError:
    message = "The model has stopped working, and the server is restarting:"
    return later(503, message, "server_error", "model_lost", 30)
