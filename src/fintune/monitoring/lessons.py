"""What feedback teaches: rows to train on, from a store's judged predictions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fintune.monitoring.store import Store
from fintune.monitoring.verdicts import as_text


def training_rows(store: Store, task: str, *, everything: bool = False) -> list[Mapping[str, Any]]:
    """The rows that feedback teaches, oldest first.

    They have `text`, `question`, `target`, `answered` (UTC), `model` and `id`, the prediction's.

    Only answers that were wrong and whose right answer is known; `everything` adds those called right. Of
    several on the same text and question the newest stands: a right answer that it calls right, or wrong, is
    taught no more.

    Whichever model was wrong, what is right is a person's word on the text: all models' rows are here. Where
    two models have other labels for the task each set has its own row, which `model` tells apart: preparation
    refuses the labels that a recipe's task lacks, by name.
    """
    rows: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for item in store.judged(task):
        right = item.correct is True
        target = item.value if right and item.target is None else item.target
        key = (item.text, item.question, frozenset(item.labels))
        if target is not None or rows.get(key, {}).get("target") == item.value:
            rows.pop(key, None)  # so that the newest also comes last
        if target is None or (right and not everything):
            continue
        rows[key] = {
            "text": item.text,
            "target": target,
            "answered": item.created.isoformat(timespec="seconds"),
            "id": item.id,
            "model": item.model,
        } | ({"question": item.question} if item.question else {})
    found = list(rows.values())
    if any(isinstance(row["target"], str) for row in found):  # a column has one type
        found = [
            row if isinstance(row["target"], str) else {**row, "target": as_text(row["target"])}
            for row in found
        ]
    return found
