"""Splits and subsets: exact, seeded, stratified, and never through the middle of a group."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from fintune.data.quality import text_key
from fintune.data.splits import carve, subset
from fintune.tasks.base import Record

FRACTIONS = st.floats(0.05, 0.45)
SEEDS = st.integers(0, 10**6)


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


@given(GROUPED, FRACTIONS, SEEDS)
@settings(deadline=None)
def test_no_group_and_no_text_ends_on_both_sides(records, fraction, seed):
    rest, carved = carve(records, fraction, seed, by_label=True)
    assert Counter(r.id for r in rest + carved) == Counter(r.id for r in records)
    assert not {r.group for r in rest if r.group} & {r.group for r in carved}
    assert not {text_key(r.text) for r in rest} & {text_key(r.text) for r in carved}


@given(LABELLED, FRACTIONS, SEEDS)
@settings(deadline=None)
def test_records_without_groups_are_split_exactly_and_by_label(records, fraction, seed):
    _, carved = carve(records, fraction, seed, by_label=True)
    assert len(carved) == max(1, round(fraction * len(records)))
    share = len(carved) / len(records)
    got, whole = Counter(r.target for r in carved), Counter(r.target for r in records)
    assert all(abs(got[label] - share * count) < 1 for label, count in whole.items())


@given(GROUPED, FRACTIONS, SEEDS)
@settings(deadline=None)
def test_a_seed_always_gives_the_same_split(records, fraction, seed):
    assert carve(records, fraction, seed, True) == carve(records, fraction, seed, True)


def test_another_seed_gives_another_split():
    records = single("ab" * 50)
    assert carve(records, 0.2, 1, True) != carve(records, 0.2, 2, True)


def test_a_group_too_large_for_the_fraction_is_still_taken_whole():
    records = [Record(text=f"{g} {i}", target="a", group=g) for g in "xyz" for i in range(10)]
    rest, carved = carve(records, 0.1, 0, True)
    assert len(carved) == 10 and len({r.group for r in carved}) == 1 and len(rest) == 20


@given(LABELLED, st.integers(1, 90), SEEDS)
@settings(deadline=None)
def test_a_subset_has_its_size_its_order_and_every_label_it_has_room_for(records, limit, seed):
    chosen = subset(records, limit, seed, by_label=True)
    assert len(chosen) == min(limit, len(records))
    assert chosen == [record for record in records if record in chosen]
    assert chosen == subset(records, limit, seed, by_label=True)
    labels = {record.target for record in records}
    assert len({record.target for record in chosen}) == len(labels) or limit < len(labels)


def test_a_rare_label_survives_a_small_subset():
    chosen = subset(single("a" * 99 + "b"), 5, 0, by_label=True)
    assert sorted(r.target for r in chosen) == ["a", "a", "a", "a", "b"]
