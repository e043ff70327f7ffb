"""Seeded splits and subsets: stratified by label, exact, and never through the middle of a group.

Records in, records out, in their order; knows nothing of tasks or files.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from fintune.data.quality import text_key
from fintune.tasks.base import Record


def clusters(records: Sequence[Record]) -> list[list[int]]:
    """Indices of records that belong together: linked by the same text or the same group."""
    parent = list(range(len(records)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[tuple[str, str], int] = {}
    for i, record in enumerate(records):
        keys = [("text", text_key(record.text))] + ([("group", record.group)] if record.group else [])
        for key in keys:
            parent[root(i)] = root(first.setdefault(key, i))
    members: dict[int, list[int]] = {}
    for i in range(len(records)):
        members.setdefault(root(i), []).append(i)
    return list(members.values())


def carve(
    records: Sequence[Record], fraction: float, seed: int, by_label: bool
) -> tuple[list[Record], list[Record]]:
    """Split off about `fraction` of the records; returns (the rest, what was split off).

    Exactly round(fraction · n) records, at least 1, are split off when no two belong together, each
    label as near its share as whole numbers allow. Clusters are taken whole, in a seeded order, while
    they fit; the smallest one is taken where none fits.
    """
    quota = _shares(records, max(1, round(fraction * len(records))), by_label)
    groups = clusters(records)
    random.Random(f"carve-{seed}").shuffle(groups)
    carved: set[int] = set()
    for group in groups:
        need = Counter(_label(records[i], by_label) for i in group)
        if all(quota[label] >= count for label, count in need.items()):
            quota.subtract(need)
            carved.update(group)
    if not carved and len(groups) > 1:
        carved.update(sorted(groups, key=len)[0])
    rest = [record for i, record in enumerate(records) if i not in carved]
    return rest, [record for i, record in enumerate(records) if i in carved]


def subset(records: Sequence[Record], limit: int | None, seed: int, by_label: bool) -> list[Record]:
    """At most `limit` records, chosen by the seed, labels in their shares and at least one of each."""
    if limit is None or len(records) <= limit:
        return list(records)
    quota = _shares(records, limit, by_label)
    if limit >= len(quota):
        for label in [label for label, count in quota.items() if count == 0]:
            quota[max(quota, key=lambda name: quota[name])] -= 1
            quota[label] = 1
    order = list(range(len(records)))
    random.Random(f"subset-{seed}").shuffle(order)
    chosen: set[int] = set()
    for i in order:
        label = _label(records[i], by_label)
        if quota[label] > 0:
            quota[label] -= 1
            chosen.add(i)
    return [record for i, record in enumerate(records) if i in chosen]


def _label(record: Record, by_label: bool) -> str:
    return str(record.target) if by_label else ""


def _shares(records: Sequence[Record], total: int, by_label: bool) -> Counter[str]:
    """How many of `total` records each label gets: proportional, by largest remainder."""
    from fintune.data.sampling import quotas

    counts = Counter(_label(record, by_label) for record in records)
    return Counter(quotas({label: count / len(records) for label, count in counts.items()}, total))
