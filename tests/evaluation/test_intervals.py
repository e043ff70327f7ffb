"""Intervals and tests: equal to the plain method, as wide as theory says, honest where nothing differs."""

import itertools
import math
import random
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import kstest

from fintune.evaluation import intervals
from fintune.evaluation.intervals import (
    cluster_of,
    mcnemar,
    paired_differences,
)
from fintune.evaluation.scores import Scored
from fintune.metrics.measure import Measure
from fintune.tasks import Prediction, Record, known_tasks

TASKS = known_tasks()
MEAN = Measure("mean", "mean", lambda *_: ())


def _intervals(task, records, predictions, **options):
    return Scored.of(task, records, predictions).intervals(**options)


def _mean_metric(values):
    return MEAN.summable(np.asarray(values, float)[:, None])


def _summable(scored):
    return {m.name: m.summable(scored.tables[m.name]) for m in scored.measures if not m.whole}


def _example(name, n, seed=1):
    rng = random.Random(seed)
    if name == "sentiment":
        targets = rng.choices(["positive", "negative", "neutral"], [5, 1, 10], k=n)
        answers = [t if rng.random() < 0.7 else "neutral" for t in targets]
    elif name == "regression":
        targets = [rng.gauss(20, 2) for _ in range(n)]
        answers = [0.5 * t + 10 + rng.gauss(0, 1) for t in targets]
    else:
        words = ["sales", "rose", "fell", "costs", "2023"]
        targets = [" ".join(rng.choices(words, k=4)) for _ in range(n)]
        answers = [" ".join(rng.choices(words, k=4)) for _ in range(n)]
    return [Record(text="t", target=t) for t in targets], [Prediction(a) for a in answers]


@pytest.mark.parametrize("name", ["sentiment", "regression", "qa", "summarization"])
def test_intervals_equal_those_of_metrics_computed_anew_on_every_resample(name):
    task, n, resamples = TASKS[name], 60, 40
    records, predictions = _example(name, n)
    got = _intervals(task, records, predictions, resamples=resamples, seed=3)
    drawn = []
    for indices in np.random.default_rng(3).integers(0, n, size=(resamples, n)):
        drawn.append(task.metrics([records[i] for i in indices], [predictions[i] for i in indices]))
    assert set(drawn[0]) <= set(got)
    for metric in drawn[0]:
        interval = got[metric]
        if {d[metric] for d in drawn} in ({0.0}, {1.0}):
            continue  # Wilson's: see below
        assert interval == pytest.approx(np.percentile([d[metric] for d in drawn], [2.5, 97.5]), abs=1e-9)


def test_the_interval_of_an_accuracy_has_the_width_of_the_binomial():
    records, predictions = _example("sentiment", 2000)
    accuracy = TASKS["sentiment"].metrics(records, predictions)["accuracy"]
    low, high = _intervals(TASKS["sentiment"], records, predictions)["accuracy"]
    half = 1.96 * (accuracy * (1 - accuracy) / 2000) ** 0.5
    assert (low, high) == pytest.approx((accuracy - half, accuracy + half), abs=0.2 * half)


def test_a_share_of_0_or_1_has_wilsons_interval_and_no_other_figure_has():
    records, off = [Record("t", target="neutral")] * 20, 1.96**2 / (20 + 1.96**2)
    for answer, accuracy in (("neutral", (1 - off, 1.0)), ("positive", (0.0, off))):
        found = _intervals(TASKS["sentiment"], records, [Prediction(answer)] * 20)
        assert found["accuracy"] == found["weighted_f1"] == pytest.approx(accuracy, abs=1e-3)
        assert found["missing_rate"] == pytest.approx((0.0, off), abs=1e-3)
        assert found["mcc"] == (0.0, 0.0)
    groups = [replace(record, group=str(i % 4)) for i, record in enumerate(records)]
    found = _intervals(TASKS["sentiment"], groups, [Prediction("neutral")] * 20)
    assert found["accuracy"][0] == pytest.approx(0.510, abs=1e-3)  # of 4 groups, not of 20 examples
    exact = [Record("t", target=float(i)) for i in range(9)]
    assert _intervals(TASKS["regression"], exact, [Prediction(r.target) for r in exact])["mse"] == (0.0, 0.0)


def test_resampling_in_small_pieces_changes_nothing(monkeypatch):
    records, predictions = _example("regression", 50)
    whole = _intervals(TASKS["regression"], records, predictions)
    monkeypatch.setattr(intervals, "_COUNTS_AT_A_TIME", 50 * 7)
    pieces = _intervals(TASKS["regression"], records, predictions)
    assert pieces == {name: pytest.approx(bounds, rel=1e-12) for name, bounds in whole.items()}


def test_r2_of_constant_targets_has_no_interval():
    records, answers = [Record(text="t", target=0.1)] * 7, [Prediction(float(i)) for i in range(7)]
    got = _intervals(TASKS["regression"], records, answers)
    assert {"mse", "mae"} <= set(got) and not {"r2", "spearman"} & set(got)


def test_an_answer_that_is_no_label_counts_as_wrong():
    records = [Record(text="t", target="positive")] * 4
    got = _intervals(TASKS["sentiment"], records, [Prediction("unknown")] * 4)
    lowest = {name: low for name, (low, _) in got.items() if name != "missing_rate"}
    assert (
        lowest == {"accuracy": 0, "macro_f1": 0, "weighted_f1": 0, "mcc": 0} and got["missing_rate"][1] == 1
    )


@pytest.mark.parametrize("name", ["sentiment", "regression"])
def test_mcc_and_spearman_of_sums_equal_scikit_learns_and_scipys(name):
    from scipy.stats import spearmanr
    from sklearn.metrics import matthews_corrcoef

    records, predictions = _example(name, 90)
    targets, answers = [r.target for r in records], [p.value for p in predictions]
    got = Scored.of(TASKS[name], records, predictions).metrics()
    if name == "sentiment":
        assert got["mcc"] == pytest.approx(matthews_corrcoef(targets, answers))
    else:
        assert got["spearman"] == pytest.approx(spearmanr(targets, answers).statistic)


def test_examples_of_one_group_or_date_are_drawn_together():
    """20 groups of 10 equal answers each are 20 observations, not 200."""
    rng = random.Random(0)
    right = [rng.random() < 0.6 for _ in range(20) for _ in range(10)]
    right = [right[10 * (i // 10)] for i in range(200)]
    predictions = [Prediction("positive" if ok else "negative") for ok in right]

    def width(**options):
        records = [
            Record(text="t", target="positive", **{k: f(i) for k, f in options.items()}) for i in range(200)
        ]
        low, high = _intervals(TASKS["sentiment"], records, predictions)["accuracy"]
        return high - low

    alone, together = width(), width(group=lambda i: str(i // 10))
    assert together == pytest.approx(alone * 10**0.5, rel=0.2)
    assert width(time=lambda i: f"2015-10-{i // 10 + 1:02}") == alone  # labels have no cluster by date
    same_day = [cluster_of(True, i, "AAPL", f"2015-10-01T{i}:00") for i in ("10", "14")]
    assert same_day[0] == same_day[1] != cluster_of(True, "10", "AAPL", "2015-10-02T10:00")
    assert cluster_of(False, "1", "", "") != cluster_of(False, "2", "1", "")  # a group that is called "1"


def test_one_cluster_says_nothing_of_chance():
    records, predictions = _example("regression", 30)
    records = [replace(r, time="2015-10-01") for r in records]
    assert _intervals(TASKS["regression"], records, predictions) == {}
    closer = [Prediction((r.target + p.value) / 2) for r, p in zip(records, predictions, strict=True)]
    one, two = (_summable(Scored.of(TASKS["regression"], records, a)) for a in (predictions, closer))
    found = paired_differences(one, two, ["a"] * 30)["mae"]
    assert found.difference < 0
    assert found.interval is None and found.p_value is None


def test_clusters_drawn_by_sums_equal_metrics_of_the_examples_drawn_anew():
    records, predictions = _example("regression", 60)
    records = [replace(r, time=f"2015-10-{i % 12 + 1:02}") for i, r in enumerate(records)]
    got = _intervals(TASKS["regression"], records, predictions, resamples=40, seed=3)
    drawn = []
    for days in np.random.default_rng(3).integers(0, 12, size=(40, 12)):
        chosen = [i for day in days for i in range(60) if i % 12 == day]
        drawn.append(
            TASKS["regression"].metrics([records[i] for i in chosen], [predictions[i] for i in chosen])
        )
    for metric in ("mse", "mae", "r2"):
        assert got[metric] == pytest.approx(np.percentile([d[metric] for d in drawn], [2.5, 97.5]), abs=1e-9)


def _accuracy(right):
    return {"accuracy": _mean_metric(np.array(right, float))}


def test_the_permutation_p_value_approaches_the_exact_one_of_every_swap():
    a, b = [1, 0, 0, 1, 0, 0, 0, 1], [1, 1, 1, 1, 1, 0, 1, 0]
    gaps = np.array(b) - np.array(a)
    signs = np.array(list(itertools.product([1, -1], repeat=len(gaps))))
    exact = np.mean(np.abs(signs @ gaps) >= abs(gaps.sum()))
    clusters = [str(i) for i in range(8)]
    found = paired_differences(_accuracy(a), _accuracy(b), clusters, permutations=20_000)["accuracy"]
    assert found.p_value == pytest.approx(exact, abs=0.01)
    assert found.difference == pytest.approx(gaps.mean())


def test_a_system_does_not_differ_from_itself_and_clusters_widen_a_difference():
    rng = np.random.default_rng(0)
    a = rng.random(300) < 0.5
    same = paired_differences(_accuracy(a), _accuracy(a), list(map(str, range(300))))["accuracy"]
    assert same.p_value == 1 and same.interval == (0, 0)
    b = np.repeat(rng.random(30) < 0.7, 10)
    alone, together = (
        paired_differences(_accuracy(a), _accuracy(b), clusters)["accuracy"]
        for clusters in (list(map(str, range(300))), [str(i // 10) for i in range(300)])
    )
    assert alone.difference == together.difference
    assert np.diff(together.interval) > 1.5 * np.diff(alone.interval) and together.p_value > alone.p_value


def test_permutation_p_values_are_uniform_where_two_systems_are_alike():
    rng = np.random.default_rng(1)
    found = []
    for seed in range(200):
        a, b = rng.normal(size=40), rng.normal(size=40)
        one, two = {"mae": _mean_metric(a)}, {"mae": _mean_metric(b)}
        options = {"resamples": 2, "permutations": 199, "seed": seed}
        found.append(paired_differences(one, two, list(map(str, range(40))), **options)["mae"].p_value)
    assert kstest(found, "uniform").pvalue > 0.01


def test_mcnemar_is_the_binomial_of_the_examples_on_which_exactly_one_is_right():
    a, b = [1] * 50 + [1] * 2 + [0] * 9, [1] * 50 + [0] * 2 + [1] * 9
    assert mcnemar(a, b) == pytest.approx(2 * sum(math.comb(11, k) for k in range(3)) / 2**11)
    assert mcnemar(a, a) == 1
