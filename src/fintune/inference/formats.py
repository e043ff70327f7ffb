"""Formats of generated text as the tokens that may come next: bullet points, or a passage of the text.

Knows tokenizers and token ids, no models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fintune.inference.generation import Allowed
from fintune.tasks.base import TextFormat


def allowed_tokens(text_format: TextFormat | None, tokenizer: Any, texts: Sequence[str]) -> Allowed | None:
    """What `generation.greedy` asks before each token; None where nothing is constrained.

    Args:
        texts: the text of each record, from which passages may be copied.
    """
    if text_format is None:
        return None
    if text_format.copy_spans:
        passages = [_Passage(tokenizer, text) for text in texts]
        return lambda row, sofar: passages[row].next(sofar)
    if text_format.bullets:
        bullets = _Bullets(tokenizer, text_format.bullets, text_format.bullet_tokens)
        return lambda row, sofar: bullets.next(sofar)
    return None


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


class _Bullets:
    """Lines that begin with a dash, at most `count` of them, each of at most `tokens` tokens."""

    def __init__(self, tokenizer: Any, count: int, tokens: int | None) -> None:
        import torch

        self.count, self.tokens = count, tokens
        self.end = tokenizer.eos_token_id
        (self.line,) = _ids(tokenizer, "\n")
        self.dash = _ids(tokenizer, "-")[0]
        size = len(tokenizer)
        pieces = tokenizer.batch_decode([[i] for i in range(size)])
        # Tokens with a line end inside another text would begin lines that are not counted.
        hidden = {i for i, piece in enumerate(pieces) if "\n" in piece and i != self.line}
        special = set(tokenizer.all_special_ids) - {self.end}
        inside = [i for i in range(size) if i not in hidden and i not in special]
        self.any = torch.tensor(inside)
        self.no_line = torch.tensor([i for i in inside if i != self.line])
        self.word = torch.tensor([i for i in inside if i not in (self.line, self.end)])

    def next(self, sofar: Sequence[int]) -> Any:
        lines = list(sofar).count(self.line)
        begun = 0
        for token in reversed(sofar):
            if token == self.line:
                break
            begun += 1
        if begun == 0:
            return [self.dash]
        final = lines + 1 >= self.count
        if self.tokens is not None and begun >= self.tokens:
            return [self.end] if final else [self.line, self.end]
        if begun < 2:  # a dash alone is no point
            return self.word
        return self.no_line if final else self.any


class _Passage:
    """A run of the text's tokens, from any of them on, to any end."""

    def __init__(self, tokenizer: Any, text: str) -> None:
        self.end = tokenizer.eos_token_id
        self.ids = _ids(tokenizer, text)
        # An answer begins without the space that its first word has inside the text.
        bare = [_ids(tokenizer, tokenizer.decode([i]).lstrip()) for i in self.ids]
        self.starts = [ids[0] if len(ids) == 1 else None for ids in bare]

    def next(self, sofar: Sequence[int]) -> Sequence[int]:
        if not sofar:
            return sorted({i for i in self.starts if i is not None}) or [self.end]
        at = [i + 1 for i, first in enumerate(self.starts) if first == sofar[0]]
        for token in sofar[1:]:
            at = [i + 1 for i in at if i < len(self.ids) and self.ids[i] == token]
        return sorted({self.ids[i] for i in at if i < len(self.ids)} | {self.end})
