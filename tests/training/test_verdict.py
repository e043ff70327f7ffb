"""What a new adapter's answers warn of."""

from fintune.config import Recipe
from fintune.tasks import Prediction, Record, task_set
from fintune.training.verdict import baselines, warnings

TASKS = task_set(Recipe())


def warned(task, targets, answers, validation=500):
    records = [Record(f"text {i}", target) for i, target in enumerate(targets)]
    counts = {"tasks": {task: {"counts": {"validation": validation}}}}
    given = [answer if isinstance(answer, Prediction) else Prediction(answer) for answer in answers]
    plain = baselines(TASKS, {task: records}, {task: records})
    return warnings(TASKS, {task: (records, given)}, counts, plain)


def test_one_label_for_everything_is_said_with_the_label():
    (line,) = warned("headline", ["bullish", "bearish", "neutral"] * 4, ["bullish"] * 12)
    assert line.startswith("headline: the adapter answers all 12 validation examples with 'bullish'")
    assert not warned("headline", ["bullish"] * 6, ["bullish"] * 6)  # as is right


def test_a_task_below_its_simplest_baseline_is_said_with_both_figures():
    targets = ["bullish"] * 8 + ["bearish"] * 2
    (line,) = warned("headline", targets, ["bearish", "bullish"] * 5)
    assert "headline is worse than its simplest baseline (majority class)" in line
    assert "accuracy 0.5 against 0.8" in line
    (line,) = warned("regression", [1.0, 2.0, 3.0], [9.0, 9.0, 9.0])
    assert "regression is worse" in line and "MAE 7 against" in line
    assert not warned("headline", targets, targets)


def test_few_validation_examples_are_counted_by_task():
    (line,) = warned("headline", ["bullish", "bearish"] * 5, ["bullish", "bearish"] * 5, validation=49)
    assert "Fewer than 50 validation examples: headline 49." in line
    assert not warned("headline", ["bullish", "bearish"] * 5, ["bullish", "bearish"] * 5, validation=50)
