"""Sampling: shares are what their formulas say, epochs are exact, and the seed decides everything."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fintune.data.sampling import quotas, schedule, shares

SIZES = st.dictionaries(st.sampled_from("abcde"), st.integers(1, 40), min_size=1)


def test_each_strategy_gives_its_formulas_shares():
    sizes = {"a": 100, "b": 25, "c": 0}
    assert shares(sizes, "balanced") == {"a": 0.5, "b": 0.5, "c": 0.0}
    assert shares(sizes, "proportional") == {"a": 0.8, "b": 0.2, "c": 0.0}
    assert shares(sizes, "weighted", {"a": 1, "b": 3, "c": 9}) == {"a": 0.25, "b": 0.75, "c": 0.0}
    assert shares(sizes, "temperature", temperature=2.0) == pytest.approx({"a": 2 / 3, "b": 1 / 3, "c": 0})


@given(SIZES, st.integers(0, 500))
def test_quotas_sum_to_the_total_and_are_within_one_of_the_share(sizes, total):
    share = shares(sizes, "proportional")
    counts = quotas(share, total)
    assert sum(counts.values()) == total
    assert all(abs(counts[name] - share[name] * total) < 1 for name in share)


@given(
    SIZES,
    st.sampled_from(["balanced", "proportional"]),
    st.integers(1, 3),
    st.integers(1, 16),
    st.integers(0, 9),
)
def test_every_epoch_is_exact_and_no_example_repeats_before_all_were_seen(
    sizes, strategy, epochs, step, seed
):
    task_of = [name for name, size in sizes.items() for _ in range(size)]
    total = len(task_of)
    per_epoch = quotas(shares(sizes, strategy), total)
    steps = schedule(task_of, per_epoch, epochs, step, seed)
    assert steps == schedule(task_of, per_epoch, epochs, step, seed)
    assert all(len(s) == step for s in steps[:-1])
    order = [i for s in steps for i in s]
    for epoch in range(epochs):
        drawn = Counter(task_of[i] for i in order[epoch * total : (epoch + 1) * total])
        assert drawn == Counter({name: count for name, count in per_epoch.items() if count})
    seen = Counter(order)
    for name, size in sizes.items():
        counts = [seen[i] for i in range(total) if task_of[i] == name]
        assert max(counts) - min(counts) <= 1, f"{name} of {size} was dealt unevenly"


def test_half_an_epoch_keeps_the_shares():
    steps = schedule(["a"] * 30 + ["b"] * 10, {"a": 30, "b": 10}, 0.5, 4, seed=1)
    order = [i for s in steps for i in s]
    assert Counter("a" if i < 30 else "b" for i in order) == {"a": 15, "b": 5}


def test_another_seed_gives_another_order():
    args = (["a"] * 30, {"a": 30}, 1, 30)
    assert schedule(*args, seed=1) != schedule(*args, seed=2)


def test_no_task_to_draw_from_is_an_error():
    with pytest.raises(ValueError, match="no task has both"):
        shares({"a": 0}, "balanced")
