"""BM25 (Robertson and Zaragoza, 2009): which of many texts match a question, and whether any does.

Strings in, numbers out; the index is bm25s's.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

WORD = re.compile(r"\w[\w.,]*\w|\w")
_FURTHER_STOPWORDS = (
    "could would may might must shall according per within many much state stated mentioned mention "
    "described describe specific specifically document text report filing passage"
)


def bm25(texts: Sequence[Sequence[str]], query: Sequence[str]) -> list[float]:
    """Each text's score for a query, both given as words; 0 if they share no word."""
    return _Index(texts).scores(query)


class _Index:
    def __init__(self, texts: Sequence[Sequence[str]]) -> None:
        self.vocabulary = {word for words in texts for word in words}
        self._texts = texts
        self._index: Any = None

    def scores(self, query: Sequence[str]) -> list[float]:
        wanted = [word for word in dict.fromkeys(query) if word in self.vocabulary]
        if not wanted:
            return [0.0] * len(self._texts)
        if self._index is None:
            import bm25s

            self._index = bm25s.BM25()
            self._index.index([list(words) for words in self._texts], show_progress=False)
        return [float(score) for score in self._index.get_scores(wanted)]


class Ranking:
    """Texts to rank by questions."""

    def __init__(self, texts: Sequence[str]) -> None:
        words = [content_words(text) for text in texts]
        self._index = _Index(words)
        self._sets = [frozenset(each) for each in words]

    def scores(self, question: str) -> list[float]:
        """How well each text matches the question."""
        return self._index.scores(content_words(question))

    def coverage(self, question: str) -> list[float]:
        """The share of the question's words that each text has; rare words weigh more."""
        wanted = dict.fromkeys(content_words(question))
        count = len(self._sets)
        weights = {
            word: math.log(1 + count / (0.5 + sum(word in words for words in self._sets))) for word in wanted
        }
        total = sum(weights.values())
        return [
            sum(weights[w] for w in wanted if w in words) / total if total else 0.0 for words in self._sets
        ]


def content_words(text: str) -> list[str]:
    """The stems of a text's words, without stop words."""
    words = WORD.findall(text.lower().replace("-", " ").replace("’", "'"))
    stem, skipped = _stemmer(), _stopwords()
    return [stem(word) for word in words if word not in skipped]


@functools.cache
def _stemmer() -> Callable[[str], str]:
    from nltk.stem.porter import PorterStemmer

    return functools.lru_cache(maxsize=1 << 16)(PorterStemmer().stem)


@functools.cache
def _stopwords() -> frozenset[str]:
    from bm25s.stopwords import STOPWORDS_EN_PLUS

    return frozenset(STOPWORDS_EN_PLUS) | frozenset(_FURTHER_STOPWORDS.split())
