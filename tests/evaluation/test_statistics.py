"""Bootstrap intervals: equal to the plain method, and as wide as theory says."""

import random

import numpy as np
import pytest

from fintune.evaluation import statistics
from fintune.evaluation.statistics import bootstrap_intervals
from fintune.tasks import Prediction, Record, known_tasks

TASKS = known_tasks()


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
    got = bootstrap_intervals(task, records, predictions, resamples=resamples, seed=3)
    drawn = []
    for indices in np.random.default_rng(3).integers(0, n, size=(resamples, n)):
        drawn.append(task.metrics([records[i] for i in indices], [predictions[i] for i in indices]))
    assert set(got) == set(drawn[0])
    for metric, interval in got.items():
        assert interval == pytest.approx(np.percentile([d[metric] for d in drawn], [2.5, 97.5]), abs=1e-9)


def test_the_interval_of_an_accuracy_has_the_width_of_the_binomial():
    records, predictions = _example("sentiment", 2000)
    accuracy = TASKS["sentiment"].metrics(records, predictions)["accuracy"]
    low, high = bootstrap_intervals(TASKS["sentiment"], records, predictions)["accuracy"]
    half = 1.96 * (accuracy * (1 - accuracy) / 2000) ** 0.5
    assert (low, high) == pytest.approx((accuracy - half, accuracy + half), abs=0.2 * half)


def test_resampling_in_small_pieces_changes_nothing(monkeypatch):
    records, predictions = _example("regression", 50)
    whole = bootstrap_intervals(TASKS["regression"], records, predictions)
    monkeypatch.setattr(statistics, "_COUNTS_AT_A_TIME", 50 * 7)
    assert bootstrap_intervals(TASKS["regression"], records, predictions) == whole


def test_r2_of_constant_targets_has_no_interval():
    records = [Record(text="t", target=0.1)] * 7
    got = bootstrap_intervals(TASKS["regression"], records, [Prediction(float(i)) for i in range(7)])
    assert set(got) == {"mse", "mae"}


def test_an_answer_that_is_no_label_counts_as_wrong():
    records = [Record(text="t", target="positive")] * 4
    got = bootstrap_intervals(TASKS["sentiment"], records, [Prediction("unknown")] * 4)
    assert got == {"accuracy": (0, 0), "macro_f1": (0, 0), "weighted_f1": (0, 0)}
