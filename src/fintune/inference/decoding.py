"""Greedy decoding of many texts at once, over whatever computes their next logits.

Texts that are at their end leave the batch, so that the long ones do not wait for them. Knows token ids, no
models and no tasks. Shapes: B texts, V tokens of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import torch

Choice: TypeAlias = "torch.Tensor | Sequence[int] | None"
"""The ids of the tokens that may come next; None is any token."""
Allowed = Callable[[int, Sequence[int]], Choice]
"""(Number of the prompt, the tokens that were written after it) → what may come next."""
Watch = Callable[[torch.Tensor], None]
"""Is given the (T, V) logits after the next T tokens of a prompt, until it has those after its last."""

_ROWS = 64
"""Rows of log-probabilities computed at once: of a large vocabulary each takes half a megabyte."""
COMPACT = 0.75
"""When no more than this share of the batch still writes, the others leave it: that copies the cache."""


class Texts(Protocol):
    """B texts that are written together, a token a step, over one cache."""

    def advance(self, tokens: Sequence[int] | None) -> torch.Tensor | None:
        """Add each text's next token and return the (B, V) logits after it.

        Args:
            tokens: None computes the prompts: a part of them where it returns None, to be called again.
        """

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these of the B texts alone, in this order; free what the others take. [] ends all."""


@dataclass
class Generated:
    """The tokens of one answer, end of text left out, and the log-probability of each (end included)."""

    ids: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)

    @property
    def probability(self) -> float:
        """The geometric mean of the tokens' probabilities."""
        return math.exp(sum(self.log_probabilities) / max(1, len(self.log_probabilities)))


def greedy(
    texts: Texts,
    prompts: Sequence[int],
    max_new_tokens: int,
    ends: Collection[int],
    allowed: Allowed | None = None,
) -> list[Generated]:
    """The most likely next token again and again, until one of `ends` or `max_new_tokens`; one answer a text.

    Args:
        texts: as they were begun; they are ended here, whatever happens.
        prompts: the number of each text's prompt, for `allowed`.
        ends: the ids of the tokens that end a text.
        allowed: which tokens may come next, where not all may.
    """
    answers = [Generated() for _ in prompts]
    batch = list(range(len(answers)))  # the answer that each row of the batch belongs to
    writing = set(batch)  # the answers that are not at their end
    tokens: list[int] | None = None
    try:
        while writing:
            if (logits := texts.advance(tokens)) is None:
                continue
            sofar = [answers[i].ids for i in batch]
            chosen, log_probabilities = most_likely(logits, [prompts[i] for i in batch], sofar, allowed)
            tokens = chosen.tolist()
            for i, token, value in zip(batch, tokens, log_probabilities.tolist(), strict=True):
                if i not in writing:  # it waits to be dropped
                    continue
                answers[i].log_probabilities.append(value)
                if token not in ends:
                    answers[i].ids.append(token)
                if token in ends or len(answers[i].ids) == max_new_tokens:
                    writing.discard(i)
            if writing and len(writing) <= COMPACT * len(batch):
                rows = [row for row, i in enumerate(batch) if i in writing]
                texts.keep(rows)
                batch, tokens = [batch[row] for row in rows], [tokens[row] for row in rows]
        return answers
    finally:
        texts.keep([])


def most_likely(
    logits: torch.Tensor, prompts: Sequence[int], sofar: Sequence[Sequence[int]], allowed: Allowed | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B,) the likeliest of the tokens that may come next, and (B,) its log-probability among all tokens."""
    logits = logits.float()
    scores = logits
    if allowed is not None:
        scores = torch.stack(
            [
                restricted(row, allowed(prompt, ids))
                for row, prompt, ids in zip(logits, prompts, sofar, strict=True)
            ]
        )
    tokens = scores.argmax(dim=1)
    return tokens, logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(dim=1)


def chances(
    logits: torch.Tensor, tokens: Sequence[int], top: int
) -> list[tuple[float, list[tuple[int, float]]]]:
    """Of each of T tokens its log-probability under (T, V) logits, and the `top` likeliest with theirs."""
    found: list[tuple[float, list[tuple[int, float]]]] = []
    for start in range(0, len(tokens), _ROWS):
        part = tokens[start : start + _ROWS]
        rows = logits[start : start + len(part)].float().log_softmax(1).cpu()
        own = rows.gather(1, torch.tensor(part)[:, None])[:, 0].tolist()
        values, ids = rows.topk(min(top, rows.shape[1]), dim=1)
        best = zip(ids.tolist(), values.tolist(), strict=True)
        found += [(value, list(zip(*pair, strict=True))) for value, pair in zip(own, best, strict=True)]
    return found


def restricted(logits: torch.Tensor, choice: Choice) -> torch.Tensor:
    """(V,) logits, −inf outside the token ids of `choice`; None leaves them as they are."""
    if choice is None:
        return logits
    chosen = torch.as_tensor(choice, device=logits.device)
    return torch.full_like(logits, float("-inf")).index_copy(0, chosen, logits[chosen])
