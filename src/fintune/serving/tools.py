"""Tools in a request: which may be called, and the calls in the model's output (see `tool_calls`)."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fintune.inference import grammars
from fintune.inference.grammars import Grammar
from fintune.serving.errors import ApiError
from fintune.serving.schemas import CalledFunction, ChatRequest, Message, NamedTool, ToolCall
from fintune.tool_calls import ARGUMENTS, CALL, Form, call_of, form_of, read_call

_NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True)
class Tools:
    """A request's tools, and whether one must be called."""

    given: tuple[dict[str, Any], ...]
    names: tuple[str, ...]
    must: bool
    """Whether one of `names` must be called."""
    several: bool
    """Whether several may be called at once."""


def of_request(body: ChatRequest) -> Tools | None:
    """The tools that may be called; None if there are none.

    Raises:
        ApiError: `tool_choice` matches no tool.
    """
    choice, given = body.tool_choice, body.tools or []
    if not given:
        if choice not in (None, "none", "auto"):
            raise ApiError(400, "tool_choice is given without tools: send tools too.", param="tool_choice")
        return None
    if choice == "none":
        return None
    names = tuple(tool.function.name for tool in given)
    if isinstance(choice, NamedTool):
        if choice.function.name not in names:
            message = f"tool_choice names none of the tools, which are {', '.join(names)[:200]}."
            raise ApiError(400, message, param="tool_choice")
        names = (choice.function.name,)
    must = choice == "required" or isinstance(choice, NamedTool)
    shown = tuple(tool.model_dump(exclude_none=True) for tool in given)
    return Tools(shown, names, must, body.parallel_tool_calls is not False)


def turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages in the form that chat templates take.

    Raises:
        ApiError: the arguments of a call are not a JSON object.
    """
    made = []
    for each in messages:
        turn: dict[str, Any] = {"role": "system" if each.role == "developer" else each.role}
        turn["content"] = each.plain()
        if each.tool_calls:
            turn["tool_calls"] = [_call_turn(call) for call in each.tool_calls]
        if each.role == "tool":
            turn |= {name: value for name in ("tool_call_id", "name") if (value := getattr(each, name))}
        made.append(turn)
    return made


def _call_turn(call: ToolCall) -> dict[str, Any]:
    try:
        return call_of(call.function.name, call.function.arguments, call.id)
    except (ValueError, RecursionError):
        message = "The arguments of a tool call are not a JSON object."
        raise ApiError(400, message, param="messages") from None


def needed(messages: Sequence[dict[str, Any]], tools: Tools | None) -> bool:
    """Whether the chat template must support tools."""
    return bool(tools) or any(each["role"] == "tool" or "tool_calls" in each for each in messages)


def check(tokenizer: Any) -> Form:
    """The form of the tool calls, or an ApiError if the template has none."""
    if form := form_of(tokenizer):
        return form
    message = "This model's chat template has no known form for tools: leave tools out."
    raise ApiError(400, message, code="not_supported", param="tools")


def grammar(form: Form, tools: Tools) -> Grammar:
    """A grammar for one call of one of the tools, in the template's form.

    Raises:
        DataError: a tool's parameters are not a schema, or exceed a limit.
    """
    calls = []
    for tool in tools.given:
        function = tool["function"]
        if function["name"] in tools.names:
            parameters = function.get("parameters") or _NO_PARAMETERS
            fields = {"name": {"const": function["name"]}, ARGUMENTS[form]: parameters}
            calls.append(
                {
                    "type": "object",
                    "properties": fields,
                    "required": list(fields),
                    "additionalProperties": False,
                }
            )
    schema = grammars.inner("tools", calls[0] if len(calls) == 1 else {"anyOf": calls})
    around = '"<tool_call>\\n" call "\\n</tool_call>"' if form == "hermes" else "call"
    return grammars.of_lark("tools", f"start: {around}\ncall: %json {schema}")


def parsed(form: Form, text: str, tools: Tools) -> tuple[str | None, list[ToolCall]]:
    """The text besides calls, and the calls; a call of an unknown tool stays in the text."""
    found: list[ToolCall] = []
    if form == "hermes":
        rest = CALL.sub(lambda match: "" if _read(form, match[1], tools, found) else match[0], text)
    else:
        rest = "" if _read(form, text.strip().removeprefix("<|python_tag|>"), tools, found) else text
    if not found:
        return text, []
    return rest.strip() or None, found if tools.several else found[:1]


def _read(form: Form, text: str, tools: Tools, found: list[ToolCall]) -> bool:
    """Whether a text is a call, which is then added to `found`."""
    name, arguments = read_call(form, text) or ("", None)
    if not isinstance(arguments, dict) or name not in tools.names:
        return False
    function = CalledFunction(name=name, arguments=json.dumps(arguments, ensure_ascii=False))
    found.append(ToolCall(id=f"call_{secrets.token_hex(12)}", function=function))
    return True
