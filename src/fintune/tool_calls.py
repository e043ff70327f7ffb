"""Write tool calls as chat templates do, and tell a call from plain text.

Two formats are known: `<tool_call>{"name", "arguments"}</tool_call>` (Hermes, Qwen) and a bare
`{"name", "parameters"}` (Llama 3.1 and later).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

Form = Literal["hermes", "llama"]
ARGUMENTS = {"hermes": "arguments", "llama": "parameters"}
CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*(?:</tool_call>|$)", re.DOTALL)
_PROBE = {"type": "function", "function": {"name": "p7b", "description": "", "parameters": {}}}


@lru_cache(maxsize=8)
def form_of(tokenizer: Any) -> Form | None:
    """The chat template's format of calls; None if it has no tools or an unknown format."""
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        return None
    try:
        asked = [{"role": "user", "content": "?"}]
        shown = tokenizer.apply_chat_template(asked, tools=[_PROBE], tokenize=False)
    except Exception:  # a template may raise anything
        return None
    if "p7b" not in shown:
        return None
    if "<tool_call>" in shown:
        return "hermes"
    return "llama" if '"parameters"' in shown and "<function" not in shown else None


def call_of(name: Any, arguments: Any, id: Any = None) -> dict[str, Any]:
    """A call as chat templates take it.

    Args:
        arguments: an object, or its JSON; "" is an object without fields.

    Raises:
        ValueError: the name is not a text, or the arguments are not an object.
        RecursionError: the arguments' JSON is nested too deeply.
    """
    if isinstance(arguments, str):
        arguments = json.loads(arguments or "{}")
    if not isinstance(name, str) or not isinstance(arguments, Mapping):
        raise ValueError("a call needs a name and an object of arguments")
    function = {"name": name, "arguments": dict(arguments)}
    return {"type": "function", "function": function, **({"id": id} if id and isinstance(id, str) else {})}


def read_call(form: Form, text: str) -> tuple[str, Any] | None:
    """The name and the arguments of a call that a model wrote; None if the text is no call.

    The arguments may be anything; {} if there are none.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    return value["name"], value.get(ARGUMENTS[form], {})


def written(form: Form, content: str, calls: Sequence[Mapping[str, Any]]) -> str:
    """An assistant's turn that calls tools, in the given format.

    Args:
        calls: each {"function": {"name": text, "arguments": object}}, as chat templates take them.

    Raises:
        ValueError: the format has no place for several calls, or for a text beside a call.
    """
    if form == "llama" and (len(calls) > 1 or content):
        raise ValueError("several calls, or a text beside a call")
    texts = []
    for call in calls:
        function = call["function"]
        value = {"name": function["name"], ARGUMENTS[form]: function["arguments"]}
        text = json.dumps(value, ensure_ascii=False)
        texts.append(f"<tool_call>\n{text}\n</tool_call>" if form == "hermes" else text)
    return "\n".join([content, *texts] if content else texts)


def as_hermes(text: str) -> str:
    """A text with its calls, of either format, rewritten in Hermes' format; other texts unchanged."""

    def again(found: str, form: Form) -> str | None:
        if not (call := read_call(form, found)):
            return None
        return written("hermes", "", [{"function": {"name": call[0], "arguments": call[1]}}])

    bare = text.strip().removeprefix("<|python_tag|>")
    if bare.startswith("{"):
        return again(bare, "llama") or text
    return CALL.sub(lambda match: again(match[1], "hermes") or match[0], text)


_FRAME = {"role", "system", "user", "assistant", "tool", "content", "tool_calls", "type", "function", "name"}
"""Strings that chat templates compare with: they stay unchanged even if a tokenizer has such a token."""


def texts_of(value: Any) -> Iterator[str]:
    """Every text in a JSON value, keys included, in `with_texts`' order, except the template's own."""
    if isinstance(value, str):
        if value not in _FRAME:
            yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from texts_of(each)
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from texts_of([key, each])


def with_texts(value: Any, texts: Iterator[str]) -> Any:
    """The same value with `texts` in place of those that `texts_of` yields."""
    if isinstance(value, str):
        return value if value in _FRAME else next(texts)
    if isinstance(value, list | tuple):
        return [with_texts(each, texts) for each in value]
    if isinstance(value, dict):
        return {with_texts(key, texts): with_texts(each, texts) for key, each in value.items()}
    return value
