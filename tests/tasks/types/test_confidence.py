"""Probabilities become as sure as they are right, intervals as wide as they must; no answer changes."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fintune.tasks import Prediction
from fintune.tasks.base import INTERVAL, softmax
from fintune.tasks.types import RegressionTask
from fintune.tasks.types.classification import fit_temperature
from fintune.tasks.types.regression import conformal_margin


@settings(deadline=None, max_examples=20)
@given(st.floats(0.3, 3.0), st.integers(0, 100))
def test_the_temperature_that_sharpened_the_truth_is_found_again(temperature, seed):
    draw = random.Random(seed)
    forecasts, targets = [], []
    for _ in range(3000):
        true = softmax([draw.gauss(0, 1.5) for _ in range(3)])
        targets.append(draw.choices("abc", true)[0])
        stated = softmax([math.log(p) * temperature for p in true])
        forecasts.append(dict(zip("abc", stated, strict=True)))
    assert fit_temperature(forecasts, targets) == pytest.approx(temperature, rel=0.15)


@pytest.mark.parametrize(("rows", "wrong"), [(0, 0), (49, 20), (300, 0), (300, 4), (300, 297)])
def test_too_few_or_all_right_answers_leave_the_probabilities_alone(rows, wrong):
    """Of right answers alone the likeliest temperature is 0, with which every answer is certain."""
    forecasts = [{"a": 0.7, "b": 0.3}] * rows
    assert fit_temperature(forecasts, ["b"] * wrong + ["a"] * (rows - wrong)) == 1.0
    enough = [{"a": 0.7, "b": 0.3}] * 50
    assert fit_temperature(enough, ["b"] * 5 + ["a"] * 45) < 1.0


@settings(deadline=None, max_examples=20)
@given(st.floats(0.05, 8), st.floats(-2, 2), st.integers(0, 100))
def test_intervals_of_any_width_hold_four_fifths_of_new_numbers(half, shift, seed):
    draw = random.Random(seed)

    def examples(count):
        centres = [draw.gauss(0, 2) for _ in range(count)]
        intervals = [(centre - half, centre + half) for centre in centres]
        return intervals, [draw.gauss(centre + shift, 1) for centre in centres]

    margin = conformal_margin(*examples(2000))
    intervals, targets = examples(4000)
    held = sum(low - margin <= y <= high + margin for (low, high), y in zip(intervals, targets, strict=True))
    assert held / len(targets) == pytest.approx(INTERVAL, abs=0.04)


def test_a_margin_widens_shrinks_but_never_turns_an_interval_round_and_is_kept():
    task = RegressionTask("moves", "Say.", levels=["-1", "1"], level_means=[-1.0, 1.0], interval_margin=0.5)
    answer = Prediction(0.2, {"-1": 0.4, "1": 0.6}, interval=(-1.0, 1.0))
    assert task.calibrated(answer).interval == (-1.5, 1.5)
    assert task.calibrated(answer).value == 0.2
    assert task.to_dict()["interval_margin"] == 0.5
    task.interval_margin = -3.0
    assert task.calibrated(answer).interval == (0.0, 0.0)
    task.interval_margin = 0.0
    assert task.calibrated(answer) is answer
    assert conformal_margin([(0.0, 1.0)] * 9, [5.0] * 9) == 0.0  # too few to say
