"""Splits and subsets: exact, seeded, stratified, by time where there is one, and never through a group."""

import tempfile
from collections import Counter
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from fintune.data.prepare import splits
from fintune.data.prepare.checks import Report
from fintune.data.prepare.shards import Part, read_parts
from fintune.data.prepare.table import Rows
from fintune.data.records import text_key
from fintune.tasks.base import Record
from fintune.tasks.types import ClassificationTask

FRACTIONS = st.floats(0.05, 0.45)
SEEDS = st.integers(0, 10**6)
TASK = ClassificationTask("kind", "Which?", ["a", "b", "c"])
slow = settings(deadline=None, max_examples=25)


def single(labels):
    return [Record(text=f"text {i}", target=label, id=str(i)) for i, label in enumerate(labels)]


LABELLED = st.lists(st.sampled_from("abc"), min_size=2, max_size=80).map(single)
GROUPED = st.lists(
    st.tuples(st.integers(0, 9), st.integers(0, 15), st.sampled_from("ab")), min_size=1, max_size=60
).map(
    lambda rows: [
        Record(text=f"Text  {text}", target=label, group=f"g{group}" if group else "", id=str(i))
        for i, (group, text, label) in enumerate(rows)
    ]
)


@contextmanager
def table(records):
    with tempfile.TemporaryDirectory() as folder:
        part = Part(TASK, partial(list, records), {}, Path(folder) / "part.parquet")
        read_parts([part])
        with Rows([part.path], Path(folder), numeric=False, report=Report()) as rows:
            yield rows


def sides(rows, records, into="test"):
    """The records by split: (train, `into`), in their order."""
    found = dict(rows.db.execute("SELECT id, split FROM r WHERE gone IS NULL").fetchall())
    return [[r for r in records if found.get(r.id) == split] for split in ("train", into)]


def carved(records, fraction, seed):
    with table(records) as rows:
        splits.carve(rows, "test", fraction, seed)
        return sides(rows, records)


@given(GROUPED, FRACTIONS, SEEDS)
@slow
def test_no_group_and_no_text_ends_on_both_sides(records, fraction, seed):
    rest, chosen = carved(records, fraction, seed)
    assert Counter(r.id for r in rest + chosen) == Counter(r.id for r in records)
    assert not {r.group for r in rest if r.group} & {r.group for r in chosen}
    assert not {text_key(r.text) for r in rest} & {text_key(r.text) for r in chosen}


@given(LABELLED, FRACTIONS, SEEDS)
@slow
def test_records_without_groups_are_split_exactly_and_by_label(records, fraction, seed):
    _, chosen = carved(records, fraction, seed)
    assert len(chosen) == max(1, round(fraction * len(records)))
    share = len(chosen) / len(records)
    got, whole = Counter(r.target for r in chosen), Counter(r.target for r in records)
    assert all(abs(got[label] - share * count) < 1 for label, count in whole.items())


def test_a_seed_always_gives_the_same_split_and_another_seed_another():
    records = single("ab" * 50)
    assert carved(records, 0.2, 1) == carved(records, 0.2, 1) != carved(records, 0.2, 2)


def test_groups_fill_the_fraction_as_far_as_they_fit():
    records = [
        Record(f"{g} {i}", "ab"[i % 2], group=f"g{g}", id=f"{g}.{i}") for g in range(30) for i in range(g)
    ]
    _, chosen = carved(records, 0.2, 0)
    assert 0.18 * len(records) <= len(chosen) <= 0.2 * len(records)


def test_a_group_too_large_for_the_fraction_is_still_taken_whole():
    records = [Record(text=f"{g} {i}", target="a", group=g, id=f"{g}{i}") for g in "xyz" for i in range(10)]
    rest, chosen = carved(records, 0.1, 0)
    assert len(chosen) == 10 and len({r.group for r in chosen}) == 1 and len(rest) == 20


@given(LABELLED, st.integers(1, 90), SEEDS)
@slow
def test_a_subset_has_its_size_and_every_label_it_has_room_for(records, limit, seed):
    with table(records) as rows:
        splits.cap(rows, "train", limit, seed)
        chosen, _ = sides(rows, records)
    assert len(chosen) == min(limit, len(records))
    labels = {record.target for record in records}
    assert len({record.target for record in chosen}) == len(labels) or limit < len(labels)


def test_a_rare_label_survives_a_small_subset():
    records = single("a" * 99 + "b")
    with table(records) as rows:
        splits.cap(rows, "train", 5, 0)
        assert sorted(r.target for r in sides(rows, records)[0]) == ["a", "a", "a", "a", "b"]


def days(count, text="text"):
    return [
        Record(f"{text} {i}", "ab"[i % 2], id=str(i), time=f"2024-03-{1 + i // 2:02}") for i in range(count)
    ]


def by_time(records, embargo):
    with table(records) as rows:
        assert splits.by_time(rows, 3) == (True, "")
        splits.carve_by_time(rows, "test", 0.25, 0)
        splits.embargo(rows, "train", "test", embargo)
        return *sides(rows, records), dict(rows.report.dropped)


def test_records_with_times_are_split_by_whole_days_with_an_embargo_before_the_later_ones():
    records = days(40)
    train, test, dropped = by_time(records, embargo=3)
    assert {r.time for r in test} == {f"2024-03-{day}" for day in range(16, 21)}
    assert max(r.time for r in train) == "2024-03-12"
    assert dropped == {"train records within 3 days of the test split": 6}


def test_what_stands_in_the_future_changes_nothing_in_training():
    records = days(40)
    changed = records[:30] + [
        Record(f"else {r.id}", "a", id=r.id, time=r.time) for r in reversed(records[30:])
    ]
    assert by_time(records, 2)[0] == by_time(changed, 2)[0]
