"""Texts that are written a token a step for several callers, each with its own limits, sampling and stops.

`decoding.greedy` writes a batch to its end; here the model computes other requests between two steps, and
each piece of a text is sent as soon as it cannot change any more. Knows engines and token ids, not HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fintune.inference.engine import Engine

if TYPE_CHECKING:
    import torch

    from fintune.inference.decoding import Allowed

COLDEST = 1e-4
"""Temperatures below it take the likeliest token: divided by less, logits overflow into no probabilities."""
_LAST_WORD = re.compile(r"\s*\S*$")


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
    allowed: Allowed | None = None
    """Which tokens may come next, where not all may; it is asked for the prompt 0."""
    source_numbers: bool = False
    """Whether a number that the limit cuts off is left out, as `Engine.predict` leaves it out."""
    ids: list[int] = field(default_factory=list)
    finish: str | None = None
    """`stop`, `length`, `cancelled` or `failed` once it is at its end."""
    failed: Exception | None = None
    """What was raised when its next token was chosen."""
    _sent: int = 0
    _random: torch.Generator | None = None

    def take(self, logits: torch.Tensor, end: int, decode: Callable[[list[int]], str]) -> int:
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
        if self.source_numbers and self.finish == "length":
            from fintune.inference.formats import without_cut_number

            text = without_cut_number(text)
        ready = len(text) if self.finish else len(text) - self._held(text)
        if ready > self._sent:
            self.emit(text[self._sent : ready])
            self._sent = ready
        return token

    def _held(self, text: str) -> int:
        """Characters at the end that may change yet: half a character, the beginning of a stop word, or a
        last word that may be a number."""
        last = _LAST_WORD.search(text) if self.source_numbers else None
        half = len(text) - len(text.rstrip("\ufffd"))
        starts = (
            n
            for word in self.sampling.stop
            for n in range(1, min(len(word), len(text) + 1))
            if text.endswith(word[:n])
        )
        return max(half, max(starts, default=0), len(text) - last.start() if last else 0)

    def _choose(self, logits: torch.Tensor) -> int:
        import torch

        from fintune.inference.decoding import restricted

        if self.allowed:
            logits = restricted(logits, self.allowed(0, self.ids))
        if self.sampling.temperature < COLDEST:
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
            outside[0] = False  # a top_p that is 0 in 32 bit keeps the likeliest, too
            shares = shares.index_fill(0, order[outside], 0.0)
        return int(torch.multinomial(shares, 1, generator=self._random))


def padded_tokens(writings: Sequence[Writing]) -> int:
    """The tokens whose keys and values texts that advance together take: each has room for the longest."""
    if not writings:
        return 0
    longest = max(len(each.prompt) for each in writings) + max(each.sampling.max_tokens for each in writings)
    return len(writings) * longest


class Group:
    """Texts that advance together."""

    def __init__(self, engine: Engine, use_adapter: bool, writings: Sequence[Writing]) -> None:
        self.engine = engine
        self.use_adapter = use_adapter
        self.writings = list(writings)
        self._tokens: list[int] | None = None
        longest = max(each.sampling.max_tokens - len(each.ids) for each in writings)
        # One that was begun in another group goes on.
        self._texts = engine.backend.begin([[*each.prompt, *each.ids] for each in writings], longest)

    def step(self) -> bool:
        """A pass of the prompts, or one token for every text; False when all are at their end."""
        self._keep([i for i, each in enumerate(self.writings) if not self._left(each)])
        if not self.writings:
            return False
        backend, tokenizer = self.engine.backend, self.engine.tokenizer
        with backend.session(self.use_adapter):
            logits = self._texts.advance(self._tokens)
        if logits is None:  # a part of the prompts
            return True

        def decode(ids: list[int]) -> str:
            return tokenizer.decode(ids, skip_special_tokens=True)

        end, tokens = tokenizer.eos_token_id, []
        for each, row in zip(self.writings, logits, strict=True):
            try:
                tokens.append(each.take(row, end, decode))
            except Exception as error:  # of this text alone: the others go on
                each.finish, each.failed = "failed", error
                tokens.append(end)
        self._tokens = tokens
        self._keep([i for i, each in enumerate(self.writings) if each.finish is None])
        return bool(self.writings)

    def end(self) -> None:
        """Free what the texts take, wherever they are."""
        self._keep([])

    @staticmethod
    def _left(writing: Writing) -> bool:
        if writing.given_up():
            writing.finish = "cancelled"
        return writing.finish is not None

    def _keep(self, rows: list[int]) -> None:
        """Drop the texts that are at their end."""
        if len(rows) == len(self.writings):
            return
        self.writings = [self.writings[i] for i in rows]
        if self._tokens is not None:
            self._tokens = [self._tokens[i] for i in rows]
        self._texts.keep(rows)
