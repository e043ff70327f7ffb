"""A row of instruction data, in any of the three usual shapes, as a prompt and its answer.

- OpenAI: `messages`, a list of {role, content};
- ShareGPT: `conversations`, a list of {from, value};
- Alpaca: `instruction`, `input` (may be empty), `output`, and sometimes `system`.

Knows nothing of files or tasks.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from fintune.data.raw.readers.cells import plain

_ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatgpt"), "assistant"),
}
_NAMES = {"user": "User", "assistant": "Assistant"}


def shape_of(names: Collection[str], answered: bool = True) -> str | None:
    """The column that gives a file's shape away (`messages`, `conversations`, `instruction`), if one does.

    Args:
        answered: False where no column has to hold the answers.
    """
    found = [name for name in ("messages", "conversations") if name in names]
    if "instruction" in names and ("output" in names or not answered):
        found.append("instruction")
    return found[0] if found else None


def fields_of(row: Mapping[str, Any], shape: str, answered: bool = True) -> dict[str, Any] | str:
    """`text`, `question`, `turns`, `target` and `system` of a row; or why it has none.

    Of a conversation the last assistant turn is the target, the user's turn before it the question, and
    what came before that the text; a first exchange has its user's turn as text, and no question.

    Args:
        answered: False where the answer is still to be given: the last user turn is what is asked.
    """
    if shape == "instruction":
        try:
            parts = [plain(row.get(name), name) for name in ("instruction", "input")]
        except ValueError as error:
            return str(error)
        found = {"text": "\n\n".join(filter(None, parts)), "target": row.get("output")}
        return {**found, "system": row.get("system")}
    turns = _turns(row.get(shape))
    if isinstance(turns, str):
        return turns
    system = "\n\n".join(text for role, text in turns if role == "system")
    turns = [turn for turn in turns if turn[0] != "system"]
    last = "assistant" if answered else "user"
    while turns and turns[-1][0] != last:
        turns.pop()
    target = turns.pop()[1] if answered and turns else None
    if not turns:
        return f"its {shape} have no turn of the user{' before an answer' if answered else ''}"
    if turns[-1][0] != "user":
        return f"its {shape} have two answers in a row"
    asked_in = json.dumps(turns, ensure_ascii=False)
    question = turns.pop()[1]
    told = "\n".join(f"{_NAMES[role]}: {text}" for role, text in turns)
    asked = {"text": told, "question": f"User: {question}"} if told else {"text": question, "question": None}
    return {**asked, "turns": asked_in, "target": target, "system": system or row.get("system")}


def each_answer(row: Mapping[str, Any], shape: str) -> Iterator[Mapping[str, Any]]:
    """The row once for each answer of its conversation, up to that answer; any other row as it is."""
    turns = row.get(shape)
    if shape == "instruction" or not isinstance(turns, list | tuple):
        yield row
        return
    roles = [_role(turn)[1] for turn in turns if isinstance(turn, Mapping)]
    ends = [i for i, role in enumerate(roles) if role == "assistant" and "user" in roles[:i]]
    if len(roles) < len(turns) or not ends:  # `fields_of` says what is wrong with it
        yield row
    else:
        yield from ({**row, shape: turns[: end + 1]} for end in ends)


def _turns(value: Any) -> list[tuple[str, str]] | str:
    """(role, text) of each turn; or what is wrong with them."""
    if not isinstance(value, list | tuple) or not value:
        return "its conversation is not a list of turns"
    turns = []
    for number, turn in enumerate(value, start=1):
        if not isinstance(turn, Mapping):
            return f"turn {number} of its conversation is not an object"
        named, role = _role(turn)
        text = _text(turn["content"] if "content" in turn else turn.get("value"))
        if role is None:
            return f"turn {number} of its conversation has the role {named!r}, which is none of a chat's"
        if not text:
            return f"turn {number} of its conversation has no text"
        turns.append((role, text))
    return turns


def _role(turn: Mapping[str, Any]) -> tuple[Any, str | None]:
    """A turn's role as the row has it, and as a chat does, if it is one."""
    named = turn.get("role") or turn.get("from")
    return named, _ROLES.get(str(named).casefold())


def _text(content: Any) -> str:
    """A turn's text; of content in parts, that of the text parts, if there are no others."""
    if isinstance(content, str):
        return content.strip()
    if isinstance(content, list | tuple) and all(
        isinstance(part, Mapping) and part.get("type", "text") == "text" for part in content
    ):
        return "\n".join(str(part.get("text") or "") for part in content).strip()
    return ""
