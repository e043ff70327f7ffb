"""Finds the training examples most similar to a text by TF-IDF: possible causes of an error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fintune.tasks import Record, Task

NEAREST = 3
INDEXED = 50_000
"""The most training examples searched: a fair sample, because prepared data is in a seeded order."""
_AT_A_TIME = 256


class Neighbours:
    """Training examples, searched by TF-IDF cosine similarity (scikit-learn, with 1 + log tf)."""

    def __init__(self, task: Task, train: Sequence[Record]) -> None:
        import numpy as np
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.task = task
        self.train = list(train[:INDEXED])
        self.vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\b\w+\b", dtype=np.float32)
        self.matrix: Any = None
        if self.train:
            try:
                self.matrix = self.vectorizer.fit_transform([_text(record) for record in self.train])
            except ValueError:  # no text has a word
                self.train = []

    def nearest(self, records: Sequence[Record], count: int = NEAREST) -> list[list[tuple[Record, float]]]:
        """For each record its most similar training records with the cosine in [0, 1], nearest first.

        Training records that share no word with it are left out.
        """
        import numpy as np

        if not self.train:
            return [[] for _ in records]
        count = min(count, len(self.train))
        found = []
        queries = self.vectorizer.transform([_text(record) for record in records])
        for start in range(0, len(records), _AT_A_TIME):
            cosines = (queries[start : start + _AT_A_TIME] @ self.matrix.T).toarray()
            best = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
            for row, chosen in zip(cosines, best, strict=True):
                order = sorted(chosen.tolist(), key=lambda i: (-row[i], i))
                found.append([(self.train[i], min(1.0, float(row[i]))) for i in order if row[i] > 0])
        return found


def _text(record: Record) -> str:
    return f"{record.question} {record.text}" if record.question else record.text
