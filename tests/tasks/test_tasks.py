"""Tasks: how a target becomes a completion, and candidates' likelihoods an answer."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fintune.config import Recipe
from fintune.data.prepare.dataset import prepare
from fintune.errors import DataError
from fintune.tasks import Prediction, Record, known_tasks, task_from_dict
from fintune.tasks.base import Task
from fintune.tasks.types import ClassificationTask, RegressionTask

TASKS = known_tasks()
RETURNS = [-0.05, -0.031, -0.012, -0.004, 0.0, 0.003, 0.011, 0.02, 0.034, 0.06]
"""Returns as fractions: their levels need two or more decimals."""
SCORES = st.floats(-200, 0)


def fitted(targets):
    task = RegressionTask("returns", "Predict the return.")
    task.fit([Record("news", float(target)) for target in targets])
    return task


@given(st.lists(SCORES, min_size=3, max_size=3))
def test_a_label_is_the_likeliest_and_probabilities_sum_to_one(scores):
    answer = TASKS["sentiment"].decide(scores)
    assert list(answer.probabilities) == ["positive", "negative", "neutral"]
    assert math.isclose(sum(answer.probabilities.values()), 1)
    best = TASKS["sentiment"].labels.index(answer.value)
    assert scores[best] >= max(scores) - 1e-12


def test_probabilities_are_in_the_ratio_of_the_likelihoods():
    answer = TASKS["headline"].decide([math.log(0.02), math.log(0.06), math.log(0.02)])
    assert answer.value == "bearish"
    assert list(answer.probabilities.values()) == pytest.approx([0.2, 0.6, 0.2])


@given(st.lists(st.floats(-0.3, 0.3), min_size=1, max_size=60), st.lists(SCORES, min_size=15, max_size=15))
@example(RETURNS, [-1.0] * 15)
@example([-0.05], [-1.0] * 15)
@example([-0.004, -0.003, 0.0, 30.0], [-1.0] * 15)
def test_levels_are_rounded_quantiles_with_their_sign(targets, scores):
    task = fitted(targets)
    quantiles = np.quantile(targets, (np.arange(15) + 0.5) / 15)
    (decimals,) = {len(level.partition(".")[2]) for level in task.levels}
    for level in task.levels:
        value, nearest = float(level), quantiles[np.abs(quantiles - float(level)).argmin()]
        assert abs(value - nearest) <= 0.5 * 10**-decimals + 1e-12
        assert value == 0 or math.copysign(1, value) == math.copysign(1, nearest)
        assert level[0] == ("-" if value < 0 else "+")
    assert task.levels == sorted(set(task.levels), key=float)
    answer = task.decide(scores[: len(task.levels)])
    assert min(task.level_means) - 1e-9 <= answer.value <= max(task.level_means) + 1e-9
    assert math.isclose(sum(answer.probabilities.values()), 1)


def test_levels_of_returns_tell_gains_from_losses():
    levels = fitted([-0.05, -0.03, -0.03, 0.03, 0.05]).levels
    assert levels == "-0.05 -0.04 -0.03 -0.01 +0.00 +0.02 +0.03 +0.04 +0.05".split()


def test_a_regression_answer_minimizes_the_expected_squared_error():
    task = fitted(np.random.default_rng(0).normal(size=200))
    answer = task.decide(np.random.default_rng(1).normal(size=len(task.levels)).tolist())
    chances = np.array(list(answer.probabilities.values()))

    def expected_error(value):
        return float(chances @ (np.array(task.level_means) - value) ** 2)

    others = np.linspace(min(task.level_means), max(task.level_means), 101)
    assert all(expected_error(answer.value) <= expected_error(other) for other in others)


@given(st.floats(-0.2, 0.2))
def test_a_target_is_trained_as_its_nearest_level(target):
    task = fitted(RETURNS)
    level = task.completion(Record("news", target))
    assert level in task.levels
    assert abs(float(level) - target) == min(abs(float(other) - target) for other in task.levels)


def test_a_level_stands_for_the_mean_of_the_targets_nearest_to_it():
    task = fitted(RETURNS)
    nearest = [task.completion(Record("news", target)) for target in RETURNS]
    for level, mean in zip(task.levels, task.level_means, strict=True):
        own = [target for target, name in zip(RETURNS, nearest, strict=True) if name == level]
        assert mean == pytest.approx(np.mean(own) if own else float(level))


def test_a_regression_task_without_training_data_says_so():
    with pytest.raises(DataError, match="has no levels yet"):
        TASKS["regression"].candidates()


def test_a_summary_keeps_the_minus_of_a_figure_and_loses_its_bullet():
    summary = "- EPS of $1.20\n•  Revenue rose\n* Guidance raised\n\n-5 % organic growth\n-\n- -3 % in Asia"
    assert TASKS["summarization"].completion(Record("call", summary)).splitlines() == [
        "- EPS of $1.20",
        "- Revenue rose",
        "- Guidance raised",
        "- -5 % organic growth",
        "- -3 % in Asia",
    ]


@pytest.mark.parametrize(
    ("name", "record", "why"),
    [
        ("sentiment", Record(" ", "positive"), "the text is empty"),
        ("sentiment", Record("Sales rose.", "Positive"), "the label 'Positive' is unknown"),
        ("qa", Record("Sales rose.", "Yes."), "the question is empty"),
        ("qa", Record("Sales rose.", " ", "Did they?"), "the target is empty"),
        ("regression", Record("Sales rose.", math.nan), "not a finite number"),
        ("regression", Record("Sales rose.", "1.0"), "not a finite number"),
    ],
)
def test_what_is_wrong_with_a_record_is_named(name, record, why):
    assert why in TASKS[name].problem(record)


def test_generated_text_is_parsed_without_its_margins():
    assert TASKS["qa"].parse("\n 4.1 million \n").value == "4.1 million"


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_restored_from_what_an_adapter_keeps(name):
    task = task_from_dict(TASKS[name].to_dict())
    if name == "regression":
        task.fit([Record("news", target) for target in RETURNS])
    again = task_from_dict(task.to_dict())
    assert vars(again) == vars(task) and type(again) is type(task)


def test_a_score_is_the_metrics_and_what_the_hook_adds():
    class Own(Task):
        def evaluate_custom_task(self, test_data):
            assert test_data == [{"text": "a", "question": "b", "target": "c", "prediction": "d"}]
            return {"own": 0.5}

    record, answer = Record("a", "c", "b"), Prediction("d")
    assert Own("own", "Do it.").score([record], [answer]) == {"own": 0.5}
    assert TASKS["qa"].score([record], [answer]) == {"exact_match": 0.0, "f1": 0.0}


@given(
    st.lists(st.floats(-50, 50), min_size=1, max_size=12, unique_by=lambda value: round(value, 2)),
    st.lists(st.floats(-30, 0), min_size=12, max_size=12),
)
def test_a_numbers_interval_holds_its_share_of_the_distribution(values, scores):
    levels = [f"{value:+.2f}" for value in sorted(values)]
    task = RegressionTask("number", "Answer.", levels=levels, level_means=[float(v) for v in levels])
    prediction = task.decide(scores[: len(levels)])
    low, high = prediction.interval
    assert low <= high
    quantiles = [task.quantile(prediction.probabilities, q) for q in (0.1, 0.25, 0.5, 0.75, 0.9)]
    assert quantiles == sorted(quantiles) and (quantiles[0], quantiles[-1]) == pytest.approx((low, high))
    inside = sum(p for level, p in prediction.probabilities.items() if low <= float(level) <= high)
    cut = sum(sorted(prediction.probabilities.values(), reverse=True)[:2])  # the two levels at its ends
    assert inside <= 0.8 + cut + 1e-9 and inside >= 0.8 - cut - 1e-9


def test_the_quantiles_of_even_levels_are_those_of_the_even_distribution_and_greedy_is_the_likeliest_level():
    levels = [f"+{i}" for i in range(10)]
    task = RegressionTask("number", "Answer.", levels=levels, level_means=[float(v) for v in levels])
    even = task.decide([0.0] * 10)
    assert even.value == pytest.approx(4.5) and even.interval == pytest.approx((0.5, 8.5))
    assert task.quantile(even.probabilities, 0.25) == pytest.approx(2.0)
    task.answers_with = "greedy"
    assert task.decide([0.0] * 7 + [0.1, 0.0, 0.0]).value == 7.0


def test_what_validation_chose_for_a_label_task_is_kept_with_it():
    task = ClassificationTask("mood", "Say.", ["good", "bad"])
    assert not {"normalization", "temperature"} & set(task.to_dict())
    task.normalization, task.temperature = "tokens", 0.5
    kept = task_from_dict(task.to_dict())
    assert (kept.normalization, kept.temperature) == ("tokens", 0.5)


def test_a_recipe_rewords_an_instruction_and_the_prepared_data_keeps_it(workdir):
    wording = "What does an investor make of this?"
    raw = {
        "multi_task": {"task_weights": {"sentiment": 1.0}, "instructions": {"sentiment": wording}},
        "data": {"tasks": {"sentiment": {"dataset": "sample", "max_train": 9}}},
    }
    prepared = prepare(Recipe.model_validate(raw), say=lambda line: None)
    assert prepared.task_set()["sentiment"].instruction == wording
    assert known_tasks()["sentiment"].instruction != wording
    with pytest.raises(ValueError, match=r"multi_task.instructions names the unknown task 'sentimnt'"):
        Recipe.model_validate({"multi_task": {"instructions": {"sentimnt": "Say it."}}})
