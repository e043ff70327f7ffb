"""Read and check a source part by part onto disk, with one process per core.

Parts in, one Parquet file per part out, in the same order for any number of workers. A part needs the memory
of one batch of rows. Knows nothing of splits.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from fintune.data.prepare.checks import Report, check
from fintune.data.records import COLUMNS, Dropped, Read, digest, text_key
from fintune.tasks import plugins
from fintune.tasks.base import Record, Task

BATCH_ROWS = 8_192
PARALLEL_BYTES = 16 * 2**20
"""Smaller inputs are read by this process alone: starting others would cost more."""

Map = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]
"""Applies a function to items in other processes or on other machines, and yields the results in order."""


@dataclass(frozen=True)
class Part:
    """A piece of one task's source that can be read independently."""

    task: Task
    read: Read
    labels: Mapping[str, str | None]
    path: Path
    """The file to write its rows to."""
    bytes: int = 0
    """Its approximate size."""


def read_parts(parts: Sequence[Part], workers: int | None = None, mapper: Map | None = None) -> list[Report]:
    """Write every part's rows; return a report of the dropped rows for each.

    Args:
        workers: the most processes; None is the number of cores.
        mapper: reads the parts elsewhere, such as on a Ray cluster.
    """
    workers = min(workers or os.cpu_count() or 1, len(parts))
    total = sum(part.bytes for part in parts)
    if mapper or workers < 2 or total < PARALLEL_BYTES:
        return list(_watched((mapper or map)(write_part, parts), parts, total))
    # Forked workers inherit registered plug-ins; spawned workers must import them.
    method = (
        "fork" if "fork" in multiprocessing.get_all_start_methods() and sys.platform != "darwin" else None
    )
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(
        workers, context, initializer=plugins.allow, initargs=(plugins.places(),)
    ) as pool:
        return list(_watched(pool.map(write_part, parts), parts, total))


def _watched(reports: Iterator[Report], parts: Sequence[Part], total: int) -> Iterator[Report]:
    from tqdm import tqdm

    silent = not sys.stderr.isatty() or total < PARALLEL_BYTES
    with tqdm(total=total, unit="B", unit_scale=True, desc="reading", disable=silent, leave=False) as bar:
        for part, report in zip(parts, reports, strict=True):
            bar.update(part.bytes)
            yield report


def schema() -> Any:
    """The columns of a part: a record's fields, its row's number in the part, and keys of its texts.

    `key` identifies the passage, `ask` text and question, `same` text, question and target.
    """
    import pyarrow as pa

    numbers = {"row": pa.int64(), "number": pa.float64()}
    keys = dict.fromkeys(("key", "ask", "same"), pa.uint64())
    return pa.schema(
        {**dict.fromkeys((*COLUMNS, "split"), pa.string()), **numbers, **keys, "label": pa.string()}
    )


def write_part(part: Part) -> Report:
    """Read a part, check its rows, and write the valid ones."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    report = Report()
    columns = schema()
    rows = _rows(check(part.task, part.read(), report, part.labels), part.task, report)
    with pq.ParquetWriter(part.path, columns, compression="zstd", compression_level=1) as writer:
        while batch := list(islice(rows, BATCH_ROWS)):
            writer.write_batch(pa.RecordBatch.from_pylist(batch, columns))
    return report


def _rows(records: Iterable[Record], task: Task, report: Report) -> Iterator[dict[str, Any]]:
    classify, numeric = bool(task.one_of), task.numeric
    row = 0
    for record in records:
        ask = f"{text_key(record.text)}\0{text_key(record.question or '')}"
        fields = {name: getattr(record, name) for name in (*COLUMNS, "split")}
        try:
            "".join(value for value in fields.values() if isinstance(value, str)).encode()
            found = {
                **fields,
                "row": row,
                "target": None if numeric else record.target,
                "number": record.target if numeric else None,
                "key": digest(text_key(task.passage(record))),
                "ask": digest(ask),
                "same": digest(f"{ask}\0{record.target}"),
                "label": record.target if classify else "",
            }
        except UnicodeEncodeError:
            report.add(Dropped("malformed rows", record.id, "it holds half a character"))
        else:
            yield found
            row += 1
