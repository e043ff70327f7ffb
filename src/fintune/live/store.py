"""The output folder of a live run: answers as Parquet by day, and each provider's position.

    output/live/
      answers/day=2026-11-25/part-….parquet    one row per item and task
      state.json                               cursors, pauses and counts of the providers
      alerts.jsonl                             the outcome of each alert
      realised.parquet, scorecard.json         written by `fintune live score`

Each file is complete at every moment. Answers are written before the cursor passes their items, and stored
ids are not answered again: a killed run loses nothing and repeats nothing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fintune.data.storage import locate, parquet_dataset
from fintune.errors import DataError
from fintune.files import atomic_file, atomic_folder, json_line, read_json, write_json
from fintune.live.items import utc

Row = dict[str, Any]
"""An item's answer for one task; the keys are `schema`'s columns."""

STATE_FORMAT = 1
_ASIDE = re.compile(r"\.(day=\d{4}-\d\d-\d\d)\.")
"""Left by a run killed while it merged a day's files: the old folder, and the new one."""
_ALERT = re.compile(r'\{"alert": ("(?:[^"\\]|\\.)*")')
"""The beginning of a line in alerts.jsonl."""


def schema() -> Any:
    """The answers' columns; `value` holds numbers, `prediction` labels or texts."""
    import pyarrow as pa

    texts = "id seen published source symbols title summary link task prediction".split()
    numbers = "value confidence low high".split()
    return pa.schema(
        {name: pa.string() for name in texts}
        | {name: pa.float64() for name in numbers}
        | {"probabilities": pa.string(), "alert": pa.string(), "error": pa.string()}
    )


class Store:
    """A live run's folder; only one process at a time may write to it."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.answers = self.folder / "answers"
        self._lock = FileLock(self.folder / ".lock")
        self._parts = 0

    def __enter__(self) -> Store:
        """Raises DataError: another process writes to the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise DataError(
                f"Another fintune live writes to {self.folder}: stop it, or give another --output."
            ) from None
        self._recover()
        self._compact()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    # Answers ----------------------------------------------------------------------------------------

    def write(self, rows: Sequence[Row]) -> None:
        """Add the answers of a round; each row goes to the day when it was seen."""
        days: dict[str, list[Row]] = {}
        for row in rows:
            days.setdefault(row["seen"][:10], []).append(row)
        for day, part in days.items():
            self._parts += 1
            moment = datetime.now(UTC).strftime("%H%M%S%f")
            name = f"part-{moment}-{os.getpid()}-{self._parts:05}.parquet"
            write_table(self.answers / f"day={day}" / name, part, schema())

    def rows(self, since: str = "") -> Iterator[Row]:
        """The answers seen on or after the day `since` (ISO 8601), by day, then in the order of writing."""
        for folder in self._days():
            if folder.name.removeprefix("day=") >= since[:10]:
                yield from _rows(folder)

    def newest(self, count: int, columns: Sequence[str] | None = None) -> list[Row]:
        """At least the last `count` answers, newest first, if there are as many; reads only their days."""
        found: list[Row] = []
        for folder in reversed(self._days()):
            found += reversed(list(_rows(folder, columns)))
            if len(found) >= count:
                break
        return found

    def _days(self) -> list[Path]:
        """The folders of days with files."""
        return sorted(day for day in self.answers.glob("day=????-??-??") if any(day.glob("*.parquet")))

    def _recover(self) -> None:
        """Restore the days that a killed run has moved aside, and remove its other leftovers."""
        left = sorted(self.answers.glob(".day=*"), key=lambda path: ".old" not in path.name)
        for folder in left:
            if not (found := _ASIDE.match(folder.name)):
                continue
            day = self.answers / found[1]
            if any(day.glob("*.parquet")) or not any(folder.glob("*.parquet")):
                shutil.rmtree(folder)
            else:
                folder.rename(day)

    def _compact(self) -> None:
        """Merge each past day's files into one, because every round adds a small file."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        today = datetime.now(UTC).date().isoformat()
        for day in self._days():
            parts = sorted(day.glob("*.parquet"))
            if len(parts) < 2 or day.name >= f"day={today}":
                continue
            joined = pa.concat_tables([pq.read_table(part, schema=schema()) for part in parts])
            with atomic_folder(day) as new:
                pq.write_table(joined, new / "part-000000000000.parquet", compression="zstd")

    def realised(self) -> list[Row]:
        """The moves that `fintune live score` has computed so far: id, symbol, base, day, percent."""
        path = self.folder / "realised.parquet"
        return list(_rows(path)) if path.exists() else []

    # State ------------------------------------------------------------------------------------------

    def load_state(self) -> dict[str, Any]:
        """What `save_state` stored; {} at the start.

        Raises:
            DataError: the file is damaged or from a later version.
        """
        path = self.folder / "state.json"
        if not path.exists():
            return {}
        state = read_json(path)
        if not isinstance(state, dict) or state.get("format") != STATE_FORMAT:
            raise DataError(f"{path} is from another version of fintune: delete it to poll from the start.")
        return dict(state.get("providers", {}))

    def save_state(self, providers: dict[str, Any]) -> None:
        write_json(self.folder / "state.json", {"format": STATE_FORMAT, "providers": providers})

    # Alerts -----------------------------------------------------------------------------------------

    def log_alert(self, line: dict[str, Any]) -> None:
        """Add a line for an alert that was delivered or given up, never after a line cut by a crash."""
        with (self.folder / "alerts.jsonl").open("a+b", buffering=0) as stream:
            if size := stream.seek(0, os.SEEK_END):
                stream.seek(size - 1)
            cut = size and stream.read(1) != b"\n"
            stream.write(b"\n" * bool(cut) + json_line(line).encode("utf-8", "replace"))

    def settled_alerts(self) -> set[str]:
        """The ids of alerts that were delivered or given up.

        A line is written after an alert has arrived, so a line that a crash cut after the id counts too.
        """
        path = self.folder / "alerts.jsonl"
        if not path.exists():
            return set()
        text = path.read_text(encoding="utf-8", errors="replace")
        return {json.loads(found, strict=False) for found in _ALERT.findall(text)}


def days_ago(now: datetime, days: float) -> str:
    """A moment in the past, in the form of `seen`."""
    return utc(now - timedelta(days=days))


def _rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[Row]:
    for batch in parquet_dataset(locate(path)).to_batches(columns=list(columns) if columns else None):
        yield from batch.to_pylist()


def write_table(path: Path, rows: Sequence[Row], columns: Any = None) -> None:
    """Write rows as one Parquet file, whole or not at all; `columns` is their schema (None infers it)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with atomic_file(path) as stream:
        pq.write_table(pa.Table.from_pylist(list(rows), schema=columns), stream, compression="zstd")
