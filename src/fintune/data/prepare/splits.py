"""Split rows: seeded or by time, stratified by label, with exact sizes, never dividing a group.

Each function changes a table of `Rows` in SQL, so memory is bounded by DuckDB's limit.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from fintune.data.prepare.table import Rows
from fintune.data.records import Split
from fintune.data.sampling import quotas
from fintune.text.near_duplicates import Index


def remove_leaks(rows: Rows, split: Split, held_out: Split) -> None:
    """Drop the rows of `split` whose text or group also occurs in `held_out`, which is unchanged."""
    for column, reason, governed in (
        (
            "key",
            f"{split} texts also in {held_out}",
            f"a text may be in only one split, so keep it in one of the task's file, validation_file and "
            f"test_file, or leave {held_out}_file out",
        ),
        (
            "grp",
            f"{split} records of a group also in {held_out}",
            "the group column keeps a group in one split (the task's columns.group maps it)",
        ),
    ):
        there = f"FROM r h WHERE h.gone IS NULL AND h.split = $held_out AND h.{column} IS NOT NULL"
        rows.drop(
            reason,
            f"split = $split AND {column} IN (SELECT h.{column} {there})",
            governed,
            other=f"(SELECT min(h.row) {there} AND h.{column} = r.{column})",
            split=split,
            held_out=held_out,
        )


def remove_near_leaks(
    rows: Rows, among: Sequence[Split], held_out: Split, threshold: float, frame: Any
) -> None:
    """Drop rows of some splits whose text nearly duplicates one of `held_out`, which alone takes memory.

    Args:
        frame: boilerplate that does not count (`near_duplicates.frame`).
    """
    index = Index(threshold, frame)
    names = {}
    for row, name, text in rows.texts(held_out):
        index.add(row, text)
        names[row] = name
    for split in among:
        found = (
            (row, match.id, names[match.id], match.similarity)
            for row, _, text in rows.texts(split)
            if (match := index.query(text)) is not None
        )
        rows.db.execute(
            "CREATE OR REPLACE TABLE near (row BIGINT, other BIGINT, id VARCHAR, similarity DOUBLE)"
        )
        while batch := list(islice(found, 1_000)):
            rows.db.executemany("INSERT INTO near VALUES (?, ?, ?, ?)", batch)
        rows.drop(
            f"{split} texts also in {held_out}, nearly",
            "row IN (SELECT row FROM near)",
            f"data.near_duplicates is {threshold:g}, and a higher value or null leaves out fewer",
            other="(SELECT n.other FROM near n WHERE n.row = r.row)",
            why="(SELECT printf('%.0f %% of it stands in %s', 100 * n.similarity, n.id) FROM near n "
            "WHERE n.row = r.row)",
        )


def join_more(rows: Rows) -> None:
    """Add the rows of `more_train` to the training rows, once all held-out rows are chosen."""
    rows.db.execute("UPDATE r SET split = 'train' WHERE split = 'more'")
    remove_duplicates(rows)


def remove_duplicates(rows: Rows) -> None:
    """Keep only the first of the training rows with the same text, question and target."""
    rows.db.execute(
        """
        CREATE OR REPLACE TABLE first AS
        SELECT same, min(row) AS row, arg_min(id, row) AS id FROM r
        WHERE gone IS NULL AND split = 'train' GROUP BY same HAVING count(*) > 1
        """
    )
    rows.drop(
        "exact duplicates in train",
        "split = 'train' AND EXISTS (SELECT 1 FROM first f WHERE f.same = r.same AND f.row < r.row)",
        "of identical rows the first is kept, and no key changes that",
        other="(SELECT f.row FROM first f WHERE f.same = r.same)",
        why="concat('repeats ', (SELECT f.id FROM first f WHERE f.same = r.same))",
    )


def count_conflicts(rows: Rows) -> int:
    """The number of training texts (with their question) that have more than one target."""
    return int(
        rows.value(
            """
            SELECT count(*) FROM (
                SELECT ask FROM r WHERE gone IS NULL AND split = 'train'
                GROUP BY ask HAVING count(DISTINCT same) > 1
            )
            """
        )
    )


def carve(rows: Rows, into: Split, fraction: float, seed: int) -> None:
    """Move about `fraction` of the training rows into another split.

    If no two rows belong together, moves exactly round(fraction · n) rows, at least 1, with each label as
    near its share as whole numbers allow. Rows that belong together (the same text or group) move together:
    whole clusters are taken in a seeded order while they fit, or the smallest one if none fits.
    """
    counts = rows.labels("train")
    total = sum(counts.values())
    if not total:
        return
    quota = _shares(counts, max(1, round(fraction * total)))
    _find_clusters(rows)
    rows.db.execute(
        """
        CREATE OR REPLACE TABLE cluster AS
        SELECT c, label, count(*) AS size, md5_number_lower(concat($seed, '-', $into, '-', c)) AS place
        FROM member JOIN r USING (row) GROUP BY c, label
        """,
        {"seed": seed, "into": into},
    )
    rows.db.execute("CREATE OR REPLACE TABLE moved (c BIGINT)")
    while _take(rows, quota):
        pass
    if not rows.value("SELECT count(*) FROM moved"):
        rows.db.execute(
            """
            INSERT INTO moved SELECT c FROM cluster WHERE (SELECT count(DISTINCT c) FROM cluster) > 1
            GROUP BY c ORDER BY sum(size), min(place), c LIMIT 1
            """
        )
    rows.db.execute(
        "UPDATE r SET split = $into WHERE row IN (SELECT row FROM member JOIN moved USING (c))",
        {"into": into},
    )


def _take(rows: Rows, quota: dict[str, int]) -> bool:
    """Take clusters that fit, in order, up to about the first that does not; False if none fits.

    Running sums go over buckets of positions first and then within the bucket with the edge, so that no sort
    holds all clusters. Skipped clusters are considered again in the next round.
    """
    _set_room(rows, quota)
    rows.db.execute(
        """
        CREATE OR REPLACE TABLE wide AS  -- too large for what is free
        SELECT DISTINCT c FROM cluster JOIN room USING (label) WHERE size > free;
        CREATE OR REPLACE TABLE edge AS  -- the first bucket of each label that does not fit as a whole
        WITH bucket AS (
            SELECT label, place >> 48 AS b, sum(size) AS size FROM cluster
            WHERE c NOT IN (SELECT c FROM wide) GROUP BY ALL
        ), running AS (SELECT label, b, sum(size) OVER (PARTITION BY label ORDER BY b) AS upto FROM bucket)
        SELECT label, coalesce(min(b) FILTER (upto > free), 65536) AS edge
        FROM running JOIN room USING (label) GROUP BY label;
        CREATE OR REPLACE TABLE taken AS
        SELECT DISTINCT c FROM cluster JOIN edge USING (label)
        WHERE place >> 48 < edge AND c NOT IN (SELECT c FROM wide);
        DELETE FROM taken WHERE c IN (
            SELECT c FROM cluster JOIN edge USING (label) JOIN taken USING (c) WHERE place >> 48 >= edge
        );
        """
    )
    _move(rows, quota)
    _set_room(rows, quota)
    rows.db.execute(
        """
        CREATE OR REPLACE TABLE taken AS
        WITH near AS (
            SELECT c FROM cluster JOIN edge USING (label)
            WHERE place >> 48 = edge AND c NOT IN (SELECT c FROM wide)
        ), running AS (
            SELECT c, free, sum(size) OVER (PARTITION BY label ORDER BY place, c) AS upto
            FROM cluster SEMI JOIN near USING (c) JOIN room USING (label)
        )
        SELECT c FROM running GROUP BY c HAVING bool_and(upto <= free)
        """
    )
    if _move(rows, quota):
        return True
    rows.db.execute(  # the first that fits, so that every round makes progress
        """
        CREATE OR REPLACE TABLE taken AS
        SELECT arg_min(c, place) AS c FROM cluster WHERE c NOT IN (
            SELECT c FROM cluster JOIN room USING (label) WHERE size > free
        ) HAVING count(*) > 0
        """
    )
    return _move(rows, quota)


def _set_room(rows: Rows, quota: Mapping[str, int]) -> None:
    rows.db.execute("CREATE OR REPLACE TABLE room (label VARCHAR, free BIGINT)")
    rows.db.executemany("INSERT INTO room VALUES (?, ?)", list(quota.items()))


def _move(rows: Rows, quota: dict[str, int]) -> bool:
    """Move the clusters of `taken` from `cluster` to `moved`; return whether there were any."""
    sizes = rows.query("SELECT label, sum(size) FROM cluster SEMI JOIN taken USING (c) GROUP BY label")
    for label, size in sizes:
        quota[label] -= int(size)
    rows.db.execute("INSERT INTO moved SELECT c FROM taken")
    rows.db.execute("DELETE FROM cluster WHERE c IN (SELECT c FROM taken)")
    return bool(sizes)


def _find_clusters(rows: Rows) -> None:
    """Make the table `member` (row, c) of the training rows: rows linked by a text or a group share a c.

    Labels spread along texts and groups until none changes: as many rounds as the longest chain of links.
    """
    rows.db.execute(
        """
        CREATE OR REPLACE TABLE member AS
        SELECT row, key, grp, min(row) OVER (PARTITION BY key) AS c FROM r
        WHERE gone IS NULL AND split = 'train'
        """
    )
    if not rows.value("SELECT count(*) FROM member WHERE grp IS NOT NULL"):
        return
    while True:
        before = rows.value("SELECT sum(c) FROM member")
        for link in ("grp", "key"):
            rows.db.execute(
                f"""
                CREATE OR REPLACE TABLE lowest AS
                SELECT {link}, min(c) AS c FROM member WHERE {link} IS NOT NULL GROUP BY {link}
                """
            )
            rows.db.execute(
                f"UPDATE member SET c = lowest.c FROM lowest WHERE member.{link} = lowest.{link} "
                "AND member.c <> lowest.c"
            )
        if rows.value("SELECT sum(c) FROM member") == before:
            return


def divide_by_question(rows: Rows, splits: int) -> bool:
    """If there are too few texts, allow questions on one text in different splits; return whether it did.

    Args:
        splits: how many splits the training rows must fill.
    """
    passages, questions = rows.query(
        "SELECT count(DISTINCT key) FILTER (key NOT IN (SELECT key FROM r WHERE split <> 'train')), "
        "count(DISTINCT ask) FROM r WHERE gone IS NULL AND split = 'train'"
    )[0]
    if rows.turns or not passages < splits <= questions:
        return False
    rows.turns = True
    rows.db.execute("UPDATE r SET key = ask")
    return True


def by_time(rows: Rows, splits: int) -> tuple[bool, str]:
    """Whether to split the training rows by time, and a sentence on rows that are not, or "".

    Args:
        splits: how many splits they must fill.
    """
    total, dated, days = rows.query(
        "SELECT count(*), count(time), count(DISTINCT left(time, 10)) FROM r "
        "WHERE gone IS NULL AND split = 'train'"
    )[0]
    if not dated:
        return False, ""
    if 2 * dated >= total and days >= splits:
        rest = (
            f"{total - dated:,} of {total:,} rows have no time: they are split at random (data.seed), the "
            "others by time, so some training rows may be later than some test rows; give them a time, or "
            "leave them out"
        )
        return True, rest if dated < total else ""
    what = (
        f"{dated:,} of {total:,} rows have a time" if 2 * dated < total else f"all times are of {days} days"
    )
    return False, f"{what}, too few to split by time: the split is random (data.seed)"


def undated(rows: Rows) -> str:
    """A sentence on training rows without a time, if held-out rows have one, or ""."""
    held_out = rows.value("SELECT count(time) FROM r WHERE gone IS NULL AND split <> 'train'")
    count = rows.value("SELECT count(*) FROM r WHERE gone IS NULL AND split = 'train' AND time IS NULL")
    if not held_out or not count:
        return ""
    return (
        f"{count:,} of {rows.count('train'):,} training rows have no time: they are trained on, though they "
        "may be later than the held-out rows; give them a time, or leave them out of the file"
    )


def carve_by_time(rows: Rows, into: Split, fraction: float, seed: int) -> None:
    """Move the latest `fraction` of the training rows into another split, by whole days; and the same
    fraction of rows without a time, as in `carve`."""
    dated = "gone IS NULL AND split = 'train' AND time IS NOT NULL"
    count = rows.value(f"SELECT count(*) FROM r WHERE {dated}")
    last = rows.value(
        f"SELECT left(time, 10) FROM r WHERE {dated} ORDER BY time DESC, row LIMIT 1 OFFSET $place",
        place=max(0, round(fraction * count) - 1),
    )
    rows.db.execute(
        f"UPDATE r SET split = $into WHERE {dated} AND left(time, 10) >= $last",
        {"into": into, "last": last},
    )
    if round(fraction * (rows.count("train") - rows.value(f"SELECT count(*) FROM r WHERE {dated}"))):
        rows.db.execute(f"UPDATE r SET split = 'dated' WHERE {dated}")
        carve(rows, into, fraction, seed)
        rows.db.execute("UPDATE r SET split = 'train' WHERE split = 'dated'")


def embargo(rows: Rows, split: Split, held_out: Split, days: int) -> None:
    """Drop the rows of `split` within `days` days before the first of `held_out`, or after it.

    So the split ends before the held-out split begins, with a gap for features and targets that span days
    (López de Prado, 2018, chapter 7). Rows without a time stay (see `undated`).
    """
    begin = rows.value(
        "SELECT min(left(time, 10)) FROM r WHERE gone IS NULL AND split = $split", split=held_out
    )
    if begin is None:
        return
    end = (datetime.date.fromisoformat(begin) - datetime.timedelta(days=days)).isoformat()
    rows.drop(
        f"{split} records within {days} days of the {held_out} split",
        "split = $split AND left(time, 10) >= $limit",
        f"data.embargo_days is {days}, and fewer days drop fewer rows",
        split=split,
        limit=end,
    )


def cap(rows: Rows, split: Split, limit: int | None, seed: int) -> None:
    """Keep at most `limit` rows of a split, chosen by the seed: every label, in its share."""
    counts = rows.labels(split)
    if limit is None or sum(counts.values()) <= limit:
        return
    quota = _shares(counts, limit)
    if limit >= len(quota):
        for label in [label for label, count in quota.items() if count == 0]:
            quota[max(quota, key=lambda name: quota[name])] -= 1
            quota[label] = 1
    place = "md5_number_lower(concat($seed, '-subset-', row))"
    for label, free in quota.items():
        chosen = "gone IS NULL AND split = $split AND label = $label"
        least = rows.query(
            f"SELECT {place} AS place, row FROM r WHERE {chosen} ORDER BY place, row LIMIT 1 OFFSET $free",
            seed=seed,
            split=split,
            label=label,
            free=free,
        )
        for first, row in least:  # of the surplus rows
            rows.db.execute(
                f"DELETE FROM r WHERE {chosen} AND ({place} > $first OR ({place} = $first AND row >= $row))",
                {"seed": seed, "split": split, "label": label, "first": first, "row": row},
            )


def bounds(rows: Rows, share: float) -> tuple[float, float] | None:
    """The `share` and `1 - share` quantiles of the training targets; None if nothing is to be clipped."""
    ((low, high),) = rows.query(
        """
        SELECT quantile_cont(number, $low), quantile_cont(number, $high) FROM r
        WHERE gone IS NULL AND split = 'train'
        """,
        low=share,
        high=1 - share,
    )
    return (low, high) if share and low is not None else None


def _shares(counts: Mapping[str, int], total: int) -> dict[str, int]:
    """How many of `total` rows each label gets: proportional, by largest remainder."""
    rows = sum(counts.values())
    return quotas({label: count / rows for label, count in counts.items()}, total)
