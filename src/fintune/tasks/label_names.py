"""Match the data's labels to the task's, ignoring case, spaces and 1.0 versus 1."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence


def label_key(label: str) -> str:
    """A key that is equal for spellings of the same label."""
    key = " ".join(label.casefold().split())
    return str(float(key)) if re.fullmatch(r"[+-]?\d+(\.\d*)?", key) else key


class LabelNames(Mapping[str, str | None]):
    """The data's label → the task's label, or None if its rows are left out.

    An exact match with the recipe's or the task's spelling takes precedence.
    """

    def __init__(self, labels: Sequence[str], mapped: Mapping[str, str | None]) -> None:
        """
        Args:
            labels: the task's own.
            mapped: the recipe's mapping of the data's labels.
        """
        own = Counter(map(label_key, labels))
        alike = {label_key(label): label for label in labels if own[label_key(label)] == 1}
        mapped = {
            label: meant if meant is None or meant in labels else alike.get(label_key(meant), meant)
            for label, meant in mapped.items()
        }
        self._exact: dict[str, str | None] = {**{label: label for label in labels}, **mapped}
        self._alike: dict[str, str | None] = {**alike, **{label_key(k): v for k, v in mapped.items()}}
        self.folded: Counter[tuple[str, str | None]] = Counter()
        """(data's spelling, task's label) → count, where the two differ in case or spaces."""

    def __getitem__(self, label: str) -> str | None:
        if label in self._exact:
            return self._exact[label]
        meant = self._alike[label_key(label)]
        self.folded[label, meant] += 1
        return meant

    def __iter__(self) -> Iterator[str]:
        return iter(self._exact)

    def __len__(self) -> int:
        return len(self._exact)
