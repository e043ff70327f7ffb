"""Greedy decoding of many texts at once, with any model that computes next-token logits.

Finished texts leave the batch, so that they do not slow down the long ones. Knows token ids, no models and
no tasks. Shapes: B texts, V tokens of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import torch

Choice: TypeAlias = "torch.Tensor | Sequence[int] | None"
"""Ids of the tokens that may come next; None is any token."""
Allowed = Callable[[int, Sequence[int]], Choice]
"""(index of the prompt, tokens written after it) → what may come next."""
Watch = Callable[[torch.Tensor], None]
"""Receives the (T, V) logits after the next T tokens of a prompt, repeatedly, up to its last token."""

_ROWS = 64
"""Log-probability rows computed at once: with a large vocabulary each takes half a megabyte."""
COMPACT = 0.75
"""Finished texts leave the batch once this share or less still writes: dropping them copies the cache."""


class Texts(Protocol):
    """B texts written together, one token per step, over one cache."""

    def advance(self, tokens: Sequence[int] | None) -> torch.Tensor | None:
        """Add each text's next token and return the (B, V) logits after it.

        Args:
            tokens: None computes the prompts; call again with None while it returns None (prompts in parts).
        """

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these of the B texts, in this order, and free the others' memory. [] ends all."""


@dataclass
class Generated:
    """One answer's tokens without end of text, and the log-probability of each (end included)."""

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
    """Write the most likely next token until one of `ends` or `max_new_tokens`; one answer per text.

    Args:
        texts: texts just begun; they are ended here, whatever happens.
        prompts: the index of each text's prompt, for `allowed`.
        ends: ids of the tokens that end a text.
        allowed: which tokens may come next; None allows all.
    """
    answers = [Generated() for _ in prompts]
    batch = list(range(len(answers)))  # the answer of each row of the batch
    writing = set(batch)  # the unfinished answers
    tokens: list[int] | None = None
    try:
        while writing:
            if (logits := texts.advance(tokens)) is None:
                continue
            sofar = [answers[i].ids for i in batch]
            chosen, log_probabilities = most_likely(logits, [prompts[i] for i in batch], sofar, allowed)
            tokens = chosen.tolist()
            for i, token, value in zip(batch, tokens, log_probabilities.tolist(), strict=True):
                if i not in writing:  # finished, but still in the batch
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
    """(B,) the likeliest allowed next token, and (B,) its log-probability among all tokens."""
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
    """For each of T tokens its log-probability under (T, V) logits, and the `top` likeliest with theirs."""
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
    """(V,) logits with −inf outside the token ids of `choice`; None changes nothing."""
    if choice is None:
        return logits
    chosen = torch.as_tensor(choice, device=logits.device)
    return torch.full_like(logits, float("-inf")).index_copy(0, chosen, logits[chosen])
