"""Class weights: balanced ones make every label count alike, and they reach the loss of a step."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fintune.config import Recipe
from fintune.errors import ConfigError
from fintune.prompts import TokenizedExample
from fintune.tasks import Record, TaskSet, known_tasks
from fintune.training.class_weights import label_weights
from fintune.training.run import make_plan
from fintune.training.steps import StepBuilder

TASKS = known_tasks()
LABELS = TASKS["sentiment"].candidates()


@given(st.lists(st.sampled_from(LABELS), min_size=1, max_size=50))
def test_balanced_labels_count_alike_and_their_examples_one_on_average(targets):
    weights = label_weights(TASKS["sentiment"], [Record(text="t", target=t) for t in targets], "balanced")
    totals = {label: targets.count(label) * weights[label] for label in set(targets)}
    assert sum(totals.values()) == pytest.approx(len(targets))
    assert list(totals.values()) == pytest.approx([len(targets) / len(totals)] * len(totals))


def test_an_example_has_the_weight_of_its_label_in_the_plan_and_in_the_step():
    class Template:
        def example(self, task, record):
            return TokenizedExample([1, 2, len(record.text)], [3, 4], task.name)

    tasks = {name: TASKS[name] for name in ("sentiment", "headline")}
    raw = {
        "task_weights": {"sentiment": 2.0, "headline": 1.0},
        "class_weights": {"sentiment": {"negative": 3}},
    }
    recipe = Recipe.model_validate({"multi_task": {**raw, "sampling_strategy": "proportional"}})
    records = {
        "sentiment": [Record(text="up", target="positive"), Record(text="down", target="negative")],
        "headline": [Record(text="fell", target="bearish")],
    }
    plan = make_plan(recipe, TaskSet(tasks), records, Template())
    assert [(e.task, e.weight) for e in plan.examples] == [
        ("sentiment", 1),
        ("sentiment", 3),
        ("headline", 1),
    ]
    step = StepBuilder(plan.examples, [[0, 1, 2]], plan.loss_weights, row_size=9, row_tokens=99)[0]
    assert sorted(step.rows[0].weights.tolist()) == pytest.approx([1 / 9, 2 / 9, 6 / 9])
    even = StepBuilder(
        [replace(e, weight=1.0) for e in plan.examples],
        [[0, 1, 2]],
        plan.loss_weights,
        row_size=9,
        row_tokens=99,
    )[0]
    assert sorted(even.rows[0].weights.tolist()) == pytest.approx([1 / 5, 2 / 5, 2 / 5])


@pytest.mark.parametrize(
    ("task", "wish", "message"),
    [("qa", "balanced", "a qa task has no labels"), ("sentiment", {"good": 2.0}, "names the label 'good'")],
)
def test_what_cannot_be_weighed_is_one_sentence(task, wish, message):
    with pytest.raises(ConfigError, match=message):
        label_weights(TASKS[task], [], wish)
