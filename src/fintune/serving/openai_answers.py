"""Builds the answers of OpenAI's routes: choices with log-probabilities and tool calls, or events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, StreamingResponse

from fintune.errors import FintuneError
from fintune.serving import tools as calls
from fintune.serving.errors import ApiError, for_caller
from fintune.serving.jobs import Done
from fintune.serving.requests import attended
from fintune.serving.schemas import (
    AssistantMessage,
    ChatChoice,
    ChatLogprobs,
    ChatRequest,
    ChatResponse,
    CompletionRequest,
    CompletionResponse,
    Likely,
    LikelyToken,
    TextChoice,
    TextLogprobs,
    ToolCall,
    Usage,
)
from fintune.serving.writing import Chance, Scored

Pieces = AsyncIterator[str | Done]
LEAST = -9999.0
"""The log-probability of the impossible, for which JSON has no number."""


@dataclass
class Asked:
    """A request whose texts are being written."""

    body: ChatRequest | CompletionRequest
    texts: Sequence[Pieces]
    """One per choice; choices of the same prompt are adjacent."""
    each: int = 1
    """Choices per prompt; a prompt's tokens are counted once."""
    scored: bool = False
    """Whether the answer contains log-probabilities."""
    tools: calls.Tools | None = None
    form: calls.Form | None = None
    own: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def chat(self) -> bool:
        return isinstance(self.body, ChatRequest)

    def common(self, kind: str) -> dict[str, Any]:
        own = f"{'chatcmpl' if self.chat else 'cmpl'}-{self.own}"
        return {"id": own, "object": kind, "created": self.created, "model": self.body.model}

    def usage(self, done: Sequence[Done]) -> Usage:
        prompts = sum(one.prompt_tokens for one in done[:: self.each])
        written = sum(one.completion_tokens for one in done)
        return Usage(prompt_tokens=prompts, completion_tokens=written, total_tokens=prompts + written)


async def answer(request: Request, asked: Asked) -> Any:
    """The response to a request."""
    pieces = _merged(asked.texts)
    if asked.body.stream:
        first = await attended(request, anext(pieces))  # an immediate failure becomes an error status
        events = _events(pieces, first, asked)
        headers = {"Cache-Control": "no-cache"}
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)
    found, done = await attended(request, _whole(pieces, len(asked.texts)))
    usage = asked.usage(done)
    request.state.facts.update(tokens=usage.total_tokens)
    kept = done[0].prediction_id
    made: Any = (ChatResponse, _chat_choice, "chat.completion")
    if not asked.chat:
        made = (CompletionResponse, _text_choice, "text_completion")
    response, choice, kind = made
    choices = [choice(i, *each, asked) for i, each in enumerate(zip(found, done, strict=True))]
    result = response(choices=choices, usage=usage, prediction_id=kept, **asked.common(kind))
    body = result.model_dump(exclude=set() if kept else {"prediction_id"})
    for each in body["choices"] if asked.chat else ():
        if each["message"]["tool_calls"] is None:
            del each["message"]["tool_calls"]
    return JSONResponse(body)


async def _merged(texts: Sequence[Pieces]) -> AsyncIterator[tuple[int, str | Done]]:
    """The pieces of several texts as they come, each with the index of its text."""
    if len(texts) == 1:
        async with contextlib.aclosing(texts[0]):  # type: ignore[type-var]
            async for piece in texts[0]:
                yield 0, piece
        return
    arrived: asyncio.Queue[tuple[int, str | Done | BaseException]] = asyncio.Queue()

    async def pass_on(number: int, text: Pieces) -> None:
        try:
            async with contextlib.aclosing(text):  # type: ignore[type-var]
                async for piece in text:
                    arrived.put_nowait((number, piece))
        except Exception as error:
            arrived.put_nowait((number, error))

    tasks = [asyncio.ensure_future(pass_on(*each)) for each in enumerate(texts)]
    try:
        left = len(tasks)
        while left:
            number, event = await arrived.get()
            if isinstance(event, BaseException):
                raise event
            left -= isinstance(event, Done)
            yield number, event
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _whole(
    pieces: AsyncIterator[tuple[int, str | Done]], count: int
) -> tuple[list[list[str]], list[Done]]:
    found: list[list[str]] = [[] for _ in range(count)]
    done: dict[int, Done] = {}
    async with contextlib.aclosing(pieces):  # type: ignore[type-var]
        async for number, piece in pieces:
            if isinstance(piece, Done):
                done[number] = _checked(piece)
            else:
                found[number].append(piece)
    return found, [done[i] for i in range(count)]


def _checked(done: Done) -> Done:
    if done.finish == "cancelled":
        raise ApiError(504, "There was no complete answer in time.", "server_error", "timeout")
    return done


# Choices --------------------------------------------------------------------------------------------


def _chances(pieces: Sequence[str]) -> list[Chance]:
    return [chance for piece in pieces if isinstance(piece, Scored) for chance in piece.chances]


def _chat_choice(index: int, pieces: list[str], done: Done, asked: Asked) -> ChatChoice:
    content, called = _read("".join(pieces), asked)
    message = AssistantMessage(content=content, tool_calls=called or None)
    scores = chat_logprobs(_chances(pieces)) if asked.scored else None
    finish = "tool_calls" if called else done.finish
    return ChatChoice(index=index, message=message, finish_reason=finish, logprobs=scores)


def _read(text: str, asked: Asked) -> tuple[str | None, list[ToolCall]]:
    return calls.parsed(asked.form, text, asked.tools) if asked.tools and asked.form else (text, [])


def _text_choice(index: int, pieces: list[str], done: Done, asked: Asked) -> TextChoice:
    scores = text_logprobs(_chances(pieces), 0) if asked.scored else None
    return TextChoice(index=index, text="".join(pieces), finish_reason=done.finish, logprobs=scores)


def chat_logprobs(chances: Sequence[Chance]) -> ChatLogprobs:
    def likely(text: str, value: float | None) -> dict[str, Any]:
        logprob = LEAST if value is None else max(value, LEAST)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    content = [
        LikelyToken(
            **likely(each.text, each.value), top_logprobs=[Likely(**likely(*one)) for one in each.top]
        )
        for each in chances
    ]
    return ChatLogprobs(content=content)


def text_logprobs(chances: Sequence[Chance], begin: int) -> TextLogprobs:
    """Args: begin: the first token's position in the text."""
    found = TextLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
    for each in chances:
        found.tokens.append(each.text)
        found.text_offset.append(begin)
        begin += len(each.text)
        value = None if each.value is None else max(each.value, LEAST)
        found.token_logprobs.append(value)
        # Likeliest first; if two tokens look alike, the likelier one stays.
        top = {text: max(score, LEAST) for text, score in reversed(each.top)}
        found.top_logprobs.append(None if value is None else {each.text: value} | top)
    return found


# Events ---------------------------------------------------------------------------------------------


async def _events(
    pieces: AsyncIterator[tuple[int, str | Done]], first: tuple[int, str | Done], asked: Asked
) -> AsyncIterator[str]:
    """Server-sent events: one chunk per piece, each choice's end and reason, perhaps the usage, [DONE]."""

    def event(data: dict[str, Any]) -> str:
        return f"data: {json.dumps(data)}\n\n"

    options = asked.body.stream_options
    chunks = [_Chunks(i, asked) for i in range(len(asked.texts))]
    done: dict[int, Done] = {}
    common = asked.common("chat.completion.chunk" if asked.chat else "text_completion")
    usage: dict[str, Any] = {"usage": None} if options and options.include_usage else {}
    async with contextlib.aclosing(pieces):  # type: ignore[type-var]
        try:
            number, piece = first
            while True:
                if isinstance(piece, Done):
                    done[number] = _checked(piece)
                name = piece.prediction_id if isinstance(piece, Done) else None
                kept = {"prediction_id": name} if name else {}
                for choice in chunks[number].of(piece):
                    yield event({**common, "choices": [choice], **usage, **kept})
                if len(done) == len(chunks):
                    break
                number, piece = await anext(pieces)
        except (ApiError, FintuneError) as error:  # the status is already sent: send the error as an event
            yield event(for_caller(error).body())
            return
    if usage:
        total = asked.usage([done[i] for i in range(len(chunks))])
        yield event({**common, "choices": [], "usage": total.model_dump()})
    yield "data: [DONE]\n\n"


class _Chunks:
    """The choices in the events of one text."""

    def __init__(self, index: int, asked: Asked) -> None:
        self._index, self._asked = index, asked
        self._begun, self._length = False, 0
        self._held: list[str] = []

    def of(self, piece: str | Done) -> list[dict[str, Any]]:
        if not self._asked.chat:
            return [self._text(piece)]
        if self._asked.tools:  # only the end shows what is a call
            if not isinstance(piece, Done):
                self._held.append(piece)
                return []
            return self._held_choices(piece)
        if isinstance(piece, Done):
            return [self._delta({}, piece.finish)]
        return [self._delta({"content": str(piece)}, None, [piece])]

    def _held_choices(self, done: Done) -> list[dict[str, Any]]:
        content, called = _read("".join(self._held), self._asked)
        delta: dict[str, Any] = {"content": content}
        if called:
            delta["tool_calls"] = [{"index": i, **call.model_dump()} for i, call in enumerate(called)]
        finish = "tool_calls" if called else done.finish
        return [self._delta(delta, None, self._held), self._delta({}, finish)]

    def _delta(self, delta: dict[str, Any], finish: str | None, pieces: Sequence[str] = ()) -> dict[str, Any]:
        scores = chat_logprobs(_chances(pieces)).model_dump() if self._asked.scored and pieces else None
        delta = delta if self._begun else {"role": "assistant", **delta}
        self._begun = True
        return {"index": self._index, "delta": delta, "finish_reason": finish, "logprobs": scores}

    def _text(self, piece: str | Done) -> dict[str, Any]:
        if isinstance(piece, Done):
            return {"index": self._index, "text": "", "finish_reason": piece.finish, "logprobs": None}
        scores = None
        if self._asked.scored:
            found = text_logprobs(_chances([piece]), self._length)
            self._length += sum(map(len, found.tokens))
            scores = found.model_dump()
        return {"index": self._index, "text": str(piece), "finish_reason": None, "logprobs": scores}
