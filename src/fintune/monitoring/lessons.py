"""Turns feedback into training rows, from a store's judged predictions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fintune.monitoring.store import Store
from fintune.monitoring.verdicts import as_text


def training_rows(store: Store, task: str, *, everything: bool = False) -> list[Mapping[str, Any]]:
    """The training rows from feedback, oldest first.

    They have `text`, `question`, `target`, `answered` (UTC), `model` and the prediction's `id`.

    Only wrong answers with a known right answer; `everything` adds those judged right. Of several on the
    same text and question the newest counts: if it repeats the target of an earlier row, its feedback (right
    or wrong) removes that row.

    A right answer is a person's judgement of the text, whichever model was wrong: rows of all models are
    here. If two models have different labels for the task, each set has its own row, told apart by `model`:
    preparation refuses the labels that a recipe's task lacks, by name.
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
