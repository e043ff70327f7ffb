"""OpenAI's chat and completions, whole or streamed as server-sent events.

The model `NAME:TASK` answers its task: a label is one of the task's, whatever the messages say.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, StreamingResponse

from fintune.data.raw.readers.instructions import fields_of
from fintune.errors import DataError, FintuneError
from fintune.inference.engine import Engine
from fintune.prompts import framed_ids
from fintune.serving import notes
from fintune.serving.errors import ApiError, for_caller
from fintune.serving.jobs import Done
from fintune.serving.queue import ModelThread
from fintune.serving.requests import Thread, attended, task_of
from fintune.serving.schemas import (
    AssistantMessage,
    ChatChoice,
    ChatRequest,
    ChatResponse,
    CompletionRequest,
    CompletionResponse,
    TextChoice,
    Usage,
)
from fintune.serving.writing import Sampling
from fintune.tasks import Record, Task

router = APIRouter(tags=["openai"])
Pieces = AsyncIterator[str | Done]
MAX_STOP = 256
"""Characters of a stop text: each is looked for at every token, on the thread that writes everyone's."""
_STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}


@router.post("/v1/chat/completions", response_model=ChatResponse, responses=_STREAM)
async def chat(body: ChatRequest, request: Request, thread: Thread) -> Any:
    """Answer a chat, or with the model `NAME:TASK` the task on the last user message."""
    if body.response_format and body.response_format.get("type", "text") != "text":
        raise ApiError(400, "Only the response_format text is supported.", param="response_format")
    name, _, task = body.model.partition(":")
    model = await asyncio.to_thread(thread.models.check, name)
    asked = body.max_completion_tokens or body.max_tokens
    sampling = _sampling(body, asked, thread)
    messages = [
        {"role": "system" if each.role == "developer" else each.role, "content": each.plain()}
        for each in body.messages
    ]
    request.state.facts.update(model=model, **({"task": task} if task else {}))
    if thread.settings.log_text:
        request.state.facts["texts"] = [each["content"] for each in messages]
    recorder = request.app.state.recorder
    if task:
        chosen = task_of(thread, model, task)
        record = _record(chosen, messages)
        pieces = _task_pieces(thread, model, chosen, record, sampling, asked)
        pieces = notes.text(pieces, recorder, model, chosen, record)
    else:
        pieces = thread.write(
            model, lambda engine: _chat_prompt(engine, messages, sampling, thread), sampling
        )
        pieces = notes.text(pieces, recorder, model)
    return await _answer(request, pieces, body, "chatcmpl")


@router.post("/v1/completions", response_model=CompletionResponse, responses=_STREAM)
async def completions(body: CompletionRequest, request: Request, thread: Thread) -> Any:
    """Go on from a prompt, as it is, without a chat's frame."""
    model = await asyncio.to_thread(thread.models.check, body.model)
    sampling = _sampling(body, body.max_tokens or min(16, thread.settings.max_tokens), thread)
    request.state.facts.update(model=model)
    if thread.settings.log_text:
        request.state.facts["texts"] = [body.prompt]

    def prompt(engine: Engine) -> list[int]:
        _refuse_long(engine, len(body.prompt), thread)
        ids = framed_ids(engine.tokenizer, str, body.prompt, special=True)
        return _fitting(engine, ids, sampling, thread)

    pieces = notes.text(thread.write(model, prompt, sampling), request.app.state.recorder, model)
    return await _answer(request, pieces, body, "cmpl")


# Prompts --------------------------------------------------------------------------------------------


def _sampling(body: ChatRequest | CompletionRequest, asked: int | None, thread: ModelThread) -> Sampling:
    limit = thread.settings.max_tokens
    if asked is not None and asked > limit:
        raise ApiError(400, f"max_tokens is {asked}, and {limit} are allowed.", param="max_tokens")
    stops = body.stops()
    if len(stops) > 4:
        raise ApiError(400, f"stop has {len(stops)} texts, and 4 are allowed.", param="stop")
    if (longest := max(map(len, stops), default=0)) > MAX_STOP:
        raise ApiError(
            400, f"stop has a text of {longest} characters, and {MAX_STOP} are allowed.", param="stop"
        )
    return Sampling(asked or limit, body.temperature, body.top_p, stops, body.seed)


def _chat_prompt(
    engine: Engine, messages: list[dict[str, str]], sampling: Sampling, thread: ModelThread
) -> list[int]:
    _refuse_long(engine, sum(len(each["content"]) for each in messages), thread)
    try:
        ids = engine.template.chat_ids(messages)
    except FintuneError:
        raise
    except Exception as error:  # templates refuse an order of roles by raising what they like
        raise ApiError(
            400, "The model's chat template does not take these roles in this order.", param="messages"
        ) from error
    return _fitting(engine, ids, sampling, thread)


def _context(engine: Engine, thread: ModelThread) -> int:
    return min(engine.backend.context or 1024, thread.settings.max_context)


def _refuse_long(engine: Engine, characters: int, thread: ModelThread) -> None:
    """Raise an ApiError for more characters than the context's tokens hold, before they are made tokens."""
    context = _context(engine, thread)
    if characters > (most := engine.template.most_characters(context)):
        raise ApiError(
            400,
            f"The prompt has {characters:,} characters; prompt and answer have room for {context} tokens, "
            f"which hold {most:,} at most.",
            code="context_length_exceeded",
            param="messages",
        )


def _fitting(engine: Engine, ids: list[int], sampling: Sampling, thread: ModelThread) -> list[int]:
    """The prompt as it is; the answer gets what room there is.

    Raises:
        ApiError: the prompt is empty, or leaves no room.
    """
    context = _context(engine, thread)
    if not ids or len(ids) >= context:
        raise ApiError(
            400,
            f"The prompt has {len(ids)} tokens, and prompt and answer have room for {context}.",
            code="context_length_exceeded",
            param="messages",
        )
    sampling.max_tokens = min(sampling.max_tokens, context - len(ids))
    return ids


def _record(task: Task, messages: list[dict[str, str]]) -> Record:
    """What a task is asked: the chat, where its type takes one, as in training; else the last user message,
    of which the last line is the question where the task needs one."""
    if task.takes_turns:
        asked = fields_of({"messages": messages}, "messages", answered=False)
        if isinstance(asked, str):
            raise ApiError(400, f"The chat cannot be answered: {asked}.", param="messages")
        return Record(
            asked["text"], question=asked["question"], system=asked["system"] or "", turns=asked["turns"]
        )
    said = [each["content"] for each in messages if each["role"] == "user"]
    if not said:
        raise ApiError(400, "There is no message of the user.", param="messages")
    if "question" in task.inputs:
        text, _, question = said[-1].rpartition("\n")
        return Record(text=text, question=question)
    return Record(text=said[-1])


def _task_pieces(
    thread: ModelThread, model: str, task: Task, record: Record, sampling: Sampling, asked: int | None
) -> Pieces:
    """The task's answer, a token a step where it is written."""
    if task.decoding == "candidates":
        return _label(thread, model, task, record)

    def prompt(engine: Engine) -> list[int]:
        budget = engine.completion_budget(task)
        sampling.max_tokens = min(budget, asked or budget)
        try:
            return engine.prompt(task, record)
        except DataError as error:
            raise ApiError(400, str(error), code="cannot_answer") from error

    return thread.write(model, prompt, sampling, task.name, record)


async def _label(thread: ModelThread, model: str, task: Task, record: Record) -> Pieces:
    from fintune.inference.answers import as_dict

    found = (await thread.predict(model, task.name, [record], True))[0]
    if isinstance(found.answer, str):
        raise ApiError(400, found.answer, code="cannot_answer")
    yield str(as_dict(task.name, found.answer)["prediction"])
    prompt, cached = found.prompt_tokens or 0, found.cached_tokens
    yield Done("stop", prompt, 0, found.queue_seconds, cached, found.answer)


# Answers --------------------------------------------------------------------------------------------


async def _answer(request: Request, pieces: Pieces, body: ChatRequest | CompletionRequest, kind: str) -> Any:
    own, created = f"{kind}-{secrets.token_hex(12)}", int(time.time())
    if body.stream:
        first = await attended(request, anext(pieces))  # what fails at once is an error with its status
        usage = bool(body.stream_options and body.stream_options.include_usage)
        chunk = _chat_chunk if kind == "chatcmpl" else _text_chunk
        events = _events(pieces, first, chunk(own, created, body.model), usage)
        return StreamingResponse(
            events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
        )
    text, done = await attended(request, _whole(pieces))
    usage_ = _usage(done)
    request.state.facts.update(tokens=usage_.total_tokens)
    result: ChatResponse | CompletionResponse
    common: dict[str, Any] = {"id": own, "created": created, "model": body.model, "usage": usage_}
    common["prediction_id"] = done.prediction_id
    if kind == "chatcmpl":
        message = AssistantMessage(content=text)
        result = ChatResponse(choices=[ChatChoice(message=message, finish_reason=done.finish)], **common)
    else:
        result = CompletionResponse(choices=[TextChoice(text=text, finish_reason=done.finish)], **common)
    return JSONResponse(result.model_dump(exclude=set() if done.prediction_id else {"prediction_id"}))


async def _whole(pieces: Pieces) -> tuple[str, Done]:
    text = ""
    async with contextlib.aclosing(pieces):  # type: ignore[type-var]
        async for piece in pieces:
            if isinstance(piece, Done):
                return text, _checked(piece)
            text += piece
    raise AssertionError("a text ends with Done")


def _checked(done: Done) -> Done:
    if done.finish == "cancelled":
        raise ApiError(504, "There was no whole answer in time.", "server_error", "timeout")
    return done


def _usage(done: Done) -> Usage:
    total = done.prompt_tokens + done.completion_tokens
    return Usage(
        prompt_tokens=done.prompt_tokens, completion_tokens=done.completion_tokens, total_tokens=total
    )


Chunk = Callable[[str | None, str | None], dict[str, Any]]
"""(A piece of text, why it ended) → an event's data."""


def _chat_chunk(own: str, created: int, model: str) -> Chunk:
    begun = False

    def chunk(text: str | None, finish: str | None) -> dict[str, Any]:
        nonlocal begun
        delta = {**({} if begun else {"role": "assistant"}), **({} if text is None else {"content": text})}
        begun = True
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        common = {"id": own, "object": "chat.completion.chunk", "created": created, "model": model}
        return {**common, "choices": [choice]}

    return chunk


def _text_chunk(own: str, created: int, model: str) -> Chunk:
    def chunk(text: str | None, finish: str | None) -> dict[str, Any]:
        choice = {"index": 0, "text": text or "", "finish_reason": finish, "logprobs": None}
        common = {"id": own, "object": "text_completion", "created": created, "model": model}
        return {**common, "choices": [choice]}

    return chunk


async def _events(pieces: Pieces, first: str | Done, chunk: Chunk, usage: bool) -> AsyncIterator[str]:
    """Server-sent events: a chunk a piece, the end and its reason, perhaps the usage, and [DONE]."""
    import json

    def event(data: dict[str, Any]) -> str:
        return f"data: {json.dumps(data)}\n\n"

    piece = first
    async with contextlib.aclosing(pieces):  # type: ignore[type-var]
        try:
            while not isinstance(piece, Done):
                yield event(chunk(piece, None))
                piece = await anext(pieces)
            _checked(piece)
        except (ApiError, FintuneError) as error:  # the status is sent already: the error is an event
            yield event(for_caller(error).body())
            return
    kept = {"prediction_id": piece.prediction_id} if piece.prediction_id else {}
    yield event({**chunk(None, piece.finish), **kept})
    if usage:
        yield event({**chunk(None, None), "choices": [], "usage": _usage(piece).model_dump()})
    yield "data: [DONE]\n\n"
