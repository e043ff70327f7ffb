"""An Ollama Modelfile for each task: its instruction, the chat template in Go, and what ends an answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fintune.files import atomic_write
from fintune.models.endings import begins_with_bos, end_tokens
from fintune.tasks import Record, Task, TaskSet

Turns = list[dict[str, str]]
_MARKS = {"system": "\u2045s\u2046", "user": "\u2045u\u2046", "assistant": "\u2045a\u2046"}


@dataclass(frozen=True)
class Frame:
    """A chat template as what stands before and after a turn of each role."""

    turns: dict[str, tuple[str, str]]
    """A template without a system role has none: the instruction then begins the user's turn."""
    without_system: str
    """What a chat begins with that has no system turn."""
    generation: str

    def text(self, turns: Turns) -> str:
        parts = [] if turns[0]["role"] == "system" else [self.without_system]
        parts += [
            "".join((before, turn["content"], after))
            for turn in turns
            for before, after in [self.turns[turn["role"]]]
        ]
        return "".join([*parts, self.generation])

    def go(self) -> str:
        """The same in Go's template language, with Ollama's variables."""
        user_before, user_after = self.turns["user"]
        cases = []
        if "system" in self.turns:
            before, after = self.turns["system"]
            cases.append(('if eq .Role "system"', f"{before}{{{{ .Content }}}}{after}"))
            cases.append(('else if eq .Role "user"', f"{user_before}{{{{ .Content }}}}{user_after}"))
        else:
            opening = f"{{{{ if not (and $.System (eq $i 1)) }}}}{user_before}{{{{ end }}}}"
            cases.append(('if eq .Role "system"', f"{user_before}{{{{ .Content }}}}\n\n"))
            cases.append(('else if eq .Role "user"', f"{opening}{{{{ .Content }}}}{user_after}"))
        before, after = self.turns["assistant"]
        cases.append(('else if eq .Role "assistant"', f"{before}{{{{ .Content }}}}{after}"))
        body = "".join(f"{{{{ {test} }}}}{text}" for test, text in cases)
        first = f"{{{{ if not .System }}}}{self.without_system}{{{{ end }}}}" if self.without_system else ""
        if "system" not in self.turns:
            first = self.without_system
        return f"{first}{{{{ range $i, $m := .Messages }}}}{body}{{{{ end }}}}{{{{ end }}}}{self.generation}"


def frame(tokenizer: Any) -> Frame | None:
    """The tokenizer's chat template as a `Frame`; None where it is none, as one that counts turns.

    What the tokenizer itself puts before every text is left out: so does Ollama's runner put it there.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    try:
        found = _derived(tokenizer, system=True) or _derived(tokenizer, system=False)
    except Exception:  # a template may raise anything of an order of roles
        found = None
    if found is None:
        return None
    literals = [
        *(part for pair in found.turns.values() for part in pair),
        found.without_system,
        found.generation,
    ]
    return None if any('"""' in text or "{{" in text for text in literals) else found


def _derived(tokenizer: Any, system: bool) -> Frame | None:
    bos = tokenizer.bos_token if begins_with_bos(tokenizer) else ""

    def render(roles: str, generation: bool = True) -> str:
        names = {"s": "system", "u": "user", "a": "assistant"}
        turns = [{"role": names[r], "content": _MARKS[names[r]]} for r in roles]
        text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation)
        return text.removeprefix(bos)

    def last(text: str, role: str) -> str:
        return text.rpartition(_MARKS[role])[2]

    head = "s" if system else ""
    if system:
        try:
            if _MARKS["system"] not in render("su"):
                return None
        except Exception:
            return None
    asked = render(f"{head}u", False)
    user_after = last(asked, "user")
    answered = render(f"{head}ua", False)
    answer_after = last(answered, "assistant")
    between = answered.partition(_MARKS["user"])[2].partition(_MARKS["assistant"])[0]
    again = render(f"{head}uau", False).partition(_MARKS["assistant"])[2].partition(_MARKS["user"])[0]
    user_before = again.removeprefix(answer_after)
    alone = render("u", False).partition(_MARKS["user"])[0]
    turns = {
        "user": (user_before, user_after),
        "assistant": (between.removeprefix(user_after), answer_after),
    }
    if system:
        before, _, rest = asked.partition(_MARKS["system"])
        turns["system"] = (before, rest.partition(_MARKS["user"])[0].removesuffix(user_before))
    generation = last(render(f"{head}u"), "user").removeprefix(user_after)
    found = Frame(turns, alone.removesuffix(user_before), generation)
    for roles in (f"{head}u", "u", f"{head}uau", "uau", f"{head}uauau"):
        names = {"s": "system", "u": "user", "a": "assistant"}
        chat = [{"role": names[r], "content": _MARKS[names[r]]} for r in roles]
        if found.text(chat) != render(roles):
            return None
    return found


def write(folder: Path, gguf: str, tokenizer: Any, tasks: TaskSet, generation: Any = None) -> list[Path]:
    """Write `Modelfile.TASK` for every task; return their paths."""
    known = frame(tokenizer)
    stops = [tokenizer.convert_ids_to_tokens(each) for each in end_tokens(tokenizer, generation)]
    return [atomic_write(folder / f"Modelfile.{t.name}", _text(gguf, t, known, stops)) for t in tasks]


def _text(gguf: str, task: Task, known: Frame | None, stops: list[str]) -> str:
    record = Record(text="TEXT", question="QUESTION" if "question" in task.inputs else None)
    body = "\n".join(f"#   {line}" for line in task.body(record).splitlines())
    template = (
        f'TEMPLATE """{known.go()}"""'
        if known
        else "# The chat template has no exact form in Go: Ollama takes the GGUF file's, if it knows it."
    )
    system = task.system(record)
    quoted = (
        f'SYSTEM """{system}"""' if '"""' not in system else "# The instruction holds three quotation marks."
    )
    parameters = "".join(f'PARAMETER stop "{stop}"\n' for stop in stops)
    return (
        f"# Task {task.name}. The user's turn is:\n{body}\n"
        f"FROM ./{gguf}\n{template}\n{quoted}\n{parameters}PARAMETER temperature 0\n"
    )
