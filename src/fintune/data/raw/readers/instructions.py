"""Convert a row of instruction data, in any of the three usual shapes, to a prompt and its answer.

- OpenAI: `messages`, a list of {role, content}, with `tool_calls`, and `tools` beside it;
- ShareGPT: `conversations`, a list of {from, value}, with `function_call` and `observation`;
- Alpaca: `instruction`, `input` (may be empty), `output`, and sometimes `system`.

Knows nothing of files or tasks.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from fintune.data.raw.readers.cells import plain
from fintune.tool_calls import call_of, written

_ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatgpt", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation"), "tool"),
}
_NAMES = {"user": "User", "assistant": "Assistant", "tool": "Tool"}


def shape_of(names: Collection[str], answered: bool = True) -> str | None:
    """The column that identifies a file's shape (`messages`, `conversations`, `instruction`), if any.

    Args:
        answered: False if no column needs to hold answers.
    """
    found = [name for name in ("messages", "conversations") if name in names]
    if "instruction" in names and ("output" in names or not answered):
        found.append("instruction")
    return found[0] if found else None


def fields_of(row: Mapping[str, Any], shape: str, answered: bool = True) -> dict[str, Any] | str:
    """`text`, `question`, `turns`, `target` and `system` of a row; or why it has none.

    In a conversation, the last assistant turn is the target, the user turn before it the question, and all
    before that the text. In a first exchange the user's turn is the text, and there is no question.

    Args:
        answered: False if the answer is still to be given: the last user turn is then the prompt.
    """
    if shape == "instruction":
        try:
            parts = [plain(row.get(name), name) for name in ("instruction", "input")]
        except ValueError as error:
            return str(error)
        found = {"text": "\n\n".join(filter(None, parts)), "target": row.get("output")}
        return {**found, "system": row.get("system")}
    turns = _turns(row.get(shape))
    tools = _tools(row.get("tools"))
    if isinstance(turns, str) or isinstance(tools, str):
        return turns if isinstance(turns, str) else str(tools)
    system = "\n\n".join(turn["content"] for turn in turns if turn["role"] == "system")
    turns = [turn for turn in turns if turn["role"] != "system"]
    last = {"assistant"} if answered else {"user", "tool"}
    while turns and turns[-1]["role"] not in last:
        turns.pop()
    answer = turns.pop() if answered and turns else None
    if not any(turn["role"] == "user" for turn in turns):
        return f"its {shape} have no turn of the user{' before an answer' if answered else ''}"
    if turns[-1]["role"] not in ("user", "tool"):
        return f"its {shape} have two answers in a row"
    asked_in: Any = [[turn["role"], turn["content"]] for turn in turns]
    calls = bool(answer and "tool_calls" in answer)
    if tools or calls or any(turn["role"] == "tool" or "tool_calls" in turn for turn in turns):
        asked_in = {"tools": tools, "turns": turns, **({"answer": answer} if calls else {})}
    *before, asking = turns
    told = "\n".join(f"{_NAMES[turn['role']]}: {_said(turn)}" for turn in before)
    question = f"{_NAMES[asking['role']]}: {asking['content']}" if told else None
    return {
        "text": told or asking["content"],
        "question": question,
        "turns": json.dumps(asked_in, ensure_ascii=False),
        "target": _said(answer) if answer else None,
        "system": system or row.get("system"),
    }


def each_answer(row: Mapping[str, Any], shape: str) -> Iterator[Mapping[str, Any]]:
    """The row once per answer of its conversation, up to that answer; other rows unchanged."""
    turns = row.get(shape)
    if shape == "instruction" or not isinstance(turns, list | tuple):
        yield row
        return
    roles = [_role(turn)[1] for turn in turns if isinstance(turn, Mapping)]
    ends = [i for i, role in enumerate(roles) if role == "assistant" and "user" in roles[:i]]
    if len(roles) < len(turns) or not ends:  # `fields_of` reports what is wrong
        yield row
    else:
        yield from ({**row, shape: turns[: end + 1]} for end in ends)


def _turns(value: Any) -> list[dict[str, Any]] | str:
    """The turns in chat templates' format, or what is wrong with them."""
    if not isinstance(value, list | tuple) or not value:
        return "its conversation is not a list of turns"
    turns = []
    for number, turn in enumerate(value, start=1):
        if not isinstance(turn, Mapping):
            return f"turn {number} of its conversation is not an object"
        named, role = _role(turn)
        text = _text(turn["content"] if "content" in turn else turn.get("value"))
        if role is None:
            return f"turn {number} of its conversation has the role {named!r}, which is not a chat role"
        made: dict[str, Any] = {"role": role, "content": text}
        try:
            if str(named).casefold() == "function_call":
                made |= {"content": "", "tool_calls": _calls(json.loads(text))}
            elif role == "assistant" and turn.get("tool_calls"):
                made["tool_calls"] = _calls(turn["tool_calls"])
        except (ValueError, RecursionError):
            return (
                f"turn {number} of its conversation has a call without a name or a JSON object of arguments"
            )
        if not text and "tool_calls" not in made:
            return f"turn {number} of its conversation has no text"
        if role == "tool":
            made |= {key: turn[key] for key in ("tool_call_id", "name") if isinstance(turn.get(key), str)}
        turns.append(made)
    return turns


def _calls(value: Any) -> list[dict[str, Any]]:
    """OpenAI's or ShareGPT's calls in chat templates' format; ValueError if one is neither."""
    made = []
    for call in value if isinstance(value, list | tuple) else [value]:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not function:
            raise ValueError("a call is not an object")
        made.append(call_of(function.get("name"), function.get("arguments"), call.get("id")))
    return made


def _tools(value: Any) -> list[dict[str, Any]] | str | None:
    """The callable tools, in OpenAI's format, or what is wrong. ShareGPT has them as JSON in a text."""
    try:
        value = json.loads(value) if isinstance(value, str) and value.strip() else value
    except (ValueError, RecursionError):
        return "its tools are not JSON"
    if not isinstance(value, list | tuple):
        return None if value is None or value != value or value == "" else "its tools are not a list"
    tools = []
    for tool in value:
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            return "one of its tools has no name"
        tools.append({"type": "function", "function": _without_none(function)})
    return tools or None


def _without_none(value: Any) -> Any:
    """A JSON value without the null fields that Parquet adds."""
    if isinstance(value, Mapping):
        return {key: _without_none(each) for key, each in value.items() if each is not None}
    return [_without_none(each) for each in value] if isinstance(value, list | tuple) else value


def _said(turn: Mapping[str, Any]) -> str:
    """A turn's text, with its calls in Hermes' format."""
    calls = turn.get("tool_calls")
    return written("hermes", turn["content"], calls) if calls else turn["content"]


def _role(turn: Mapping[str, Any]) -> tuple[Any, str | None]:
    """A turn's role as in the row, and the chat role it means, if any."""
    named = turn.get("role") or turn.get("from")
    return named, _ROLES.get(str(named).casefold())


def _text(content: Any) -> str:
    """A turn's text; for content in parts, their text if there are only text parts."""
    if isinstance(content, str):
        return content.strip()
    if isinstance(content, list | tuple) and all(
        isinstance(part, Mapping) and part.get("type", "text") == "text" for part in content
    ):
        return "\n".join(str(part.get("text") or "") for part in content).strip()
    return ""
