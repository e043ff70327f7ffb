"""Writes texts token by token for several callers, each with its own limits, sampling and stops.

`decoding.greedy` writes a batch to its end; here the model computes other requests between two steps, and
sends each piece of a text as soon as it can no longer change. Knows engines and token ids, not HTTP.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fintune.inference.engine import Engine
from fintune.serving.errors import ApiError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from fintune.inference.decoding import Allowed, Watch
    from fintune.inference.grammars import Grammar

COLDEST = 1e-4
"""Lower temperatures take the likeliest token: dividing by less, logits overflow."""
_LAST_WORD = re.compile(r"\s*\S*$")


@dataclass
class Sampling:
    """How one text is written."""

    max_tokens: int = 128
    temperature: float = 0.0
    """0 always takes the likeliest token."""
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens already written."""
    frequency_penalty: float = 0.0
    """The same, multiplied by how often each was written."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    """Return each token's log-probability, with this many of the likeliest; None returns none."""
    grammar: Grammar | None = None
    """The format that the text must follow."""
    echo: str | None = None
    """The prompt's text, if the text begins with it."""

    def check_bias(self, tokens: int) -> None:
        """Raise an ApiError for an id beyond the vocabulary."""
        if wrong := [token for token in self.logit_bias if not 0 <= token < tokens]:
            message = f"logit_bias names the token {wrong[0]}, but the model's tokens are 0 to {tokens - 1}."
            raise ApiError(400, message, param="logit_bias")


@dataclass(frozen=True)
class Chance:
    """A token's text and log-probability, before penalties, biases, temperature and grammar; a prompt's first
    token has none."""

    text: str
    value: float | None
    top: tuple[tuple[str, float], ...] = ()
    start: int = 0
    """The token's position in the text."""


class Scored(str):
    """A piece of a text with its tokens."""

    chances: tuple[Chance, ...] = ()


def spelled(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """A token's text; from the vocabulary for half a character, and for a space that decoding drops."""
    text: str = tokenizer.decode([token])
    if "\ufffd" in text:
        return str(tokenizer.convert_ids_to_tokens(token))
    if not text.startswith(" ") and str(tokenizer.convert_ids_to_tokens(token)).startswith("▁"):
        return f" {text}"
    return text


@dataclass
class Writing:
    """One text being written; `emit` is called with each new piece of it."""

    prompt: Sequence[int]
    sampling: Sampling
    emit: Callable[[str], None]
    given_up: Callable[[], bool]
    """Whether nobody waits for it any more."""
    allowed: Allowed | None = None
    """Which tokens may come next, if not all may; called for prompt 0."""
    source_numbers: bool = False
    """Whether to drop a number that the limit cut off, as `Engine.predict` does."""
    ids: list[int] = field(default_factory=list)
    finish: str | None = None
    """`stop`, `length`, `cancelled` or `failed` when it has ended."""
    failed: Exception | None = None
    """The exception from choosing its next token."""
    spell: Callable[[int], str] = str
    """A token's text, for log-probabilities."""
    _sent: int = 0
    _length: int = 0
    """Characters of the text before the next token."""
    _echoed: bool = False
    _prompted: list[Chance] = field(default_factory=list)
    _chances: list[Chance] = field(default_factory=list)
    """The text not sent yet."""
    _random: torch.Generator | None = None

    def take(self, logits: torch.Tensor, ends: Collection[int], decode: Callable[[list[int]], str]) -> int:
        """Choose the next token from `logits` (V,), emit the new part of the text, and return the token."""
        if self.sampling.echo is not None and not self._echoed:
            self._emit(self.sampling.echo, self._prompted)
            self._echoed, self._prompted = True, []
        if self.sampling.max_tokens == 0:
            self.finish = "length"
            return 0
        token = self._choose(logits)
        if token in ends:
            self.finish = "stop"
        else:
            self.ids.append(token)
            if self.sampling.logprobs is not None:
                self._chances += self._scored(logits[None], [token], self._length)
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
        self._length = len(text.rstrip("\ufffd"))
        whole = self.finish is not None and not found
        chances = [each for each in self._chances if whole or each.start < ready]
        if ready > self._sent or (self.finish and chances):
            self._chances = self._chances[len(chances) :]
            self._emit(text[self._sent : ready], chances)
            self._sent = ready
        return token

    def begin(self) -> Watch | None:
        """Called, perhaps repeatedly, before the prompt is computed: the callback for its logits, if any."""
        self._prompted = []
        if self.sampling.echo is None or self.sampling.logprobs is None or self._echoed:
            return None
        self._prompted = [Chance(self.spell(self.prompt[0]), None)]
        return self._watch

    def _watch(self, logits: torch.Tensor) -> None:
        begin = len(self._prompted)
        self._prompted += self._scored(logits, self.prompt[begin : begin + len(logits)], 0)

    def _scored(self, logits: torch.Tensor, tokens: Sequence[int], start: int) -> list[Chance]:
        from fintune.inference.decoding import chances

        return [
            Chance(self.spell(token), value, tuple((self.spell(i), each) for i, each in top), start)
            for token, (value, top) in zip(
                tokens, chances(logits, tokens, self.sampling.logprobs or 0), strict=True
            )
        ]

    def _emit(self, text: str, chances: Sequence[Chance]) -> None:
        if self.sampling.logprobs is None:
            self.emit(text)
            return
        piece = Scored(text)
        piece.chances = tuple(chances)
        self.emit(piece)

    def _held(self, text: str) -> int:
        """Characters at the end that may still change: half a character, the beginning of a stop text, or a
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

        logits = self._shifted(logits)
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
            outside[0] = False  # if top_p is 0 in 32 bit, keep the likeliest
            shares = shares.index_fill(0, order[outside], 0.0)
        return int(torch.multinomial(shares, 1, generator=self._random))

    def _shifted(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits with biases and penalties; unchanged if there are none."""
        import torch

        sampling, shifts = self.sampling, dict[int, float]()
        if sampling.presence_penalty or sampling.frequency_penalty:
            for token, count in Counter(self.ids).items():
                shifts[token] = -sampling.presence_penalty - count * sampling.frequency_penalty
        for token, bias in sampling.logit_bias.items():
            shifts[token] = shifts.get(token, 0.0) + bias
        if not shifts:
            return logits
        ids = torch.tensor(list(shifts), device=logits.device)
        values = torch.tensor(list(shifts.values()), device=logits.device)
        return logits.float().index_add(0, ids, values)


def padded_tokens(writings: Sequence[Writing]) -> int:
    """The KV cache positions of texts that advance together: each has room for the longest."""
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
        # A text that was begun in another group continues.
        prompts = [[*each.prompt, *each.ids] for each in writings]
        watched = {i: watch for i, each in enumerate(writings) if (watch := each.begin())}
        more = {"watched": watched} if watched else {}
        self._texts = engine.backend.begin(prompts, longest, **more)

    def step(self) -> bool:
        """Compute a pass of the prompts, or one token for every text; False when all have ended."""
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

        ends, tokens = self.engine.ends, list[int]()
        for each, row in zip(self.writings, logits, strict=True):
            try:
                tokens.append(each.take(row, ends, decode))
            except Exception as error:  # only this text fails: the others continue
                each.finish, each.failed = "failed", error
                tokens.append(0)  # it is removed below
        self._tokens = tokens
        self._keep([i for i, each in enumerate(self.writings) if each.finish is None])
        return bool(self.writings)

    def end(self) -> None:
        """Free the memory of the texts, at whatever step."""
        self._keep([])

    @staticmethod
    def _left(writing: Writing) -> bool:
        if writing.given_up():
            writing.finish = "cancelled"
        return writing.finish is not None

    def _keep(self, rows: list[int]) -> None:
        """Drop the texts that have ended."""
        if len(rows) == len(self.writings):
            return
        self.writings = [self.writings[i] for i in rows]
        if self._tokens is not None:
            self._tokens = [self._tokens[i] for i in rows]
        self._texts.keep(rows)
