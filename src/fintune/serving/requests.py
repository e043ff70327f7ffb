"""Shared by all routes of the API: the model thread, disconnecting clients, the task a request names."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import Annotated, TypeVar

from fastapi import Depends, Request

from fintune.errors import FintuneError
from fintune.serving.errors import ApiError
from fintune.serving.queue import ModelThread
from fintune.tasks import Task

T = TypeVar("T")


async def model_thread(request: Request) -> ModelThread:
    # Not a plain function: FastAPI would run it in the thread pool, which routes such as feedback fill.
    return request.app.state.thread


Thread = Annotated[ModelThread, Depends(model_thread)]


async def attended(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled if the client disconnects."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(499, "The client disconnected.", code="client_closed_request")
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def task_of(thread: ModelThread, model: str, task: str) -> Task:
    """The model's task.

    Raises:
        ApiError: 404, no task has this name.
    """
    tasks = thread.models.tasks(model)
    if task not in tasks.names():
        known = ", ".join(tasks.names())
        raise ApiError(404, f"There is no such task: there are {known}.", code="task_not_found", param="task")
    return tasks[task]


def model_and_task(thread: ModelThread, asked: str) -> tuple[str, str]:
    """Resolve a chat's `model`: a model, `NAME:TASK`, or a task alone if only one model has tasks.

    Raises:
        ApiError: 404, there is no such model.
    """
    models = thread.models
    name, _, task = asked.partition(":")
    trained = list(models.folders()) or [models.default]
    if not task and len(trained) == 1 and name not in models.names():
        with contextlib.suppress(FintuneError):  # its folder may have been removed
            if name in models.tasks(trained[0]).names():
                return models.check(trained[0]), name
    return models.check(name), task


async def asked_of(thread: ModelThread, model: str | None, task: str) -> tuple[str, Task]:
    """The model's name and its task, looked up outside the event loop because folders may have to be read.

    Raises:
        ApiError: 404, there is no such model or task.
    """

    def found() -> tuple[str, Task]:
        name = thread.models.check(model)
        return name, task_of(thread, name, task)

    return found() if model in (None, thread.models.default) else await asyncio.to_thread(found)
