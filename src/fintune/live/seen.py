"""Recognizes repeated items by id, by title and by similar title. Memory stays bounded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from fintune.live.items import Item
from fintune.text.near_duplicates import Index

GENERATION = 20_000
"""Items per generation; two generations are kept."""


class Seen:
    """The last items, in two generations: when the newer is full, it becomes the older one."""

    def __init__(self, threshold: float, generation: int = GENERATION) -> None:
        self._threshold, self._size = threshold, generation
        self._ids: list[set[str]] = [set(), set()]
        self._titles = [Index(threshold), Index(threshold)]

    def __contains__(self, id: str) -> bool:
        return any(id in ids for ids in self._ids)

    def fresh(self, items: Iterable[Item]) -> tuple[list[Item], list[Literal["exact", "near"]]]:
        """The new items, which are remembered; and how each of the others repeats an earlier one.

        An item with a known id is not counted as a repetition: its feed shows it at every poll.
        """
        new: list[Item] = []
        repeated: list[Literal["exact", "near"]] = []
        for item in items:
            if item.id in self:
                self.add(item.id, "")  # remember what a feed still shows
                continue
            matches = [match for index in self._titles if (match := index.query(item.title))]
            match = max(matches, key=lambda match: match.similarity, default=None)
            self.add(item.id, "" if match else item.title)
            if match is None:
                new.append(item)
            else:
                repeated.append("exact" if match.similarity == 1 else "near")
        return new, repeated

    def add(self, id: str, title: str) -> None:
        """Remember an item; an empty title is never compared."""
        if id in self._ids[0]:
            return
        if len(self._ids[0]) >= self._size:
            self._ids = [set(), self._ids[0]]
            self._titles = [Index(self._threshold), self._titles[0]]
        self._ids[0].add(id)
        if title:
            self._titles[0].add(id, title)
