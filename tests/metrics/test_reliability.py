"""Calibration: worked examples, scikit-learn's figures, and nothing that depends on the examples' order."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fintune.metrics.reliability import (
    aurc,
    brier,
    expected_calibration_error,
    reliability,
    risk_coverage,
)

answered = st.lists(st.tuples(st.sampled_from([0.4, 0.5, 0.7, 0.9]), st.booleans()), min_size=1, max_size=60)


def test_the_brier_score_sums_over_the_labels():
    assert brier({"up": 0.7, "down": 0.2, "flat": 0.1}, "up") == pytest.approx(0.09 + 0.04 + 0.01)
    assert brier({"up": 1.0, "down": 0.0}, "down") == 2


def test_half_the_brier_score_of_two_labels_is_scikit_learns():
    from sklearn.metrics import brier_score_loss

    p, y = [0.9, 0.3, 0.6], [1, 0, 0]
    ours = np.mean([brier({"1": a, "0": 1 - a}, str(b)) for a, b in zip(p, y, strict=True)])
    assert ours / 2 == pytest.approx(brier_score_loss(y, p))


def test_ece_of_a_worked_example():
    sure, right = [0.6] * 5 + [0.9] * 5, [1, 0, 0, 0, 0] + [1] * 5
    # half at |0.2 - 0.6|, half at |1 - 0.9|
    assert expected_calibration_error(sure, right, bins=2) == pytest.approx(0.25)
    assert [row["n"] for row in reliability(sure, right, bins=2)] == [5, 5]


def test_bins_hold_equally_many_examples_and_the_curve_is_scikit_learns():
    from sklearn.calibration import calibration_curve

    rng = np.random.default_rng(0)
    sure = rng.random(3000)
    right = (rng.random(3000) < sure**2).astype(float)
    curve = reliability(sure, right)
    assert [row["n"] for row in curve] == [200] * 15
    accuracy, confidence = calibration_curve(right, sure, n_bins=15, strategy="quantile")
    assert [row["accuracy"] for row in curve] == pytest.approx(accuracy, abs=0.006)
    assert [row["confidence"] for row in curve] == pytest.approx(confidence, abs=0.006)


def test_honest_confidence_has_an_ece_near_0_and_boasting_one_near_the_boast():
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.5, 0.9, 20_000)
    right = rng.random(20_000) < sure
    assert expected_calibration_error(sure, right) < 0.015
    assert expected_calibration_error(sure + 0.1, right) == pytest.approx(0.1, abs=0.015)


def test_aurc_of_a_worked_example():
    # errors at ranks 2 and 4: risks 0, 1/2, 1/3, 1/2
    assert aurc([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0]) == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)


def test_accuracy_rises_as_the_unsure_are_left_out():
    sure, right = [i / 100 for i in range(100)], [float(i >= 20) for i in range(100)]
    rows = {row["coverage"]: row for row in risk_coverage(sure, right)}
    assert rows[1.0]["accuracy"] == pytest.approx(0.8) and rows[0.8]["accuracy"] == 1
    assert rows[0.9]["accuracy"] == pytest.approx(80 / 90) and rows[0.9]["threshold"] == 0.1
    assert rows[0.9]["n"] == 90


@given(answered, st.randoms(use_true_random=False))
def test_nothing_depends_on_the_order_of_equal_confidences(pairs, rng: random.Random):
    shuffled = list(pairs)
    rng.shuffle(shuffled)
    for measure in (aurc, expected_calibration_error):
        one, two = (measure(*map(list, zip(*some, strict=True))) for some in (pairs, shuffled))
        assert one == pytest.approx(two, abs=1e-12) and 0 <= one <= 1


@given(answered)
def test_confidence_that_says_nothing_has_the_error_rate_as_its_aurc(pairs):
    right = [ok for _, ok in pairs]
    assert aurc([0.5] * len(right), right) == pytest.approx(1 - np.mean(right))
