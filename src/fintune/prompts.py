"""Make prompts: a task and a record in, token ids out.

Training, evaluation, the demo and serving all use `PromptTemplate`, so they ask a model as it was trained.
The instruction comes first, so that all examples of a task share it as a token prefix. Only the template
emits control tokens, such as end of turn: their names inside a user's text are tokenized as plain text.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from fintune.errors import DataError
from fintune.tasks.base import Record, Task
from fintune.text.encoding import HALF
from fintune.tool_calls import Form, form_of, texts_of, with_texts, written

_PLAIN = "### Instruction:\n{instruction}\n\n### Input:\n{body}\n\n### Response:\n"


@dataclass(frozen=True)
class TokenizedExample:
    """One training example: the loss is over `completion_ids`, which end with the end-of-text token."""

    prompt_ids: list[int]
    completion_ids: list[int]
    task: str
    truncated: bool = False
    extra: Any = None
    """What a training objective keeps of the example, such as the other levels of a number."""
    weight: float = 1.0
    """Factor in the loss, on top of the task's weight."""

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


Messages = list[dict[str, Any]]
Tools = list[dict[str, Any]] | None


def _conversation(task: Task, record: Record) -> tuple[Messages, Tools, dict[str, Any] | None]:
    """A conversation's messages, system first; its tools; and the answer, if it calls any of them."""
    held = json.loads(record.turns)
    system = {"role": "system", "content": task.system(record)}
    if not record.uses_tools:
        return [system, *({"role": role, "content": text} for role, text in held)], None, None
    return [system, *held["turns"]], held["tools"], held.get("answer")


@functools.lru_cache(maxsize=8)
def _control_tokens(tokenizer: Any, size: int) -> tuple[str, ...]:
    """The names of a tokenizer's control tokens: special tokens, and added tokens in its chat template.

    Other added tokens, such as a run of spaces, are text. `size` is the vocabulary size, which may grow.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    template = str(getattr(tokenizer, "chat_template", None) or "")
    found = {
        token.content
        for token in added
        if token.special or "<|" in token.content or (token.content.strip() and token.content in template)
    }
    return tuple(sorted(name for name in found | set(tokenizer.all_special_tokens) if len(name) > 1))


def framed_ids(tokenizer: Any, frame: Callable[..., str], *texts: str, special: bool = False) -> list[int]:
    """The token ids of `frame(*texts)`, with no control token from the texts.

    The name of a control token inside a text is tokenized in two parts, so that it stays text. Texts without
    such names are tokenized together with their frame.

    Args:
        special: add the tokenizer's begin-of-text tokens.

    Raises:
        DataError: a text holds half a surrogate pair.
    """
    if any(map(HALF.search, texts)):
        raise DataError("The text holds half a character (a surrogate without its other half): remove it.")

    def ids(text: str, special: bool = False) -> list[int]:
        return tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]

    names = [name for name in _control_tokens(tokenizer, len(tokenizer)) if any(name in t for t in texts)]
    if not names:
        return ids(frame(*texts), special)
    begins = re.compile(f"(?=(?:{'|'.join(map(re.escape, names))}))(?s:.)")
    mark = next(c for c in map(chr, range(0xF0000, 0xFFFFE)) if not any(c in text for text in texts))
    first, *rest = frame(*(begins.sub(rf"\g<0>{mark}", text) for text in texts)).split(mark)
    return [*ids(first, special), *(i for part in rest for i in ids(part))]


class PromptTemplate:
    """Renders prompts with the tokenizer's chat template, or in a plain format if it has none.

    Args:
        tokenizer: the base model's, from Transformers.
        max_length: the most tokens of a training example, prompt and answer together.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.style = self._find_style()

    def prompt_text(self, task: Task, record: Record) -> str:
        """The rendered prompt; the answer's first token comes right after it."""
        if record.turns:
            return self._chat(*_conversation(task, record)[:2])
        return self._framed(task.system(record), task.body(record))

    def _framed(self, system: str, body: str) -> str:
        if self.style == "plain":
            return (self.tokenizer.bos_token or "") + _PLAIN.format(instruction=system, body=body)
        return self._chat([{"role": "system", "content": system}, {"role": "user", "content": body}])

    def _chat(self, messages: Messages, tools: Tools = None) -> str:
        """A rendered chat, up to where the assistant's next turn begins.

        If the template has no system message, the system text goes before the first turn's text.
        """
        if self.style == "plain":
            return "".join(f"{turn['role']}: {turn['content']}\n" for turn in messages) + "assistant:"
        if self.style == "user" and len(messages) > 1 and messages[0]["role"] == "system":
            system, first, *rest = messages
            messages = [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *rest]
        return self._render(messages, tools)

    def completion_ids(self, text: str) -> list[int]:
        """An answer's token ids and the end-of-text token.

        An answer is tokenized separately from its prompt, so that its tokens are the same after every prompt.
        """
        return [*self.text_ids(text), self.tokenizer.eos_token_id]

    def prompt_ids(
        self, task: Task, record: Record, budget: int, truncate: bool = True
    ) -> tuple[list[int], bool]:
        """The prompt's token ids, at most `budget`, and whether the text was shortened to fit.

        A text that does not fit is reduced to its most salient sentences if the task ranks them
        (`Task.salience`); otherwise, or if not one sentence fits, its end is cut off. A conversation that
        does not fit loses its oldest turns.

        Raises:
            DataError: the prompt is too long and `truncate` is False, or no text would be left; or the chat
                template rejects a conversation's turns.
        """
        if record.turns:
            return self._conversation_ids(task, record, budget, truncate)
        most, cut = self.most_characters(budget), False
        besides = len(record.question or "") + len(record.system or "")
        if len(record.text) + besides > most:  # check characters first: tokenizing a megabyte takes a second
            if not truncate or besides > most:
                raise DataError(
                    f"The {task.name} input has {len(record.text) + besides:,} characters, and the "
                    f"{budget} tokens that there is room for hold at most {most:,}: shorten it"
                    + ("." if truncate else ", or pass --truncate to cut it.")
                )
            if not task.salience:
                record, cut = task.with_text(record, record.text[:most]), True
        ids = self._prompt_ids(task, record)
        if len(ids) <= budget:
            return ids, cut
        if not truncate:
            raise DataError(
                f"The {task.name} prompt has {len(ids)} tokens, but there is room for {budget}: "
                "shorten the text, or pass --truncate to cut it."
            )
        if task.salience and (salient := self._salient_ids(task, record, budget)):
            return salient, True
        text_ids = self.text_ids(record.text)
        keep = len(text_ids) - (len(ids) - budget)
        while keep > 0:
            text = self.tokenizer.decode(text_ids[:keep])
            ids = self._prompt_ids(task, task.with_text(record, text))
            if len(ids) <= budget:
                return ids, True
            keep -= max(1, len(ids) - budget)  # cut text can have more tokens than were kept
        full = f"The {task.name} instruction and question alone fill the {budget} tokens there are"
        raise DataError(f"{full}: raise training.max_length.", f"{full}: shorten the question.")

    def most_characters(self, tokens: int) -> int:
        """An upper bound of characters in this many tokens: each as long as the vocabulary's longest."""
        return max(1_000, tokens * self._longest_token)

    @functools.cached_property
    def _longest_token(self) -> int:
        return max(map(len, self.tokenizer.get_vocab()), default=1)

    def example(self, task: Task, record: Record) -> TokenizedExample:
        """A training example of at most `max_length` tokens.

        If prompt and answer do not fit together, the answer keeps at least `max_length` // 2 tokens (its
        first ones and the end of text), and the text is cut to the rest.
        """
        completion = self._calls_ids(task, record) or self.completion_ids(task.completion(record))
        room = max(1, self.max_length // 2)
        if len(completion) > room:  # the answer gets more than half only if the whole prompt still fits
            room = max(room, self.max_length - len(self._prompt_ids(task, record)))
        cut = len(completion) > room
        if cut:
            completion = [*completion[: room - 1], completion[-1]]
        prompt, truncated = self.prompt_ids(task, record, self.max_length - len(completion))
        return TokenizedExample(prompt, completion, task.name, truncated or cut)

    def _salient_ids(self, task: Task, record: Record, budget: int) -> list[int] | None:
        """The prompt with as many salient sentences as fit; None if none fits."""
        assert task.salience is not None
        room = budget - len(self._prompt_ids(task, task.with_text(record, "")))
        while room > 0:
            text = task.salience.select(record.text, room, self.count_tokens, record.question)
            if not text:
                return None
            ids = self._prompt_ids(task, task.with_text(record, text))
            if len(ids) <= budget:
                return ids
            room -= len(ids) - budget  # a text can have more tokens in the prompt than alone
        return None

    def count_tokens(self, text: str) -> int:
        """The number of tokens of a text, without special tokens."""
        return len(self.text_ids(text))

    def text_ids(self, text: str) -> list[int]:
        """The token ids of a text, without control tokens."""
        return framed_ids(self.tokenizer, str, text)

    def _conversation_ids(
        self, task: Task, record: Record, budget: int, truncate: bool
    ) -> tuple[list[int], bool]:
        (messages, tools, _), cut = _conversation(task, record), False
        if record.uses_tools:
            self._check_tools(task.name)
        most = self.most_characters(budget)
        while True:
            if sum(map(len, texts_of([messages, tools]))) <= most:
                try:
                    ids = self.chat_ids(messages, tools)
                except DataError:
                    raise
                except Exception as error:  # templates reject an order of roles with any exception type
                    roles = ", ".join(turn["role"] for turn in messages)
                    raise DataError(
                        f"The model's chat template rejects a conversation of {roles}: let user and "
                        "assistant take turns, the user first."
                    ) from error
                if len(ids) <= budget:
                    return ids, cut
            if not truncate:
                raise DataError(
                    f"The {task.name} conversation does not fit the {budget} tokens that there is room for: "
                    "shorten it, or pass --truncate to leave out its oldest turns."
                )
            cut = True
            later = (i for i in range(2, len(messages)) if messages[i]["role"] == "user")
            if oldest := next(later, 0):
                del messages[1:oldest]
            elif tools or len(messages) > 2:
                raise DataError(
                    f"The {task.name} tools and last turns alone fill the {budget} tokens there are: "
                    "raise training.max_length."
                )
            if len(messages) == 2 and not tools:  # only the last turn: cut it like any text
                alone = replace(record, text=messages[1]["content"], question=None, turns="")
                ids, shortened = self.prompt_ids(task, alone, budget)
                return ids, cut or shortened

    def _calls_ids(self, task: Task, record: Record) -> list[int]:
        """The token ids of an answer that calls tools, in the template's format; [] for other answers."""
        if not record.uses_tools or not (answer := _conversation(task, record)[2]):
            return []
        form = self._check_tools(task.name)

        def frame(*texts: str) -> str:
            said = with_texts(answer, iter(texts))
            return written(form, said["content"], said["tool_calls"])

        try:
            ids = framed_ids(self.tokenizer, frame, *texts_of(answer))
        except ValueError as error:
            raise DataError(f"This model's chat template has no place for {error}.") from None
        return [*ids, self.tokenizer.eos_token_id]

    def _check_tools(self, name: str) -> Form:
        if form := form_of(self.tokenizer):
            return form
        raise DataError(
            f"The {name} data has conversations with tools, but this base's chat template has no tool format "
            "that fintune knows: use another base, or remove these rows."
        )

    def _prompt_ids(self, task: Task, record: Record) -> list[int]:
        if record.turns:
            return self.chat_ids(*_conversation(task, record)[:2])
        return framed_ids(self.tokenizer, self._framed, task.system(record), task.body(record))

    def chat_ids(self, messages: Messages, tools: Tools = None) -> list[int]:
        """The token ids of a chat, up to where the assistant's next turn begins.

        Args:
            messages: in the chat template's format.
            tools: callable tools, in OpenAI's format.

        Raises:
            Exception: whatever the chat template raises for an order of roles that it rejects.
        """

        whole = [messages, tools]

        def frame(*texts: str) -> str:
            return self._chat(*with_texts(whole, iter(texts)))

        return framed_ids(self.tokenizer, frame, *texts_of(whole))

    def _render(self, messages: Messages, tools: Tools = None) -> str:
        return self.tokenizer.apply_chat_template(
            messages, tools=tools, tokenize=False, add_generation_prompt=True
        )

    def _find_style(self) -> str:
        """`system` if the chat template takes a system message, `user` if not, `plain` without a template."""
        if not getattr(self.tokenizer, "chat_template", None):
            return "plain"
        probe = [{"role": "system", "content": "SYS"}, {"role": "user", "content": "USER"}]
        try:
            return "system" if "SYS" in self._render(probe) else "user"
        except Exception:  # a template without a system role may raise anything
            return "user"
