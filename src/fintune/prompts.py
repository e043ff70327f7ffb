"""Task and record in, token ids out: the one place where prompts are made.

Training, evaluation, the demo and serving all use `PromptTemplate`, so a model is asked as it was trained.
The instruction comes first, so that all examples of a task share it as a token prefix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fintune.errors import DataError
from fintune.tasks.base import Record, Task

_PLAIN = "### Instruction:\n{instruction}\n\n### Input:\n{body}\n\n### Response:\n"


@dataclass(frozen=True)
class TokenizedExample:
    """One training example: the loss is over `completion_ids`, which end with the end-of-text token."""

    prompt_ids: list[int]
    completion_ids: list[int]
    task: str
    truncated: bool = False
    extra: Any = None
    """What a training objective keeps of it, such as the other levels of a number."""
    weight: float = 1.0
    """Factor in the loss, besides the weight of its task."""

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


class PromptTemplate:
    """Renders prompts with the tokenizer's chat template, or in a plain format if it has none.

    Args:
        tokenizer: of the base model, from Transformers.
        max_length: the most tokens of a training example, prompt and answer together.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self._style = self._find_style()

    def prompt_text(self, task: Task, record: Record) -> str:
        """The rendered prompt; the answer's first token comes right after it."""
        system, body = task.system(record), task.body(record)
        if self._style == "plain":
            return (self.tokenizer.bos_token or "") + _PLAIN.format(instruction=system, body=body)
        if self._style == "system":
            messages = [{"role": "system", "content": system}, {"role": "user", "content": body}]
        else:
            messages = [{"role": "user", "content": f"{system}\n\n{body}"}]
        return self._render(messages)

    def completion_ids(self, text: str) -> list[int]:
        """An answer's token ids and the end-of-text token.

        An answer is tokenized apart from its prompt, so that its tokens are the same after every prompt.
        """
        return [*self._ids(text), self.tokenizer.eos_token_id]

    def prompt_ids(
        self, task: Task, record: Record, budget: int, truncate: bool = True
    ) -> tuple[list[int], bool]:
        """The prompt's token ids, at most `budget` of them, and whether the text was shortened to fit.

        A text that does not fit is replaced by its most salient sentences if the task ranks them
        (`Task.salience`); otherwise, and if not one sentence fits, its end is cut off.

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
            keep -= max(1, len(ids) - budget)  # a cut text may need more tokens than were kept of it
        raise DataError(
            f"The {task.name} instruction and question alone fill the {budget} tokens there are: "
            "raise training.max_length."
        )

    def example(self, task: Task, record: Record) -> TokenizedExample:
        """A training example of at most `max_length` tokens.

        If prompt and answer do not fit together, the answer keeps at least `max_length` // 2 of its tokens
        (its first ones and the end of text), and the text is cut to the rest.
        """
        completion = self.completion_ids(task.completion(record))
        room = max(1, self.max_length // 2)
        if len(completion) > room:  # more than half is the answer's if the whole prompt leaves it
            room = max(room, self.max_length - len(self._ids(self.prompt_text(task, record))))
        cut = len(completion) > room
        if cut:
            completion = [*completion[: room - 1], completion[-1]]
        prompt, truncated = self.prompt_ids(task, record, self.max_length - len(completion))
        return TokenizedExample(prompt, completion, task.name, truncated or cut)

    def _salient_ids(self, task: Task, record: Record, budget: int) -> list[int] | None:
        """The prompt with as many salient sentences as fit; None if not one does."""
        assert task.salience is not None
        room = budget - len(self._ids(self.prompt_text(task, task.with_text(record, ""))))
        while room > 0:
            text = task.salience.select(record.text, room, self.count_tokens, record.question)
            if not text:
                return None
            ids = self._ids(self.prompt_text(task, task.with_text(record, text)))
            if len(ids) <= budget:
                return ids
            room -= len(ids) - budget  # a text may have more tokens in the prompt than alone
        return None

    def count_tokens(self, text: str) -> int:
        """The number of tokens of a text alone, without special ones."""
        return len(self._ids(text))

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def _render(self, messages: list[dict[str, str]]) -> str:
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def _find_style(self) -> str:
        """`system` if the chat template takes a system message, `user` if not, `plain` without a template."""
        if not getattr(self.tokenizer, "chat_template", None):
            return "plain"
        probe = [{"role": "system", "content": "SYS"}, {"role": "user", "content": "USER"}]
        try:
            return "system" if "SYS" in self._render(probe) else "user"
        except Exception:  # a template without a system role may raise anything
            return "user"
