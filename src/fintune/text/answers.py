"""Compare two texts: SQuAD token F1 and exact match, and ROUGE, all in [0, 1].

ASCII text is tokenized as in the published scripts. Other text is split into Unicode words, and each
character of a script without spaces between words (Chinese, Japanese, Thai, …) is a word, as in MLQA's script
(Lewis et al., 2020).
"""

from __future__ import annotations

import functools
import re
import string
import unicodedata
from collections import Counter
from typing import Any

import regex

ROUGE = ("rouge1", "rouge2", "rougeL")
ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_SPACELESS = (
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}\p{Tai_Le}"
    r"\p{New_Tai_Lue}\p{Tai_Tham}\p{Tai_Viet}\p{Javanese}\p{Balinese}ー々〆]"
)
_CHARACTER = regex.compile(rf"((?=\p{{L}}){_SPACELESS}[\p{{M}}ー]*)")
"""A letter of a script without spaces, with its combining marks."""
_WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+")


def _unicode(text: str) -> str:
    """Non-ASCII text in normalized form, with spaces around characters that are words of their own."""
    return _CHARACTER.sub(r" \1 ", unicodedata.normalize("NFKC", text))


def normalize_answer(text: str) -> str:
    """SQuAD's normalisation: lower case, no punctuation, no articles, single spaces.

    Kept as published so that scores compare, although it also removes the point of "3.5" and the sign of
    "-5 %".
    """
    text = text.lower()
    if not text.isascii():
        text = regex.sub(r"\p{P}", "", _unicode(text))
    return " ".join(ARTICLES.sub(" ", text.translate(_PUNCTUATION)).split())


def answer_scores(target: str, prediction: str) -> tuple[float, float]:
    """Exact match and token F1 of one answer by the SQuAD rules (Rajpurkar et al., 2016, section 6.1).

    F1 is the harmonic mean of precision and recall over the bag of normalised tokens. If either side has no
    tokens left, F1 is 1 if both have none and else 0, as in the SQuAD 2.0 script.
    """
    expected, got = normalize_answer(target).split(), normalize_answer(prediction).split()
    shared = sum((Counter(expected) & Counter(got)).values())
    exact = float(expected == got)
    return exact, 2 * shared / (len(expected) + len(got)) if expected and got else exact


@functools.lru_cache(maxsize=1 << 16)
def rouge(target: str, prediction: str) -> dict[str, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L F-measures (Lin, 2004), with Porter stemming."""
    found = _scorer().score(target, prediction)
    return {name: float(found[name].fmeasure) for name in ROUGE}


@functools.cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(ROUGE), tokenizer=_Tokenizer())


class _Tokenizer:
    """rouge-score's words with their stems; Unicode words for text that is not ASCII."""

    def __init__(self) -> None:
        from rouge_score.tokenizers import DefaultTokenizer

        self._plain = DefaultTokenizer(use_stemmer=True)

    def tokenize(self, text: str) -> list[str]:
        if text.isascii():
            return self._plain.tokenize(text)
        found = _WORD.findall(_unicode(text.lower()))
        return [part for word in found for part in (self._plain.tokenize(word) if word.isascii() else [word])]
