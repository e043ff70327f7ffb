"""Which label of a task a label of its data means: case, spaces and 1.0 for 1 do not tell labels apart."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence


def label_key(label: str) -> str:
    """What is the same of labels that are one."""
    key = " ".join(label.casefold().split())
    return str(float(key)) if re.fullmatch(r"[+-]?\d+(\.\d*)?", key) else key


class LabelNames(Mapping[str, str | None]):
    """The data's label → the task's label, or None where a row that has it is left out.

    A label that is written exactly as the recipe or the task writes it is found first.
    """

    def __init__(self, labels: Sequence[str], mapped: Mapping[str, str | None]) -> None:
        """
        Args:
            labels: the task's own.
            mapped: what the recipe says of the data's.
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
        """(as the data writes it, what it means) → how often, where the two differ in case or spaces."""

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
