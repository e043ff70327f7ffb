"""The HTTP API: tasks, models, adapters, health, metrics and documentation. `openai_routes` has the rest."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import swagger_ui_bundle
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import JSONResponse, RedirectResponse, Response
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from fintune import __version__
from fintune.data.documents.reading import parse_document
from fintune.errors import FintuneError
from fintune.inference import documents
from fintune.inference.grounding import bullet_sources
from fintune.monitoring import tracing
from fintune.monitoring.metrics import CONTENT_TYPE, METRICS
from fintune.serving import notes
from fintune.serving.errors import ApiError, for_caller, lost, stopping
from fintune.serving.gate import Gate
from fintune.serving.jobs import Answer, Answered
from fintune.serving.keys import KeyRing
from fintune.serving.queue import ModelThread
from fintune.serving.requests import Thread, asked_of, attended, model_and_task, task_of
from fintune.serving.schemas import (
    AdapterInfo,
    AdapterList,
    BulletAnswer,
    DocumentRequest,
    DocumentResponse,
    ErrorResponse,
    Health,
    ModelInfo,
    ModelList,
    TaskAnswer,
    TaskInfo,
    TaskList,
    TaskRequest,
    TaskResponse,
)
from fintune.serving.settings import Settings
from fintune.tasks import Record, Task
from fintune.text.encoding import HALF
from fintune.text.numbers import supported_numbers
from fintune.text.sentences import bullet_lines

router = APIRouter()

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": text}
    for status, text in {
        400: "The request cannot be answered; the message says why.",
        401: "No valid API key.",
        404: "No such task or model.",
        408: "The request did not arrive in time.",
        413: "The request is too large.",
        415: "The request is not declared as JSON.",
        429: "The caller is over a rate limit or its share of the queue; see Retry-After.",
        503: "The queue is full; see Retry-After.",
        504: "There was no answer in time.",
    }.items()
}


def build(settings: Settings, thread: ModelThread, keys: KeyRing | None) -> FastAPI:
    """The application. `keys`: None requires no key."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(thread.stop)
        await asyncio.to_thread(recorder.close)
        await asyncio.to_thread(tracing.flush)  # uvicorn ends the process by re-raising its signal

    from fintune.monitoring.api import router as monitoring
    from fintune.monitoring.recorder import Recorder
    from fintune.serving.openai_routes import router as openai

    app = FastAPI(
        title="fintune",
        version=__version__,
        description="Finance tasks on one language model, and OpenAI's chat and completions API on the same.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=ERRORS,
        dependencies=[Depends(HTTPBearer(auto_error=False, description="A key from  fintune keys create"))],
    )
    app.state.thread, app.state.settings = thread, settings
    app.state.documents = asyncio.Semaphore(1)
    app.include_router(router)
    app.include_router(openai)
    default = thread.models.default
    recorder = Recorder.from_environment(settings.model_path, model=default)
    app.state.recorder = recorder
    app.include_router(
        monitoring(
            recorder.store,
            recorder.reference,
            model=default,
            window=recorder.window,
            writer=recorder.writer,
        )
    )
    _add_docs(app)
    _add_handlers(app)
    app.add_middleware(Gate, settings=settings, keys=keys)
    if settings.cors:  # outermost, so that a page can read the gate's errors too
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["Retry-After", "X-Request-ID"],
        )
    return app


# Tasks ----------------------------------------------------------------------------------------------


@router.post("/v1/tasks/{task}", response_model=TaskResponse, tags=["tasks"])
async def run_task(task: str, body: TaskRequest, request: Request, thread: Thread) -> Any:
    """Answer one text, or several. In a list, an input without an answer has an `error` in its place."""
    limit = thread.settings.max_items
    if (body.text is None) == (body.inputs is None) or (body.inputs and body.question is not None):
        raise ApiError(400, "Send either text (and question), or inputs as a list of them.", param="text")
    if body.inputs and len(body.inputs) > limit:
        count = len(body.inputs)
        raise ApiError(400, f"inputs has {count} texts; at most {limit} are allowed.", param="inputs")
    model, chosen = await asked_of(thread, body.model, task)
    given = [(each.text, each.question) for each in body.inputs or []] or [(body.text or "", body.question)]
    records = [Record(text=text, question=question) for text, question in given]
    facts = request.state.facts
    facts.update(model=model, task=task, items=len(records))
    if thread.settings.log_text:
        facts["texts"] = [record.text for record in records]
    answers, ids = await _noted(
        request, model, task, records, thread.predict(model, task, records, body.truncate)
    )
    if body.inputs is None and isinstance(answers[0], str):
        raise ApiError(400, answers[0], code="cannot_answer")
    long = chosen.grounded == "bullets"
    data = (
        await asyncio.to_thread(_shown, chosen, records, answers)
        if long
        else _shown(chosen, records, answers)
    )
    for item, name in zip(data, ids, strict=True):
        item.prediction_id = name
    result = TaskResponse(model=model, task=task, data=data)
    return JSONResponse(result.model_dump(exclude_none=True))


async def _noted(
    request: Request, model: str, task: str, records: list[Record], work: Awaitable[list[Answered]]
) -> tuple[list[Answer], list[str | None]]:
    """Answer records, count and store the answers; return these with their ids in the store."""
    begun = time.perf_counter()
    try:
        found = await attended(request, work)
    except ApiError as error:
        notes.refusal(task, error, time.perf_counter() - begun)
        raise
    taken = time.perf_counter() - begun
    request.state.facts["queue_seconds"] = round(found[0].queue_seconds, 4)
    ids = await asyncio.to_thread(
        notes.answers, request.app.state.recorder, model, task, records, found, taken
    )
    return [each.answer for each in found], ids


@router.post("/v1/tasks/{task}/document", response_model=DocumentResponse, tags=["tasks"])
async def run_document(task: str, body: DocumentRequest, request: Request, thread: Thread) -> Any:
    """Answer from a document: a question from the relevant passages, a summary from all passages."""
    model, chosen = await asked_of(thread, body.model, task)
    request.state.facts.update(model=model, task=task, items=1)

    def asked() -> documents.Question:
        document = parse_document(body.content, body.name, thread.settings.max_document)
        return documents.ask(chosen, [document], body.question)

    async def reading() -> documents.Reading | documents.DocumentAnswer:
        async with request.app.state.documents:  # one at a time, in parallel with the model thread
            question = await asyncio.to_thread(asked)
        return await thread.apart(model, lambda engine: documents.read(engine, chosen, question))

    given = await attended(request, reading())
    prediction_id = None
    if isinstance(given, documents.Reading):
        records = [given.record]
        work = thread.predict(model, task, records, truncate=True)
        (answer,), (prediction_id,) = await _noted(request, model, task, records, work)
        if isinstance(answer, str):
            raise ApiError(400, answer, code="cannot_answer")
        given = documents.cited(chosen, given, answer)
    result = DocumentResponse(model=model, prediction_id=prediction_id, **given.to_dict(task))
    return JSONResponse(result.model_dump(exclude_none=True))


def _shown(task: Task, records: list[Record], answers: list[Answer]) -> list[TaskAnswer]:
    """Answers as in `fintune predict`, with a number's unit and the sources of a summary's bullets."""
    from fintune.inference.answers import as_dict

    shown = []
    for i, (record, answer) in enumerate(zip(records, answers, strict=True)):
        if isinstance(answer, str):
            shown.append(TaskAnswer(index=i, error=answer))
            continue
        item = TaskAnswer(index=i, **as_dict(task.name, answer))
        item.unit = getattr(task, "unit", None) or None
        if task.grounded == "bullets":
            item.bullets = bullets(str(answer.value), record.text)
        shown.append(item)
    return shown


def bullets(summary: str, text: str) -> list[BulletAnswer]:
    """Each line of a summary with its numbers, how many of them `text` states, and its source sentences."""
    lines = bullet_lines(summary)
    shown = []
    for line, spans in zip(lines, bullet_sources(text, lines), strict=True):
        supported, numbers = supported_numbers(line, text)
        found = [text[start:end] for start, end in spans]
        shown.append(BulletAnswer(text=line, numbers=numbers, supported=supported, sources=found))
    return shown


@router.get("/v1/tasks", response_model=TaskList, response_model_exclude_none=True, tags=["tasks"])
async def list_tasks(thread: Thread, model: str | None = None) -> Any:
    """The tasks that a model answers."""
    name = await asyncio.to_thread(thread.models.check, model)
    tasks = await asyncio.to_thread(thread.models.tasks, name)
    infos = [
        TaskInfo(
            id=task.name,
            type=task.type,
            instruction=task.instruction,
            labels=list(task.labels) or None,
            unit=getattr(task, "unit", None) or None,
            needs_question="question" in task.inputs,
        )
        for task in tasks
    ]
    return TaskList(model=name, data=infos)


# Models and adapters --------------------------------------------------------------------------------


def _model_ids(thread: ModelThread) -> list[str]:
    names = thread.models.names()
    names.sort(key=lambda name: name != thread.models.default)
    found = []
    for name in names:
        with contextlib.suppress(FintuneError):  # it was removed meanwhile
            found += [name, *(f"{name}:{task.name}" for task in thread.models.tasks(name))]
    return found


@router.get("/v1/models", response_model=ModelList, tags=["models"])
async def list_models(thread: Thread) -> Any:
    """The base, the adapters, and each with a task (`NAME:TASK`, for chats). The default model is first."""
    names = await asyncio.to_thread(_model_ids, thread)
    return ModelList(data=[ModelInfo(id=name) for name in names])


@router.get("/v1/models/{model}", response_model=ModelInfo, tags=["models"])
async def show_model(model: str, thread: Thread) -> Any:
    """One of them."""
    name, task = await asyncio.to_thread(model_and_task, thread, model)
    if task:
        await asyncio.to_thread(task_of, thread, name, task)
    return ModelInfo(id=model)


@router.get("/v1/adapters", response_model=AdapterList, tags=["models"])
async def list_adapters(thread: Thread) -> Any:
    """The adapters on disk, and which of them are in memory."""
    loaded = thread.models.loaded()
    names = sorted(await asyncio.to_thread(thread.models.folders))
    return AdapterList(data=[AdapterInfo(id=name, loaded=name in loaded) for name in names])


async def _manager(request: Request) -> None:
    key = request.state.key
    if key is not None and not key.admin:
        raise ApiError(
            403,
            "This key may not manage adapters: use one created with --admin.",
            "permission_error",
            "not_admin",
        )


_MANAGING: dict[str, Any] = {
    "response_model": AdapterInfo,
    "tags": ["models"],
    "responses": {403: {"model": ErrorResponse, "description": "No admin key."}},
    "dependencies": [Depends(_manager)],
}


@router.post("/v1/adapters/{adapter}", **_MANAGING)
async def load_adapter(adapter: str, thread: Thread) -> Any:
    """Load an adapter now, before the first request that names it."""
    name = await asyncio.to_thread(_adapter, thread, adapter)
    await thread.control(lambda: thread.models.get(name))
    return AdapterInfo(id=name, loaded=True)


@router.delete("/v1/adapters/{adapter}", **_MANAGING)
async def unload_adapter(adapter: str, thread: Thread) -> Any:
    """Remove an adapter from memory. The next request that names it loads it again."""
    name = await asyncio.to_thread(_adapter, thread, adapter)
    await thread.control(lambda: thread.models.unload(name))
    return AdapterInfo(id=name, loaded=False)


def _adapter(thread: ModelThread, name: str) -> str:
    if name not in thread.models.folders():
        raise ApiError(404, "There is no adapter of this name: see /v1/adapters.", code="model_not_found")
    return name


# Operation ------------------------------------------------------------------------------------------


@router.get("/healthz", response_model=Health, response_model_exclude_none=True, tags=["operation"])
async def healthz(thread: Thread) -> Any:
    """Liveness: 503 if the model is lost for good and the process should be restarted."""
    if thread.health.lost:
        raise lost()
    return Health(status="ok")


@router.get("/readyz", response_model=Health, response_model_exclude_none=True, tags=["operation"])
async def readyz(request: Request, thread: Thread) -> Any:
    """Readiness: 503 if the model cannot answer. An unavailable store is reported but costs no answer."""
    if not thread.ready:
        raise lost() if thread.health.lost else stopping()
    writer = request.app.state.recorder.writer
    return Health(status="ok", store=writer and writer.state())


@router.get("/metrics", tags=["operation"], response_class=Response)
async def show_metrics(request: Request, thread: Thread) -> Any:
    """Counters in Prometheus's text format."""
    METRICS.adapters.set(len(thread.models.loaded()))
    text = await asyncio.to_thread(request.app.state.recorder.exposition)
    return Response(text, media_type=CONTENT_TYPE)


# Documentation and errors ---------------------------------------------------------------------------


def _add_docs(app: FastAPI) -> None:
    """Swagger UI from an installed package, so that the page loads nothing from another machine."""

    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse("docs")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Any:
        page = get_swagger_ui_html(
            openapi_url="docs/openapi.json",
            title="fintune API",
            swagger_js_url="docs/assets/swagger-ui-bundle.js",
            swagger_css_url="docs/assets/swagger-ui.css",
            swagger_favicon_url="docs/assets/favicon-32x32.png",
        )
        page.headers["Content-Security-Policy"] = "default-src 'self' 'unsafe-inline' data:"
        return page

    @app.get("/docs/openapi.json", include_in_schema=False)
    async def schema() -> Any:
        return {**app.openapi(), "openapi": "3.0.3"}  # the bundled page does not support 3.1

    app.mount("/docs/assets", StaticFiles(directory=swagger_ui_bundle.swagger_ui_path))


def _add_handlers(app: FastAPI) -> None:
    def answer(error: ApiError) -> JSONResponse:
        return JSONResponse(error.body(), error.status, headers=error.headers)

    @app.exception_handler(ApiError)
    @app.exception_handler(FintuneError)
    async def mistake(request: Request, error: ApiError | FintuneError) -> JSONResponse:
        return answer(for_caller(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part not in ("body", "path", "query"))
        where = HALF.sub("�", where)  # a field name may contain half a character
        return answer(
            ApiError(400, f"{where or 'the request'}: {first['msg']}"[:500], param=where[:100] or None)
        )

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        kind = "not_found" if error.status_code == 404 else "http_error"
        return answer(
            ApiError(error.status_code, f"{error.detail}.", code=kind, headers=dict(error.headers or {}))
        )
