"""Select the most salient sentences of a long text within a token budget, in text order.

Reads in one pass: each block of sentences is scored, and only the best sentences, a few budgets' worth, are
kept, so memory does not grow with the text. Knows texts and a function that counts tokens, but no tasks,
prompts or files.
"""

from __future__ import annotations

import functools
import heapq
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise
from typing import Any, Literal, get_args

from fintune.errors import ConfigError
from fintune.text.ranking import WORD, bm25
from fintune.text.sentences import sentences

Method = Literal["lead", "score", "learnt", "bm25"]

BLOCK = 512
"""Sentences scored together: `bm25` ranks a sentence only within its block."""
LONGEST = 1000
"""The most characters of a sentence: longer ones, in texts without full stops, are cut."""
CANDIDATES = 4
"""Budgets' worth of sentences kept while reading, so that enough remain after skipping repetitions."""
ALIKE = 0.7
"""Sentences are repetitions from this Jaccard similarity of their words."""
LEARN_FROM = 400
"""At most this many texts are used to learn weights: more change little."""
LEARNT = 300
"""How many features get learnt weights."""

_TOKEN = re.compile(
    r"[^\W\d_]+(?:['’][^\W\d_]+)?"
    r"|\d[\d,.]*\s?(?:%|percent\b|percentage points?\b|basis points?\b|bps\b)"
    r"|[$€£]\s?\d[\d,.]*"
    r"|\d[\d,.]*"
)

WEIGHTS: dict[str, float] = {
    "<money>": 1.0,
    "<percent>": 0.6,
    "<number>": 0.3,
    "<year>": 0.2,
    "million": 0.4,
    "billion": 0.4,
    "per share": 1.5,
    "eps": 1.5,
    "dividend": 0.5,
    **dict.fromkeys(["guidance", "outlook", "forecast"], 1.0),
    **dict.fromkeys(["expect", "expects", "expected", "anticipate", "project", "range"], 0.5),
    **dict.fromkeys(["revenue", "revenues", "sales", "earnings", "income", "profit", "ebitda"], 0.7),
    **dict.fromkeys(["quarter", "year", "fiscal", "adjusted", "net", "diluted", "total"], 0.3),
    **dict.fromkeys(["reported", "compared", "versus", "increased", "decreased", "grew", "declined"], 0.3),
    **{f"<at {k}>": 0.5 - 0.1 * k for k in range(5)},
}
"""The weights of `score`: figures, results, guidance and periods, and the text's first sentences."""

QUERY = (
    "guidance outlook expect full year range earnings per share diluted adjusted net income revenue sales "
    "quarter increased decreased million billion percent"
)
"""The query of `bm25` if there is no question."""


@dataclass(frozen=True)
class Salience:
    """How to choose sentences.

    `lead` takes the first ones. `score` adds up `WEIGHTS`. `learnt` adds up weights that `fit` learnt from
    texts with references, or `WEIGHTS` if it learnt nothing. `bm25` ranks the sentences of a block against a
    question, or `QUERY` (Robertson and Zaragoza, 2009); the other methods score each sentence alone.
    """

    method: Method = "score"
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if str(self.method) == "graph":  # from recipes and adapters of earlier versions
            _say_no_graph()
            object.__setattr__(self, "method", "score")
        if self.method not in get_args(Method):
            raise ConfigError(f"salience is {self.method!r}; valid are: {', '.join(get_args(Method))}")

    def select(
        self,
        document: str | Iterable[str],
        budget: int,
        count_tokens: Callable[[str], int],
        query: str | None = None,
    ) -> str:
        """The chosen sentences in text order, one per line; "" if none fits.

        In descending order of score, a sentence is taken if it fits and does not repeat one already taken.

        Args:
            document: a text, or its parts in order, such as an open file's lines.
            budget: the most tokens of the result, as `count_tokens` counts them.
            query: what `bm25` ranks against.
        """
        best = sorted(_best(self._scored(document, query), budget, count_tokens), reverse=True)
        chosen: list[tuple[int, str]] = []
        words: list[frozenset[str]] = []
        used = 0
        for _, negative_index, tokens, text in best:
            own = frozenset(WORD.findall(text.lower()))
            if used + tokens <= budget and not any(_repeats(own, other) for other in words):
                chosen.append((-negative_index, text))
                words.append(own)
                used += tokens
        while chosen:
            text = "\n".join(sentence for _, sentence in sorted(chosen))
            if count_tokens(text) <= budget:
                return text
            chosen.pop()  # joined, the sentences may have more tokens than separately
        return ""

    def fit(self, pairs: Iterable[tuple[str, str]]) -> Salience:
        """A copy with weights learnt from training pairs (text, reference); other methods learn nothing."""
        return replace(self, weights=learn_weights(pairs)) if self.method == "learnt" else self

    def to_dict(self) -> dict[str, Any]:
        return {"method": self.method} | ({"weights": dict(self.weights)} if self.weights else {})

    def _scored(self, document: str | Iterable[str], query: str | None) -> Iterator[tuple[float, str]]:
        """Each sentence with its score, in order."""
        stream = sentences(document, LONGEST)
        first = 0
        while block := list(islice(stream, BLOCK)):
            yield from zip(self._scores(block, first, query), block, strict=True)
            first += len(block)

    def _scores(self, block: Sequence[str], first: int, query: str | None) -> Iterable[float]:
        places = range(first, first + len(block))
        if self.method == "lead":
            return (-float(i) for i in places)
        if self.method == "bm25":
            words = [WORD.findall(text.lower()) for text in block]
            return bm25(words, WORD.findall((query or QUERY).lower()))
        weights = self.weights or WEIGHTS
        return (
            sum(weights.get(name, 0.0) for name in features(text, i))
            for text, i in zip(block, places, strict=True)
        )


@functools.cache
def _say_no_graph() -> None:
    logging.getLogger(__name__).warning(
        "salience: graph was removed; score, which kept more of the references, is used instead."
    )


def _best(
    scored: Iterable[tuple[float, str]], budget: int, count_tokens: Callable[[str], int]
) -> list[tuple[float, int, int, str]]:
    """The best sentences, `CANDIDATES` budgets' worth, unique, as (score, -index, tokens, text)."""
    heap: list[tuple[float, int, int, str]] = []
    held = 0
    known: set[str] = set()
    for i, (score, text) in enumerate(scored):
        if heap and held >= CANDIDATES * budget and score <= heap[0][0]:
            continue
        if text in known:
            continue
        tokens = max(1, count_tokens(text + "\n"))
        if tokens > budget:
            continue
        heapq.heappush(heap, (score, -i, tokens, text))
        known.add(text)
        held += tokens
        while held - heap[0][2] >= CANDIDATES * budget:
            _, _, tokens, text = heapq.heappop(heap)
            known.remove(text)
            held -= tokens
    return heap


def features(sentence: str, index: int) -> list[str]:
    """The features of a sentence, each once: words, word pairs, and its position in the text.

    Figures become <money>, <percent>, <year> or <number>; `<at k>` is the position, k = ⌊log2(index + 1)⌋.
    """
    tokens = [t if t[0].isalpha() else _figure(t) for t in _TOKEN.findall(sentence.lower())]
    pairs = map(" ".join, pairwise(tokens))
    return list(dict.fromkeys([f"<at {(index + 1).bit_length() - 1}>", *tokens, *pairs]))


def _figure(token: str) -> str:
    """The kind of figure that a token is."""
    if token[0] in "$€£":
        return "<money>"
    digits = token.rstrip(".,")
    if not digits[-1].isdigit():
        return "<percent>"
    return "<year>" if len(digits) == 4 and digits[:2] in ("19", "20") and digits.isdigit() else "<number>"


def _repeats(new: frozenset[str], old: frozenset[str]) -> bool:
    """Whether sentences with these words say the same, and the new one has no figure of its own."""
    common = len(new & old)
    alike = common >= ALIKE * (len(new) + len(old) - common)
    return alike and not any(word[0].isdigit() for word in new - old)


def learn_weights(pairs: Iterable[tuple[str, str]]) -> dict[str, float]:
    """Learn the weights of `WEIGHTS` and of `LEARNT` other features from texts with references.

    Logistic regression of whether a sentence is in its text's oracle summary (it adds at least two words or
    word pairs to what better sentences cover of the reference; Nallapati et al., 2017, section 2.3), on the
    features that vary most with what it adds. `score`'s value is a feature too, regularized least, so that
    few texts change it little. Uses the first `LEARN_FROM` pairs; {} if they teach nothing.
    """
    import numpy as np
    from scipy.sparse import csr_matrix, hstack
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.feature_selection import f_regression
    from sklearn.linear_model import LogisticRegression

    added: list[int] = []
    scores: list[float] = []

    def every() -> Iterator[list[str]]:
        for text, reference in islice(pairs, LEARN_FROM):
            lines = list(sentences(text, LONGEST))
            added.extend(_added(lines, reference))
            for i, line in enumerate(lines):
                found = features(line, i)
                scores.append(sum(WEIGHTS.get(name, 0.0) for name in found))
                yield found

    try:
        counter = CountVectorizer(analyzer=lambda found: found, binary=True, min_df=8)
        rows = counter.fit_transform(every())
    except ValueError:  # no feature occurs often enough
        return {}
    wanted = np.array(added) >= 2
    if wanted.all() or not wanted.any():
        return {}
    strength = np.nan_to_num(f_regression(rows, np.array(added))[0])
    chosen = np.sort(np.argsort(-strength, kind="stable")[:LEARNT])
    scale = 3.0  # larger values need smaller coefficients, which are regularized less
    both = hstack([rows[:, chosen], csr_matrix(np.array(scores)[:, None] * scale)]).tocsr()
    *own, of_score = LogisticRegression(C=0.02, max_iter=200).fit(both, wanted).coef_[0].tolist()
    weights = {name: of_score * scale * weight for name, weight in WEIGHTS.items()}
    for name, weight in zip(counter.get_feature_names_out()[chosen], own, strict=True):
        weights[name] = weights.get(name, 0.0) + weight
    return {str(name): round(weight, 4) for name, weight in weights.items()}


def _added(lines: Sequence[str], reference: str) -> list[int]:
    """How many of the reference's words and pairs each sentence adds, taken greedily, largest first."""
    left = _grams(reference)
    has = [_grams(line) & left for line in lines]
    added = [0] * len(lines)
    pool = [i for i in range(len(lines)) if has[i]]
    while pool:
        best = max(pool, key=lambda i: (len(has[i] & left), -i))
        added[best] = len(has[best] & left)
        left -= has[best]
        pool = [i for i in pool if i != best and has[i] & left]
    return added


def _grams(text: str) -> frozenset[str | tuple[str, str]]:
    words = re.findall(r"[a-z0-9]+", text.lower())
    return frozenset(words) | frozenset(pairwise(words))
