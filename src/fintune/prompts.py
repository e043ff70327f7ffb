"""Task and record in, token ids out: the one place where prompts are made.

Training, evaluation, the demo and serving all call `PromptTemplate`, so a model is asked exactly as it
was trained. The instruction comes first, so that all examples of a task share it as a token prefix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fintune.errors import DataError
from fintune.tasks.base import Record, Task

_PLAIN = "### Instruction:\n{instruction}\n\n### Input:\n{body}\n\n### Response:\n"


@dataclass(frozen=True)
class TokenizedExample:
    """One training example: `prompt_ids` are read, `completion_ids` (with end of text) are learnt."""

    prompt_ids: list[int]
    completion_ids: list[int]
    task: str
    truncated: bool = False
    extra: Any = None
    """What a training objective keeps of it, such as the other levels of a number."""
    weight: float = 1.0
    """In the loss, times that of its task."""

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


class PromptTemplate:
    """Renders prompts with the tokenizer's chat template, or a plain format where it has none."""

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self._style = self._find_style()

    def prompt_text(self, task: Task, record: Record) -> str:
        """The rendered prompt, up to where the answer begins."""
        system, body = task.system(record), task.body(record)
        if self._style == "plain":
            return (self.tokenizer.bos_token or "") + _PLAIN.format(instruction=system, body=body)
        if self._style == "system":
            messages = [{"role": "system", "content": system}, {"role": "user", "content": body}]
        else:
            messages = [{"role": "user", "content": f"{system}\n\n{body}"}]
        return self._render(messages)

    def completion_ids(self, text: str) -> list[int]:
        """An answer's token ids with the end-of-text token; tokenized apart from the prompt."""
        return [*self._ids(text), self.tokenizer.eos_token_id]

    def prompt_ids(
        self, task: Task, record: Record, budget: int, truncate: bool = True
    ) -> tuple[list[int], bool]:
        """The prompt's token ids, at most `budget` of them, and whether the text was cut to fit.

        Where the task has a `salience`, the sentences it chooses stand for a text that does not fit. Without
        one, or where not one sentence fits, the end is cut off.

        Raises:
            DataError: the prompt is too long and `truncate` is False, or no text would be left.
        """
        ids = self._ids(self.prompt_text(task, record))
        if len(ids) <= budget:
            return ids, False
        if not truncate:
            raise DataError(
                f"The {task.name} prompt has {len(ids)} tokens, but there is room for {budget}: "
                "shorten the text, or pass --truncate to cut it."
            )
        if task.salience and (salient := self._salient_ids(task, record, budget)):
            return salient, True
        text_ids = self._ids(record.text)
        keep = len(text_ids) - (len(ids) - budget)
        while keep > 0:
            text = self.tokenizer.decode(text_ids[:keep])
            ids = self._ids(self.prompt_text(task, task.with_text(record, text)))
            if len(ids) <= budget:
                return ids, True
            keep -= max(1, len(ids) - budget)  # the cut text may tokenize longer
        raise DataError(
            f"The {task.name} instruction and question alone fill the {budget} tokens there are: "
            "raise training.max_length."
        )

    def example(self, task: Task, record: Record) -> TokenizedExample:
        """A training example of at most `max_length` tokens.

        Where prompt and answer do not fit, the answer keeps at most its first half of `max_length` tokens
        (the last is the end of text), and the text is cut to what is left.
        """
        completion = self.completion_ids(task.completion(record))
        room = max(1, self.max_length // 2)
        if len(completion) > room:
            room = max(room, self.max_length - len(self._ids(self.prompt_text(task, record))))
        cut = len(completion) > room
        if cut:
            completion = [*completion[: room - 1], completion[-1]]
        prompt, truncated = self.prompt_ids(task, record, self.max_length - len(completion))
        return TokenizedExample(prompt, completion, task.name, truncated or cut)

    def _salient_ids(self, task: Task, record: Record, budget: int) -> list[int] | None:
        """The prompt with the salient sentences that fit; None where not one does."""
        assert task.salience is not None
        room = budget - len(self._ids(self.prompt_text(task, task.with_text(record, ""))))
        while room > 0:
            text = task.salience.select(record.text, room, self.count_tokens, record.question)
            if not text:
                return None
            ids = self._ids(self.prompt_text(task, task.with_text(record, text)))
            if len(ids) <= budget:
                return ids
            room -= len(ids) - budget  # in the prompt the text may have more tokens than alone
        return None

    def count_tokens(self, text: str) -> int:
        return len(self._ids(text))

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def _render(self, messages: list[dict[str, str]]) -> str:
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def _find_style(self) -> str:
        """`system` where the chat template takes a system message, `user` where not, else `plain`."""
        if not getattr(self.tokenizer, "chat_template", None):
            return "plain"
        probe = [{"role": "system", "content": "SYS"}, {"role": "user", "content": "USER"}]
        try:
            return "system" if "SYS" in self._render(probe) else "user"
        except Exception:  # templates refuse the system role by raising what they like
            return "user"
