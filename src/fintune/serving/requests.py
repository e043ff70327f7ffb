"""What every route of the API uses: the model thread, the client that may go away, the task that is meant."""

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
    # Not a plain function: FastAPI would run it in the pool of threads that routes such as feedback fill.
    return request.app.state.thread


Thread = Annotated[ModelThread, Depends(model_thread)]


async def attended(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the client goes away."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(499, "The client went away.", code="client_closed_request")
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
        ApiError: 404, there is none of this name.
    """
    tasks = thread.models.tasks(model)
    if task not in tasks.names():
        known = ", ".join(tasks.names())
        raise ApiError(404, f"There is no such task: there are {known}.", code="task_not_found", param="task")
    return tasks[task]


def model_and_task(thread: ModelThread, asked: str) -> tuple[str, str]:
    """What a chat's `model` names: a model, `NAME:TASK`, or a task alone where one model alone has tasks.

    Raises:
        ApiError: 404, there is no such model.
    """
    models = thread.models
    name, _, task = asked.partition(":")
    trained = list(models.folders()) or [models.default]
    if not task and len(trained) == 1 and name not in models.names():
        with contextlib.suppress(FintuneError):  # its folder may be gone
            if name in models.tasks(trained[0]).names():
                return models.check(trained[0]), name
    return models.check(name), task


async def asked_of(thread: ModelThread, model: str | None, task: str) -> tuple[str, Task]:
    """The model's name and its task, looked up beside the event loop: folders may have to be read.

    Raises:
        ApiError: 404, there is no such model or task.
    """

    def found() -> tuple[str, Task]:
        name = thread.models.check(model)
        return name, task_of(thread, name, task)

    return found() if model in (None, thread.models.default) else await asyncio.to_thread(found)
