"""OpenAI's chat and completions, complete or streamed as server-sent events.

The model `NAME:TASK` answers that task: its answer is one of the task's labels, whatever the messages say.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request

from fintune.data.raw.readers.instructions import fields_of
from fintune.errors import DataError, FintuneError
from fintune.inference.engine import Engine
from fintune.prompts import framed_ids
from fintune.serving import notes, options, tools
from fintune.serving.errors import ApiError
from fintune.serving.jobs import Done
from fintune.serving.openai_answers import Asked, Pieces, answer
from fintune.serving.queue import ModelThread
from fintune.serving.requests import Thread, attended, model_and_task, task_of
from fintune.serving.schemas import ChatRequest, ChatResponse, CompletionRequest, CompletionResponse
from fintune.serving.writing import Sampling
from fintune.tasks import Record, Task

router = APIRouter(tags=["openai"])
_STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
_Prompt = tuple[Callable[[Engine], list[int]], Sampling]


@router.post("/v1/chat/completions", response_model=ChatResponse, responses=_STREAM)
async def chat(body: ChatRequest, request: Request, thread: Thread) -> Any:
    """Answer a chat, or with the model `NAME:TASK` the task on the last user message."""
    model, task = await asyncio.to_thread(model_and_task, thread, body.model)
    asked = body.max_completion_tokens or body.max_tokens
    sampling = options.sampling(body, asked, thread.settings)
    messages = tools.turns(body.messages)
    request.state.facts.update(model=model, **({"task": task} if task else {}))
    if thread.settings.log_text:
        request.state.facts["texts"] = [each["content"] for each in messages]
    if task:
        chosen = task_of(thread, model, task)
        options.check_task(body, chosen.decoding != "candidates", chosen.takes_turns)
        given = tools.of_request(body)
        record = _record(chosen, messages, given)
        result = Asked(body, [], scored=sampling.logprobs is not None, tools=given)
        pieces = _task_pieces(thread, model, chosen, record, sampling, asked, result)
        result.texts = [notes.text(pieces, request.app.state.recorder, model, chosen, record)]
        return await answer(request, result)
    given = tools.of_request(body)
    if given and given.must and sampling.grammar:
        message = f"{sampling.grammar.field} and a required tool call exclude each other: send one of them."
        raise ApiError(400, message, param="tool_choice")
    result = Asked(body, [], body.n or 1, sampling.logprobs is not None, given)

    def prompt(engine: Engine, own: Sampling) -> list[int]:
        if tools.needed(messages, given):
            result.form = tools.check(engine.tokenizer)
            if given and given.must:
                own.grammar = tools.grammar(result.form, given)
        return _chat_prompt(engine, messages, given, own, thread)

    result.texts = await _texts(request, thread, model, [prompt], sampling, body.n or 1)
    return await answer(request, result)


@router.post("/v1/completions", response_model=CompletionResponse, responses=_STREAM)
async def completions(body: CompletionRequest, request: Request, thread: Thread) -> Any:
    """Continue a prompt as it is, without a chat template."""
    model = await asyncio.to_thread(thread.models.check, body.model)
    asked = min(16, thread.settings.max_tokens) if body.max_tokens is None else body.max_tokens
    sampling = options.sampling(body, asked, thread.settings)
    prompts, most = body.prompts(), thread.settings.max_items
    if (count := len(prompts) * (body.n or 1)) > most:
        raise ApiError(400, f"prompt and n ask for {count} texts; {most} are allowed.", param="prompt")
    if not all(prompts):
        raise ApiError(400, "prompt has an empty text: send at least one token.", param="prompt")
    request.state.facts.update(model=model)
    if thread.settings.log_text:
        request.state.facts["texts"] = [str(each) for each in prompts]

    def made(given: str | list[int]) -> Callable[[Engine, Sampling], list[int]]:
        def prompt(engine: Engine, own: Sampling) -> list[int]:
            ids = _completion_ids(engine, given, thread)
            if body.echo:
                own.echo = given if isinstance(given, str) else engine.tokenizer.decode(given)
            return _fitting(engine, ids, own, thread)

        return prompt

    texts = await _texts(request, thread, model, [made(each) for each in prompts], sampling, body.n or 1)
    return await answer(request, Asked(body, texts, body.n or 1, sampling.logprobs is not None))


@router.post("/v1/embeddings", include_in_schema=False)
async def embeddings() -> Any:
    """Refuse embeddings with a clear message."""
    message = "This server has no embeddings: it generates texts and answers tasks (see /docs)."
    raise ApiError(404, message, code="not_supported")


# Prompts --------------------------------------------------------------------------------------------


async def _texts(
    request: Request,
    thread: ModelThread,
    model: str,
    prompts: Sequence[Callable[[Engine, Sampling], list[int]]],
    sampling: Sampling,
    each: int,
) -> list[Pieces]:
    """Texts that begin together: `each` for every prompt, which is tokenized once."""
    asked: list[_Prompt] = []
    for made in prompts:
        memo: list[tuple[list[int], Sampling]] = []
        for number in range(each):
            seed = None if sampling.seed is None else (sampling.seed + number + 2**63) % 2**64 - 2**63
            own = replace(sampling, seed=seed)
            asked.append((_once(made, own, memo), own))
    begun = time.perf_counter()
    try:
        texts = await attended(request, thread.texts(model, asked))
    except ApiError as error:
        notes.refusal(notes.PLAIN, error, time.perf_counter() - begun)
        raise
    return [notes.text(text, request.app.state.recorder, model) for text in texts]


def _once(
    made: Callable[[Engine, Sampling], list[int]], own: Sampling, memo: list[tuple[list[int], Sampling]]
) -> Callable[[Engine], list[int]]:
    """Make a prompt, and its part of the sampling, once for all its choices."""

    def prompt(engine: Engine) -> list[int]:
        if not memo:
            memo.append((made(engine, own), own))
        ids, first = memo[0]
        own.max_tokens, own.echo, own.grammar = first.max_tokens, first.echo, first.grammar
        return ids

    return prompt


def _chat_prompt(
    engine: Engine,
    messages: list[dict[str, Any]],
    given: tools.Tools | None,
    sampling: Sampling,
    thread: ModelThread,
) -> list[int]:
    with_tools = tools.needed(messages, given)
    said = sum(len(each["content"]) for each in messages)
    if with_tools:
        said = len(json.dumps([messages, given.given if given else None], ensure_ascii=False))
    _refuse_long(engine, said, thread)
    try:
        ids = engine.template.chat_ids(messages, list(given.given) if given else None)
    except FintuneError:
        raise
    except Exception as error:  # templates refuse an order of roles with any exception
        raise ApiError(
            400, "The model's chat template does not accept these roles in this order.", param="messages"
        ) from error
    return _fitting(engine, ids, sampling, thread)


def _completion_ids(engine: Engine, given: str | list[int], thread: ModelThread) -> list[int]:
    """The prompt's token ids: of its text, or as given."""
    if isinstance(given, str):
        _refuse_long(engine, len(given), thread)
        return framed_ids(engine.tokenizer, str, given, special=True)
    if max(given) >= (size := len(engine.tokenizer)):
        message = f"prompt has the token {max(given)}, but the model's tokens are 0 to {size - 1}."
        raise ApiError(400, message, param="prompt")
    return given


def _context(engine: Engine, thread: ModelThread) -> int:
    return min(engine.backend.context or 1024, thread.settings.max_context)


def _refuse_long(engine: Engine, characters: int, thread: ModelThread) -> None:
    """Raise an ApiError, before tokenizing, for more characters than the context's tokens can hold."""
    context = _context(engine, thread)
    if characters > (most := engine.template.most_characters(context)):
        raise ApiError(
            400,
            f"The prompt has {characters:,} characters; prompt and answer together may have {context} "
            f"tokens, which hold at most {most:,} characters.",
            code="context_length_exceeded",
            param="messages",
        )


def _fitting(engine: Engine, ids: list[int], sampling: Sampling, thread: ModelThread) -> list[int]:
    """The prompt unchanged; the answer gets the remaining room.

    Raises:
        ApiError: the prompt is empty, or leaves no room.
    """
    context = _context(engine, thread)
    if not ids or len(ids) + min(1, sampling.max_tokens) > context:
        raise ApiError(
            400,
            f"The prompt has {len(ids)} tokens; prompt and answer together may have {context}.",
            code="context_length_exceeded",
            param="messages",
        )
    sampling.max_tokens = min(sampling.max_tokens, context - len(ids))
    return ids


def _record(task: Task, messages: list[dict[str, Any]], given: tools.Tools | None) -> Record:
    """The task's input: the chat if its type takes one, as in training; else the last user message, whose
    last line is the question if the task needs one."""
    if task.takes_turns:
        row = {"messages": messages, "tools": given and given.given}
        asked = fields_of(row, "messages", answered=False)
        if isinstance(asked, str):
            raise ApiError(400, f"The chat cannot be answered: {asked}.", param="messages")
        return Record(
            asked["text"], question=asked["question"], system=asked["system"] or "", turns=asked["turns"]
        )
    said = [each["content"] for each in messages if each["role"] == "user"]
    if not said:
        raise ApiError(400, "There is no user message.", param="messages")
    if "question" in task.inputs:
        text, _, question = said[-1].rpartition("\n")
        return Record(text=text, question=question)
    return Record(text=said[-1])


def _task_pieces(
    thread: ModelThread,
    model: str,
    task: Task,
    record: Record,
    sampling: Sampling,
    asked: int | None,
    result: Asked,
) -> Pieces:
    """The task's answer, token by token if it is generated."""
    if task.decoding == "candidates":
        return _label(thread, model, task, record)

    def prompt(engine: Engine) -> list[int]:
        budget = engine.completion_budget(task)
        sampling.max_tokens = min(budget, asked or budget)
        result.form = tools.check(engine.tokenizer) if result.tools else None
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
