"""Two texts side by side: SQuAD token F1 and exact match, and ROUGE, all in [0, 1]."""

from __future__ import annotations

import functools
import re
import string
from collections import Counter
from typing import Any

from fintune.errors import MissingExtraError

ROUGE = ("rouge1", "rouge2", "rougeL")
ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """SQuAD's normalisation: lower case, no punctuation, no articles, single spaces.

    It is kept as published so that figures compare, though it removes the point of "3.5" and the sign
    of "-5 %" too.
    """
    return " ".join(ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def answer_scores(target: str, prediction: str) -> tuple[float, float]:
    """Exact match and token F1 of one answer by the SQuAD rules (Rajpurkar et al., 2016, section 6.1).

    F1 is the harmonic mean of precision and recall over the bag of normalised tokens. Where either side
    has no token left, it is 1 if both have none and else 0, as in the SQuAD 2.0 script.
    """
    expected, got = normalize_answer(target).split(), normalize_answer(prediction).split()
    shared = sum((Counter(expected) & Counter(got)).values())
    exact = float(expected == got)
    return exact, 2 * shared / (len(expected) + len(got)) if expected and got else exact


@functools.lru_cache(maxsize=1 << 16)
def rouge(target: str, prediction: str) -> dict[str, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L F-measures (Lin, 2004), with Porter stemming.

    Raises:
        MissingExtraError: the package rouge-score is not installed.
    """
    found = _scorer().score(target, prediction)
    return {name: float(found[name].fmeasure) for name in ROUGE}


@functools.cache
def _scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise MissingExtraError("ROUGE", "eval") from None
    return RougeScorer(list(ROUGE), use_stemmer=True)
