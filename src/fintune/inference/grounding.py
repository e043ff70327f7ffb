"""Finds where in its text an answer comes from: returns character spans.

Compares the written words only; it uses no model, and a span is evidence, not proof.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

from fintune.text.numbers import figures, stated_values
from fintune.text.sentences import sentences

Span = tuple[int, int]
"""Index of the first character, and of the one after the last."""

SHARED_WORDS = 0.5
"""A sentence supports a bullet if it has this share of its words, or one of its figures."""
LONGEST_ANSWER = 120
"""The most words of an answer that are aligned with its text."""
_WORD = re.compile(r"\d[\d,.]*\d|\w+")
_COMMON = frozenset(
    "a an and are as at be been by for from has have in is it its of on or our that the their this to was we "
    "were will with".split()
)


def sentence_spans(text: str) -> list[Span]:
    """The span of each sentence."""
    spans, start = [], 0
    for sentence in sentences(text):
        start = text.index(sentence, start)
        spans.append((start, start + len(sentence)))
        start += len(sentence)
    return spans


def bullet_sources(text: str, lines: Sequence[str]) -> list[list[Span]]:
    """For each bullet, the sentences that contain its figures and words, in the text's order.

    First the sentence that shares most; a figure counts as much as all words together. Then, for each figure
    missing in it, the sentence that has the figure and shares most words. [] if nothing is shared.
    """
    spans = sentence_spans(text)
    words = [_words(text[start:end]) for start, end in spans]
    values = [stated_values(text[start:end]) for start, end in spans]
    return [[spans[i] for i in _sources(line, words, values)] for line in lines]


def _sources(line: str, words: Sequence[set[str]], values: Sequence[set[str]]) -> list[int]:
    wanted, left = _words(line), {figure.key for figure in figures(line)}
    alike = [len(wanted & found) / max(1, len(wanted)) for found in words]
    chosen: list[int] = []
    while True:
        scores = [len(left & found) + share for found, share in zip(values, alike, strict=True)]
        best = max(range(len(scores)), key=scores.__getitem__, default=None)
        if best is None or best in chosen:
            break
        if not left & values[best] and (chosen or alike[best] < SHARED_WORDS):
            break
        chosen.append(best)
        left -= values[best]
        if not left:
            break
    return sorted(chosen)


def answer_spans(text: str, answer: str) -> list[Span]:
    """The places in the text that an answer comes from.

    The answer word for word, ignoring case and spacing; otherwise the longest common runs of three or more
    words, or with a figure; [] if there are none.
    """
    found = [match.group() for match in _WORD.finditer(answer)]
    if not found:
        return []
    exact = re.search(r"(?<!\w)" + r"\W+".join(map(re.escape, found)) + r"(?!\w)", text, re.IGNORECASE)
    if exact:
        return [_with_signs(text, *exact.span())]
    places = [match.span() for match in _WORD.finditer(text)]
    here = [text[start:end].lower() for start, end in places]
    there = [word.lower() for word in found[:LONGEST_ANSWER]]
    spans = []
    for block in SequenceMatcher(None, here, there, autojunk=False).get_matching_blocks():
        run = here[block.a : block.a + block.size]
        if len(run) >= 3 or any(word[0].isdigit() for word in run):
            spans.append(_with_signs(text, places[block.a][0], places[block.a + block.size - 1][1]))
    return spans


def _with_signs(text: str, start: int, end: int) -> Span:
    """The span extended by the currency sign before it and the percent sign after it."""
    return start - (text[start - 1 : start] in ("$", "€", "£")), end + (text[end : end + 1] == "%")


def _words(text: str) -> set[str]:
    return {word.lower() for word in _WORD.findall(text)} - _COMMON
