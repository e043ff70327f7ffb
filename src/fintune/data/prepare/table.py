"""One task's rows as a DuckDB table that need not fit in memory, from its parts to its splits on disk.

The table holds what splitting needs: numbers, keys, labels, times; texts stay in the parts' files until the
splits are written. A dropped row keeps the reason. Knows nothing of tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fintune.data.prepare.checks import MANY, MAX_NAMED, Report, Rule
from fintune.data.records import COLUMNS, Split

MEMORY = "512MB"
"""DuckDB's memory limit, beyond which it uses the disk."""
MALFORMED = "malformed rows"
SHOWN = 90
"""Characters of text to show in an example."""


class Rows:
    """The rows of one task; a context manager, because it holds files open."""

    def __init__(
        self, parts: Sequence[Path], scratch: Path, numeric: bool, report: Report, turns: bool = False
    ) -> None:
        """Args: turns: compare the question too, because it is a conversation's last turn."""
        import duckdb
        import pyarrow.parquet as pq

        self.report = report
        self.numeric = numeric
        self.turns = turns
        self.db = duckdb.connect(str(scratch / "rows.duckdb"))
        self.db.execute(f"SET memory_limit = '{MEMORY}'; SET preserve_insertion_order = false")
        if self.value("SELECT current_setting('enable_progress_bar')"):  # a notebook refuses even false
            self.db.execute("SET enable_progress_bar = false")
        # Rows are numbered across all parts, so that the way a source was cut changes nothing.
        self.db.execute("CREATE TABLE part (file VARCHAR, before BIGINT)")
        before = 0
        for path in parts:
            self.db.execute("INSERT INTO part VALUES (?, ?)", [str(path), before])
            before += pq.read_metadata(path).num_rows
        files = ", ".join("'" + str(path).replace("'", "''") + "'" for path in parts)
        self.db.execute(
            f"""
            CREATE VIEW source AS
            SELECT * REPLACE (before + row AS row) FROM read_parquet([{files}], filename = true)
            JOIN part ON filename = file
            """
        )
        self.db.execute(
            """
            CREATE TABLE r AS
            SELECT row, id, key, ask, same, nullif("group", '') AS grp, label, number,
                   nullif(time, '') AS time, coalesce(split, 'train') AS split,
                   CAST(NULL AS VARCHAR) AS gone
            FROM source
            """
        )

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, *_: object) -> None:
        self.db.close()

    def query(self, sql: str, **parameters: Any) -> list[tuple[Any, ...]]:
        return self.db.execute(sql, parameters or None).fetchall()

    def value(self, sql: str, **parameters: Any) -> Any:
        """The one value of a query; None if it finds no row."""
        found = self.query(sql, **parameters)
        return found[0][0] if found else None

    def count(self, split: str) -> int:
        return int(self.value("SELECT count(*) FROM r WHERE gone IS NULL AND split = $split", split=split))

    def labels(self, split: str) -> dict[str, int]:
        """Label → its number of rows in a split; one label, "", if the task has none."""
        sql = "SELECT label, count(*) FROM r WHERE gone IS NULL AND split = $split GROUP BY 1 ORDER BY 1"
        return dict(self.query(sql, split=split))

    def drop(
        self,
        reason: str,
        where: str,
        governed: str,
        *,
        other: str = "NULL",
        why: str = "NULL",
        **parameters: Any,
    ) -> None:
        """Drop the rows that satisfy a condition, under a reason that the report counts and names.

        Args:
            governed: the recipe key that governs this, as in `Rule`.
            other: an SQL expression for the row that a row duplicates.
            why: an SQL expression with details on a row.
        """
        chosen = f"FROM r WHERE gone IS NULL AND ({where})"
        found = self.query(
            f"SELECT id, {why}, row, {other} {chosen} ORDER BY row LIMIT {MAX_NAMED}", **parameters
        )
        if not found:
            return
        named = [f"{name}: {more or reason}" for name, more, _, _ in found]
        self.report.rules.setdefault(reason, Rule(governed, *found[0][2:]))
        self.report.dropped[reason] += int(self.value(f"SELECT count(*) {chosen}", **parameters))
        self.db.execute(
            f"UPDATE r SET gone = $reason WHERE gone IS NULL AND ({where})", {"reason": reason, **parameters}
        )
        self.report.named = [*self.report.named, *named][:MAX_NAMED]

    @property
    def _passage(self) -> str:
        """The SQL expression of a row's compared text, in `source p`."""
        return "concat_ws(chr(10), p.text, p.question)" if self.turns else "p.text"

    def sample(self, count: int) -> Iterator[str]:
        """The texts of this many different passages, random but always the same."""
        rows = self.db.cursor().execute(
            f"""
            SELECT {self._passage} FROM source p WHERE row IN (
                SELECT min(row) AS first FROM r WHERE gone IS NULL GROUP BY key
                ORDER BY md5_number_lower(concat('sample-', first)), first LIMIT {count}
            )
            """
        )
        while found := rows.fetchmany(512):
            yield from (text for (text,) in found)

    def losses(self, task: str, total: int) -> list[str]:
        """A sentence for each rule that dropped more than `MANY` of a task's rows, with an example."""
        said = []
        for reason, count in self.report.dropped.items():
            rule = self.report.rules.get(reason)
            if count <= MANY * total or not (rule or reason == MALFORMED):
                continue
            text = f"{task}: {count:,} of {total:,} rows are left out ({reason})"
            if rule is None:
                said.append(
                    f"{text}, such as {self.report.named[0]}: correct "
                    f"them, or map other columns with data.tasks.{task}.columns."
                )
                continue
            rows = [row for row in (rule.row, rule.other) if row is not None]
            found = {
                row: rest
                for row, *rest in self.query(
                    f"SELECT row, id, {self._passage} FROM source p WHERE list_contains($rows, row)",
                    rows=rows,
                )
            }
            pair = " and ".join(f"{found[row][0]} «{_short(found[row][1])}»" for row in rows)
            said.append(f"{text}: {rule.governed}. For example {pair}.")
        return said

    def texts(self, split: str) -> Iterator[tuple[int, str, str]]:
        """(row, id, passage) of a split's remaining rows, in row order."""
        rows = self.db.cursor().execute(
            f"""
            SELECT p.row, p.id, {self._passage} FROM source p JOIN r USING (row)
            WHERE r.gone IS NULL AND r.split = $split ORDER BY p.row
            """,
            {"split": split},
        )
        while found := rows.fetchmany(8_192):
            yield from found

    def write(self, split: Split, path: Path, seed: int, bounds: tuple[float, float] | None = None) -> None:
        """Write a split in a seeded order, so that its first n rows are a fair sample of it.

        Args:
            bounds: the smallest and largest number that targets are clipped to.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        target = "p.number" if self.numeric else "p.target"
        if bounds:
            target = f"least(greatest({target}, {bounds[0]!r}::DOUBLE), {bounds[1]!r}::DOUBLE)"
        text = ", ".join(
            'p."group"' if name == "group" else f"p.{name}" for name in COLUMNS if name != "target"
        )
        relation = self.db.sql(
            f"""
            SELECT {text}, {target} AS target FROM source p JOIN r USING (row)
            WHERE r.gone IS NULL AND r.split = $split
            ORDER BY md5_number_lower(concat($seed, '-order-', row)), row
            """,
            params={"split": split, "seed": seed},
        )
        target_kind = pa.float64() if self.numeric else pa.string()
        columns = pa.schema(dict.fromkeys(COLUMNS, pa.string()) | {"target": target_kind})
        path.parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(path, columns, compression="zstd") as writer:
            for batch in relation.to_arrow_reader(16_384):
                writer.write_batch(batch.select(list(COLUMNS)).cast(columns))


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]} … {text[-SHOWN // 2 :]}"
