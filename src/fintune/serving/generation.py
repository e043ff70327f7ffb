"""Text, a token a step, for several callers at once: each with its own limits, sampling and stops.

A group starts together and keeps one cache; between its steps the model is free for others. Knows models and
token ids, nothing of HTTP.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fintune.inference.engine import Engine


@dataclass
class Sampling:
    """How one text is written."""

    max_tokens: int = 128
    temperature: float = 0.0
    """0 takes the likeliest token always."""
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None


@dataclass
class Writing:
    """One text in the making; `emit` is called with each new piece of it."""

    prompt: Sequence[int]
    sampling: Sampling
    emit: Callable[[str], None]
    given_up: Callable[[], bool]
    """Whether nobody waits for it any more."""
    ids: list[int] = field(default_factory=list)
    finish: str | None = None
    """`stop`, `length` or `cancelled` once it is at its end."""
    _sent: int = 0
    _random: Any = None

    def take(self, logits: Any, end: int, decode: Callable[[list[int]], str]) -> int:
        """Choose the next token from `logits` (V,), emit what is new of the text; returns the token."""
        token = self._choose(logits)
        if token == end:
            self.finish = "stop"
        else:
            self.ids.append(token)
            if len(self.ids) >= self.sampling.max_tokens:
                self.finish = "length"
        text = decode(self.ids)
        found = [at for word in self.sampling.stop if (at := text.find(word, max(0, self._sent))) >= 0]
        if found:
            text, self.finish = text[: min(found)], "stop"
        ready = len(text) if self.finish else len(text) - self._held(text)
        if ready > self._sent:
            self.emit(text[self._sent : ready])
            self._sent = ready
        return token

    def _held(self, text: str) -> int:
        """Characters at the end that may change yet: half a character, or the beginning of a stop word."""
        half = len(text) - len(text.rstrip("\ufffd"))
        starts = (n for word in self.sampling.stop for n in range(1, len(word)) if text.endswith(word[:n]))
        return max(half, max(starts, default=0))

    def _choose(self, logits: Any) -> int:
        import torch

        if self.sampling.temperature == 0:
            return int(logits.argmax())
        if self._random is None:
            self._random = torch.Generator()
            if self.sampling.seed is None:
                self._random.seed()
            else:
                self._random.manual_seed(self.sampling.seed)
        shares = (logits.float().cpu() / self.sampling.temperature).softmax(0)
        if self.sampling.top_p < 1:  # the nucleus of Holtzman et al. (2020)
            ordered, order = shares.sort(descending=True)
            outside = ordered.cumsum(0) - ordered >= self.sampling.top_p
            shares = shares.index_fill(0, order[outside], 0.0)
        return int(torch.multinomial(shares, 1, generator=self._random))


class Group:
    """Texts that advance together, left-padded, over one cache."""

    def __init__(self, engine: Engine, use_adapter: bool, writings: Sequence[Writing]) -> None:
        import torch
        from transformers import DynamicCache

        self.engine = engine
        self.use_adapter = use_adapter
        self.writings = list(writings)
        longest = max(len(each.prompt) for each in writings)
        pad = engine.tokenizer.pad_token_id
        rows = [[pad] * (longest - len(each.prompt)) + list(each.prompt) for each in writings]
        mask = [[0] * (longest - len(each.prompt)) + [1] * len(each.prompt) for each in writings]
        self._ids = torch.tensor(rows, device=engine.model.device)
        self._mask = torch.tensor(mask, device=engine.model.device)
        self._cache = DynamicCache()

    def step(self) -> bool:
        """One token for every text; False when all are at their end."""
        import torch

        from fintune.models.lora_config import mixed_precision

        self._keep([i for i, each in enumerate(self.writings) if not self._left(each)])
        if not self.writings:
            return False
        model, tokenizer = self.engine.model, self.engine.tokenizer
        positions = (self._mask.cumsum(1) - 1).clamp(min=0)[:, -self._ids.shape[1] :]
        off = contextlib.nullcontext() if self.use_adapter else _without_adapter(model)
        with torch.no_grad(), off, mixed_precision(model, self.engine.peft_forwards):
            logits = model(
                input_ids=self._ids,
                attention_mask=self._mask,
                position_ids=positions,
                cache=self._cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]

        def decode(ids: list[int]) -> str:
            return tokenizer.decode(ids, skip_special_tokens=True)

        end = tokenizer.eos_token_id
        chosen = [each.take(row, end, decode) for each, row in zip(self.writings, logits, strict=True)]
        self._ids = torch.tensor(chosen, device=model.device)[:, None]
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(chosen), 1)], dim=1)
        self._keep([i for i, each in enumerate(self.writings) if each.finish is None])
        return bool(self.writings)

    @staticmethod
    def _left(writing: Writing) -> bool:
        if writing.given_up():
            writing.finish = "cancelled"
        return writing.finish is not None

    def _keep(self, rows: list[int]) -> None:
        """Drop the texts that are at their end, with their part of the cache."""
        import torch

        if len(rows) == len(self.writings):
            return
        self.writings = [self.writings[i] for i in rows]
        index = torch.tensor(rows, dtype=torch.int64, device=self._ids.device)
        self._ids, self._mask = self._ids[index], self._mask[index]
        if rows and self._cache.get_seq_length():
            self._cache.batch_select_indices(index)


def _without_adapter(model: Any) -> Any:
    return model.disable_adapter() if hasattr(model, "disable_adapter") else contextlib.nullcontext()
