"""ECTSum (Mukherjee et al., EMNLP 2022): earnings-call transcripts and their bullet-point summaries."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fintune.data.raw.readers.archives import members
from fintune.data.records import Dropped, Split
from fintune.tasks.base import Record

_SPLITS: dict[str, Split] = {"train": "train", "val": "validation", "test": "test"}
_FILE = r"data/final/(?P<split>train|val|test)/(?P<part>ects|gt_summaries)/(?P<name>[^/]+)\.txt"


def ectsum(path: Path) -> Iterator[Record | Dropped]:
    """A record per transcript with its summary, in the official splits, by name.

    As published, companies occur in several splits (with other quarters), so they are not groups.
    """
    parts: dict[tuple[str, str], dict[str, str]] = {}
    for match, text in members(path, _FILE):
        parts.setdefault((match["split"], match["name"]), {})[match["part"]] = text.strip()
    for split in _SPLITS:
        for (_, name), part in sorted(item for item in parts.items() if item[0][0] == split):
            where = f"{path.name}:{split}/{name}"
            if len(part) < 2:
                lacking = "summary" if "ects" in part else "transcript"
                yield Dropped("malformed rows", where, f"it has no {lacking}")
                continue
            yield Record(
                text=part["ects"],
                target=part["gt_summaries"],
                split=_SPLITS[split],
                id=where,
                source="ectsum",
            )
