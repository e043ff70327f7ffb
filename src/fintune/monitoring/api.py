"""The monitoring routes of the API: `POST /v1/feedback` and `GET /v1/monitoring/drift`.

The service mounts the router behind its own keys and limits; there is no authentication here. Errors have
OpenAI's shape.
"""

from __future__ import annotations

import logging
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, model_validator
from sqlalchemy.exc import SQLAlchemyError

from fintune.errors import DataError
from fintune.monitoring.database import PATIENCE, Patience, SilentError, reason
from fintune.monitoring.drift import WINDOW, Window, compare
from fintune.monitoring.metrics import METRICS, Metrics
from fintune.monitoring.profile import Profile
from fintune.monitoring.store import Kept, Store
from fintune.monitoring.verdicts import as_answer
from fintune.monitoring.writer import Writer

log = logging.getLogger("fintune.monitoring")
MAX_TARGET = 20_000
"""The most characters of a right answer."""


class Feedback(BaseModel):
    """A person's verdict on an answer: whether it was right, or the right answer."""

    model_config = ConfigDict(
        extra="forbid",
        allow_inf_nan=False,
        json_schema_extra={
            "examples": [
                {"prediction_id": "6f1c9d5e-3a1b-4c5e-9a50-0d5c8f3f2a11", "target": "negative"},
                {"prediction_id": "6f1c9d5e-3a1b-4c5e-9a50-0d5c8f3f2a11", "correct": True},
            ]
        },
    )

    prediction_id: str = Field(min_length=1, max_length=36, description="The id that came with the answer.")
    correct: bool | None = Field(None, strict=True, description="Whether the answer was right.")
    target: str | Annotated[float, Field(strict=True)] | None = Field(
        None, description="The right answer: a label, a text or a number."
    )

    @model_validator(mode="after")
    def _says_something(self) -> Feedback:
        if self.correct is None and self.target is None:
            raise ValueError("give correct (true or false), or target, the right answer")
        if (
            isinstance(self.target, str)
            and not 0 < len(self.target.strip()) <= len(self.target) <= MAX_TARGET
        ):
            raise ValueError(f"target must have 1 to {MAX_TARGET} characters")
        return self


def _refused(status: int, message: str, param: str | None, code: str) -> JSONResponse:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error = {"message": message, "type": kind, "param": param, "code": code}
    return JSONResponse({"error": error}, status_code=status)


def _down(error: Exception) -> JSONResponse:
    log.error("FINTUNE_STORE fails: %s", reason(error))
    return _refused(503, "The prediction store is not available: try again later.", None, "store_unavailable")


def _unfit(target: str | float | None, kept: Kept) -> str | None:
    """Why a right answer is invalid. The stored answer decides, because other models have other labels."""
    if target is None:
        return None
    try:
        fitted = as_answer(target, kept.value)
    except DataError as error:
        return str(error)
    if kept.labels and fitted not in kept.labels:
        return f"target must be one of {', '.join(kept.labels)} for task {kept.task}."
    return None


def router(
    store: Store | None,
    reference: Profile | None,
    *,
    model: str | None = None,
    window: Window | None = None,
    writer: Writer | None = None,
    metrics: Metrics = METRICS,
) -> APIRouter:
    """The routes over a store and a reference profile. Either may be None; then its route says so.

    Args:
        model: the model of the reference; other models' answers are not compared with it. None: there are no
            others.
        window: this process's newest answers; without it, drift reads the newest from the store, which all
            replicas share.
        writer: this process's queue of answers for the store; feedback must wait for it.
        metrics: receives the drift gauges and the feedback counts.
    """
    routes = APIRouter(prefix="/v1", tags=["monitoring"])
    patiently, slowly = Patience(), Patience(5 * PATIENCE)

    @routes.post("/feedback", summary="Say whether an answer was right", status_code=201, response_model=None)
    def feedback(body: Feedback, request: Request) -> dict[str, Any] | JSONResponse:
        if store is None:
            return _refused(
                404, "This service keeps no predictions, so it takes no feedback.", None, "no_store"
            )
        try:
            if writer and not writer.flush(PATIENCE):
                raise SilentError("earlier answers are still waiting to be stored")
            return patiently(lambda: _take(store, body, request))
        except (SQLAlchemyError, SilentError) as error:
            return _down(error)

    def _take(store: Store, body: Feedback, request: Request) -> dict[str, Any] | JSONResponse:
        kept = store.find(body.prediction_id)
        if kept is None:
            message = (
                f"There is no prediction {body.prediction_id!r}: predictions are stored only with consent "
                "switched on, and until they are deleted."
            )
            return _refused(404, message, "prediction_id", "prediction_not_found")
        if (problem := _unfit(body.target, kept)) is not None:
            return _refused(422, problem, "target", "invalid_target")
        key = getattr(getattr(request.state, "key", None), "id", None)  # set by the service's gate
        try:
            store.add_feedback(body.prediction_id, correct=body.correct, target=body.target, key_id=key)
        except DataError as error:  # deleted since
            return _refused(404, str(error), "prediction_id", "prediction_not_found")
        verdict = {True: "right", False: "wrong", None: "target"}[body.correct]
        metrics.feedback.labels(kept.task, verdict).inc()
        return {"object": "feedback", "prediction_id": body.prediction_id, "task": kept.task}

    @routes.get("/monitoring/drift", summary="Live answers against the reference", response_model=None)
    def drift() -> dict[str, Any] | JSONResponse:
        if reference is None:
            message = "This adapter has no reference profile: make one with  fintune monitor profile"
            return _refused(404, message, None, "no_reference")
        try:
            if window is not None:
                observed = window.tasks()
            elif store is not None:
                observed = slowly(lambda: store.observations(WINDOW, model))
            else:
                return _refused(404, "This service stores no answers to compare.", None, "no_store")
            scores = slowly(lambda: store.live_scores(model)) if store is not None else {}
        except (SQLAlchemyError, SilentError) as error:
            return _down(error)
        report = compare(reference, observed)
        report["live_scores"] = scores
        metrics.show_drift(report)
        metrics.show_accuracy(scores)
        return {"object": "monitoring.drift", **report}

    return routes
