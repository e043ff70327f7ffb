"""Which sentences of a text the numbers of a summary's bullets come from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fintune.data.sentences import bullet_lines, sentences
from fintune.evaluation.numeric import figures, unsupported_figures

MOST = 5
"""Sentences named for one bullet at most."""


@dataclass(frozen=True)
class Bullet:
    """A line of a summary, how many numbers it has, and where they stand in the source."""

    text: str
    numbers: int
    supported: int
    sources: list[str]


def bullets(summary: str, source: str) -> Iterator[Bullet]:
    """Each line of `summary` with the fewest sentences of `source` (chosen greedily) that hold its numbers.

    A number is held by a sentence under the rules of `fintune.evaluation.numeric.supported_numbers`; of two
    that hold as many, the one with more words in common counts.
    """
    parts = [part for part in sentences(source) if any(c.isalnum() for c in part)]
    words = [set(part.lower().split()) for part in parts]
    for text in bullet_lines(summary):
        numbers = figures(text)
        own = set(text.lower().split())
        held = []
        if numbers:
            for i, part in enumerate(parts):
                missing = unsupported_figures(text, part)
                if len(missing) < len(numbers):
                    held.append((i, {n for n, figure in enumerate(numbers) if figure not in missing}))
        chosen: list[int] = []
        left = set(range(len(numbers)))
        while left and held and len(chosen) < MOST:
            i, best = max(held, key=lambda pair: (len(pair[1] & left), len(words[pair[0]] & own), -pair[0]))
            if not best & left:
                break
            chosen.append(i)
            left -= best
        yield Bullet(text, len(numbers), len(numbers) - len(left), [parts[i] for i in sorted(chosen)])
