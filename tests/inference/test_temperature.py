"""The temperature makes probabilities as sure as they are right, and never changes an answer."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fintune.inference.calibration import fit_temperature
from fintune.tasks.base import softmax


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


def test_no_examples_leave_the_probabilities_alone():
    assert fit_temperature([], []) == 1.0
