"""The options of a chat or completion, checked: what would change the answer and is not done is refused."""

from __future__ import annotations

from typing import Any

from fintune.inference import grammars
from fintune.inference.grammars import Grammar
from fintune.serving.errors import ApiError
from fintune.serving.schemas import ChatRequest, CompletionRequest
from fintune.serving.settings import Settings
from fintune.serving.writing import Sampling

MAX_STOP = 256
"""Characters of a stop text: each is looked for at every token, on the thread that writes everyone's."""
_CHANGES_NOTHING = frozenset(
    "user metadata store service_tier safety_identifier prompt_cache_key prompt_cache_retention prediction "
    "parallel_tool_calls".split()
)
"""Fields of OpenAI's API that say nothing about the answer."""
_AS_IF_LEFT_OUT: dict[str, tuple[Any, ...]] = {
    "suffix": ("",),
    "functions": ([],),
    "function_call": ("none",),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "top_k": (-1, 0),
    "min_p": (0,),
    "repetition_penalty": (1,),
}


def check(body: ChatRequest | CompletionRequest) -> None:
    """Raise an ApiError that names a field which would change the answer, and is not done."""
    for name, value in (body.model_extra or {}).items():
        if value is None or name in _CHANGES_NOTHING or value in _AS_IF_LEFT_OUT.get(name, ()):
            continue
        hint = " (use tools and tool_choice)" if name in ("functions", "function_call") else ""
        raise _refused(name[:100], f"{name[:100]} is not supported{hint}: leave it out.")
    if isinstance(body, CompletionRequest):
        if body.best_of not in (None, body.n or 1):
            raise _refused("best_of", "best_of is not supported: leave it out, or make it equal to n.")
        if body.max_tokens == 0 and not body.echo:
            raise _refused("max_tokens", "max_tokens may be 0 only with echo.")
    elif body.max_tokens == 0:
        raise _refused("max_tokens", "max_tokens is 0, and an answer has a token at least.")
    elif body.top_logprobs is not None and not body.logprobs:
        raise _refused("top_logprobs", "top_logprobs needs logprobs: true.")


def sampling(body: ChatRequest | CompletionRequest, asked: int | None, settings: Settings) -> Sampling:
    """How the texts are written, without their limit by the context.

    Raises:
        ApiError: a field is beyond a limit, or not done.
        DataError: what the text is to be kept to cannot be.
    """
    check(body)
    limit = settings.max_tokens
    if asked is not None and asked > limit:
        raise _refused("max_tokens", f"max_tokens is {asked}, and {limit} are allowed.")
    stops = body.stops()
    if len(stops) > 4:
        raise _refused("stop", f"stop has {len(stops)} texts, and 4 are allowed.")
    if (longest := max(map(len, stops), default=0)) > MAX_STOP:
        raise _refused("stop", f"stop has a text of {longest} characters, and {MAX_STOP} are allowed.")
    top = body.logprobs if isinstance(body, CompletionRequest) else None
    if isinstance(body, ChatRequest) and body.logprobs:
        top = body.top_logprobs or 0
    return Sampling(
        limit if asked is None else asked,
        body.temperature or 0.0,
        1.0 if body.top_p is None else body.top_p,
        stops,
        body.seed,
        body.presence_penalty or 0.0,
        body.frequency_penalty or 0.0,
        body.logit_bias or {},
        top,
        grammar(body),
    )


def check_task(body: ChatRequest, written: bool, talks: bool) -> None:
    """Raise an ApiError for what changes nothing in a task's answer, which has its own form.

    Args:
        written: the task writes a text; else it scores labels.
        talks: the task takes a conversation, which may have tools, none of which must be called.
    """
    never = {"response_format": bool(grammar(body)), "n": body.n not in (None, 1)}
    must = body.tool_choice not in (None, "none", "auto")
    never |= {"tool_choice": must} if talks else {"tools": bool(body.tools)}
    scored = {
        "logprobs": body.logprobs,
        "logit_bias": body.logit_bias,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
    }
    for name, value in {**never, **({} if written else scored)}.items():
        if value:
            raise _refused(name, f"{name} does not go with a task, whose answer has its own form.")


def grammar(body: ChatRequest | CompletionRequest) -> Grammar | None:
    """What the text is kept to, by whichever of the fields that say it.

    Raises:
        ApiError: several say it.
        DataError: what is said is no schema, or beyond a limit.
    """
    wanted: dict[str, Grammar] = {}
    form, outputs = body.response_format, body.structured_outputs
    if form and form.type == "json_object":
        wanted["response_format"] = grammars.of_schema("response_format", {"type": "object"})
    if form and form.json_schema:
        wanted["response_format"] = grammars.of_schema("response_format", form.json_schema.schema_)
    given = {
        "guided_json": ("json", body.guided_json),
        "guided_choice": ("choice", body.guided_choice),
        "guided_regex": ("regex", body.guided_regex),
        "structured_outputs.json": ("json", outputs and outputs.json_),
        "structured_outputs.choice": ("choice", outputs and outputs.choice),
        "structured_outputs.regex": ("regex", outputs and outputs.regex),
    }
    for name, (kind, value) in given.items():
        if value is not None:
            wanted[name] = _of(kind, name, value)
    if len(wanted) > 1:
        raise _refused(list(wanted)[1], f"{' and '.join(wanted)} are given: send one of them.")
    return next(iter(wanted.values()), None)


def _of(kind: str, name: str, value: Any) -> Grammar:
    if kind == "choice":
        return grammars.of_choice(name, value)
    if kind == "regex":
        return grammars.of_regex(name, value)
    return grammars.of_schema(name, grammars.parsed(name, value))


def _refused(name: str, message: str) -> ApiError:
    return ApiError(400, message, param=name)
