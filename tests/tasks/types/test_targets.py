"""Targets as people write them: numbers with signs and units, labels in other spellings, lists of labels."""

import pytest

from fintune.errors import ConfigError
from fintune.recipes import load_recipe
from fintune.tasks.label_names import LabelNames
from fintune.tasks.types import MultiLabelTask, RegressionTask


@pytest.mark.parametrize(
    ("cell", "unit", "number"),
    [
        ("1,250", "", 1250.0),
        ("(3.2)", "", -3.2),
        ("−1.5", "%", -1.5),
        ("+1e-3", "", 0.001),
        (" 2 ", "%", 2.0),
        ("5%", "%", 5.0),
        ("(5 %)", "percent", -5.0),
        ("75 bps", "%", 0.75),
        ("-1,250bp", "%", -12.5),
        ("75 bps", "bps", 75.0),
        ("0.5%", "basis points", 50.0),
    ],
)
def test_a_number_is_read_in_the_tasks_unit(cell, unit, number):
    assert RegressionTask("r", "Predict.", unit=unit).read_target(cell) == pytest.approx(number)


@pytest.mark.parametrize("unit", ["", "EUR"])
@pytest.mark.parametrize("cell", ["5%", "75 bps"])
def test_a_unit_that_is_not_the_tasks_is_refused_with_the_option_to_set(cell, unit):
    with pytest.raises(ValueError, match=r"but the task's unit is .* options: \{unit: '(%|bps)'\}"):
        RegressionTask("r", "Predict.", unit=unit).read_target(cell)


@pytest.mark.parametrize(
    "cell", [True, "TRUE", "false", "1,25", "$5", "5 million", "up 3", "", None, [1], "5% bps"]
)
def test_what_is_no_number_is_refused(cell):
    with pytest.raises(ValueError, match="the target"):
        RegressionTask("r", "Predict.", unit="%").read_target(cell)


def test_labels_that_are_spelt_a_little_otherwise_are_one_and_counted():
    names = LabelNames(["Very Up", "down", "1"], {"n/a": None, "flat": "DOWN"})
    assert [
        names.get(each, each) for each in ("Very Up", " very  UP ", "Down", "1.0", "N/A", "flat", "odd")
    ] == [
        "Very Up",
        "Very Up",
        "down",
        "1",
        None,
        "down",
        "odd",
    ]
    assert dict(names.folded) == {
        (" very  UP ", "Very Up"): 1,
        ("Down", "down"): 1,
        ("1.0", "1"): 1,
        ("N/A", None): 1,
    }


def test_labels_that_the_task_itself_tells_apart_by_case_stay_apart():
    names = LabelNames(["Up", "UP"], {})
    assert (names.get("Up"), names.get("UP"), names.get("up", "unknown")) == ("Up", "UP", "unknown")


def test_yaml_that_looks_like_something_else_is_a_label(tmp_path):
    path = tmp_path / "r.yaml"
    labels = "[yes, no, 1, -0.5, true, ' a ']"
    path.write_text(f"custom_task: {{name: t, type: classification, instruction: i, labels: {labels}}}")
    changes = [
        "training.fp16=yes",
        "data.tasks.t.labels={on: off}",
        "multi_task.class_weights={t: {1: 2, yes: 3}}",
    ]
    recipe = load_recipe(path, changes)
    assert recipe.custom_task[0].labels == ["yes", "no", "1", "-0.5", "true", "a"]
    assert recipe.training.fp16 is True and recipe.data.tasks["t"].labels == {"on": "off"}
    assert recipe.multi_task.class_weights["t"] == {"1": 2, "yes": 3}
    with pytest.raises(ConfigError, match="write it in quotation marks"):
        load_recipe(path, ["custom_task.labels=[a, null]"])


def test_a_set_of_labels_is_read_as_lists_are_written_and_loses_what_is_mapped_to_null():
    task = MultiLabelTask("m", "Which?", ["earnings", "guidance"])
    for cell in (["earnings", "guidance"], '["earnings", "guidance"]', "['guidance', 'earnings']"):
        assert task.read_target(cell) == "earnings, guidance"
    names = LabelNames(task.labels, {"n/a": None})
    assert task.relabel("EARNINGS, n/a", names) == "earnings"
    assert task.relabel("n/a", names) is None
    assert task.relabel("none", names) == "none"
