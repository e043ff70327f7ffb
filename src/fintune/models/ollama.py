"""Write an Ollama Modelfile per task: its instruction, the chat template in Go, and the stop tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fintune.files import atomic_write
from fintune.models.endings import begins_with_bos, end_tokens
from fintune.prompts import PromptTemplate
from fintune.tasks import Record, Task, TaskSet

Turns = list[dict[str, str]]
_MARKS = {"system": "\u2045s\u2046", "user": "\u2045u\u2046", "assistant": "\u2045a\u2046"}


@dataclass(frozen=True)
class Frame:
    """A chat template as the text before and after a turn of each role."""

    turns: dict[str, tuple[str, str]]
    """None if the template has no system role: the instruction then begins the user's turn."""
    without_system: str
    """How a chat without a system turn begins."""
    generation: str

    def text(self, turns: Turns) -> str:
        parts = [] if turns[0]["role"] == "system" else [self.without_system]
        for turn in turns:
            before, after = self.turns[turn["role"]]
            parts.append(f"{before}{turn['content']}{after}")
        return "".join([*parts, self.generation])

    def go(self) -> str:
        """The template in Go's template language, with Ollama's variables."""
        content, end = _act(".Content"), _act("end")
        before, after = self.turns["user"]
        first, user = self.without_system, f"{before}{content}{after}"
        if "system" in self.turns:
            system = content.join(self.turns["system"])
            first = f"{_act('if not .System')}{first}{end}" if first else ""
        else:
            system = f"{before}{content}\n\n"
            user = f"{_act('if not (and $.System (eq $i 1))')}{before}{end}{content}{after}"
        texts = {"system": system, "user": user, "assistant": content.join(self.turns["assistant"])}
        body = "".join(
            _act(f'{"else " if role != "system" else ""}if eq .Role "{role}"') + text
            for role, text in texts.items()
        )
        return f"{first}{_act('range $i, $m := .Messages')}{body}{end}{end}{self.generation}"


def _act(text: str) -> str:
    return "{{ " + text + " }}"


def frame(tokenizer: Any) -> Frame | None:
    """The tokenizer's chat template as a `Frame`; None if impossible, such as for one that counts turns.

    Leaves out what the tokenizer puts before every text, because Ollama's runner adds it too.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    try:
        found = _derived(tokenizer, PromptTemplate(tokenizer, 1).style == "system")
    except Exception:  # a template may raise anything for an order of roles
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

    def chat(roles: str) -> Turns:
        names = ({"s": "system", "u": "user", "a": "assistant"}[r] for r in roles)
        return [{"role": name, "content": _MARKS[name]} for name in names]

    def render(roles: str, ask: bool = True) -> str:
        text: str = tokenizer.apply_chat_template(chat(roles), tokenize=False, add_generation_prompt=ask)
        return text.removeprefix(bos)

    def last(text: str, role: str) -> str:
        return text.rpartition(_MARKS[role])[2]

    head = "s" if system else ""
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
        if found.text(chat(roles)) != render(roles):
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
    quoted = f'SYSTEM """{system}"""' if '"""' not in system else "# The instruction contains triple quotes."
    parameters = "".join(f'PARAMETER stop "{stop}"\n' for stop in stops)
    return (
        f"# Task {task.name}. The user's turn is:\n{body}\n"
        f"FROM ./{gguf}\n{template}\n{quoted}\n{parameters}PARAMETER temperature 0\n"
    )
