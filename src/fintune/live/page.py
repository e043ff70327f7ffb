"""Reads a live run's folder as plain values for a page, while the run may be writing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fintune.files import read_json
from fintune.live.store import Row, Store

FOLDER = "output/live"


def rows(folder: str | Path = FOLDER, limit: int = 100) -> list[dict[str, Any]]:
    """The last items, newest first; [] before the first was written.

    Each has `seen` and `published` (UTC, ISO 8601; `published` may be ""), `source`, `symbols` (a list),
    `title`, `link` (a web address or ""), `alert` (the rule that caused one, or ""), and `answers`: task →
    {`label`, `confidence`} | {`value`, `low`, `high`} | {`text`} | {`error`}. All of it is untrusted plain
    text: escape it.
    """
    items: dict[str, dict[str, Any]] = {}
    for row in Store(folder).newest(10 * limit):
        item = items.get(row["id"])
        if item is None:
            if len(items) == limit:
                break
            kept = ("seen", "published", "source", "title", "link")
            item = {key: row[key] or "" for key in kept}
            items[row["id"]] = item | {"symbols": row["symbols"].split(), "alert": "", "answers": {}}
            item = items[row["id"]]
        item["answers"][row["task"]] = _answer(row)
        item["alert"] = item["alert"] or row["alert"] or ""
    return list(items.values())


def sources(folder: str | Path = FOLDER) -> list[dict[str, Any]]:
    """The sources: `title`, `items`, `repeated`, `problem` ("" if none), `last_answer`, `failures`, …"""
    kept = ("title", "items", "repeated", "problem", "last_answer", "failures", "gone")
    return [{key: state.get(key) for key in kept} for state in Store(folder).load_state().values()]


def scorecard(folder: str | Path = FOLDER) -> dict[str, Any] | None:
    """The last scorecard (see `scorecard.score`); None if there is none."""
    path = Path(folder) / "scorecard.json"
    return dict(read_json(path)) if path.exists() else None


def _answer(row: Row) -> dict[str, Any]:
    if row["error"]:
        return {"error": row["error"]}
    if row["value"] is not None:
        return {"value": row["value"], "low": row["low"], "high": row["high"]}
    if row["confidence"] is None:
        return {"text": row["prediction"] or ""}
    return {"label": row["prediction"], "confidence": row["confidence"]}
