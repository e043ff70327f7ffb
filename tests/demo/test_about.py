"""What the page says of an adapter, from the files beside it; and what it offers of a user's own data."""

import json

import pytest
from evaluated import write_results

from fintune.config import Recipe
from fintune.data.prepare.dataset import load_prepared, prepare
from fintune.demo.about import below_baseline, trained
from fintune.demo.texts import held_out
from fintune.tasks import task_set

CREATED = "2026-11-28T10:21:16+00:00"


@pytest.fixture
def adapter(tmp_path):
    (tmp_path / "fintune.json").write_text(json.dumps({"created": CREATED}))
    return tmp_path


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"created": CREATED}, "Trained on 28 November 2026 at 10:21 UTC."),
        ({"created": "2026-11-28T01:00:00+02:00"}, "Trained on 27 November 2026 at 23:00 UTC."),
        (
            {"data": {"tasks": {"a": {"dataset": "built-in sample"}, "b": {"dataset": "built-in sample"}}}},
            "Trained on the built-in sample.",
        ),
        (
            {"created": CREATED, "data": {"tasks": {"a": {"dataset": "x"}, "b": {"dataset": "y"}}}},
            "Trained on x (a), y (b) on 28 November 2026 at 10:21 UTC.",
        ),
        ({"created": 7, "data": ["tasks"]}, "The adapter's folder does not say when it was trained"),
    ],
)
def test_the_header_says_when_and_on_what_an_adapter_was_trained(facts, said):
    assert trained(facts).startswith(said)


def test_only_a_result_that_is_worse_than_the_baseline_is_said(adapter):
    assert below_baseline(adapter) == below_baseline(None) == {}
    write_results(adapter, CREATED, accuracy=0.31)
    assert below_baseline(adapter) == {
        "sentiment": "On its test set this task did worse than its simplest baseline (majority class): "
        "accuracy 0.310 against 0.340."
    }
    for accuracy in (0.34, 0.35):
        write_results(adapter, CREATED, accuracy)
        assert below_baseline(adapter) == {}


def test_results_of_another_training_or_damaged_ones_say_nothing(adapter):
    write_results(adapter, "2026-01-01T00:00:00+00:00", accuracy=0.31)
    assert below_baseline(adapter) == {}
    write_results(adapter, CREATED, accuracy=0.31, tasks=7)
    assert below_baseline(adapter) == {}


def test_texts_of_the_test_set_are_offered_while_the_data_is_the_adapters_own(tmp_path):
    ways = ("in", "out")
    rows = [
        f"{amount} million flowed {way} of fund {way}{amount}.,{way}" for amount in range(30) for way in ways
    ]
    (tmp_path / "flows.csv").write_text("\n".join(["text,target", *rows]))
    custom = {"name": "flows", "type": "classification", "labels": list(ways), "instruction": "Say which."}
    data = {"prepared_dir": str(tmp_path / "data"), "tasks": {"flows": {"file": str(tmp_path / "flows.csv")}}}
    raw = {"custom_task": custom, "data": data, "multi_task": {"task_weights": {"flows": 1.0}}}
    recipe = Recipe.model_validate(raw)
    key = prepare(recipe, say=lambda line: None).manifest["key"]
    task = task_set(recipe)["flows"]
    test = {record.text for record in load_prepared(tmp_path / "data").records("flows", "test")}

    def offered(key):
        (tmp_path / "fintune.json").write_text(json.dumps({"data": {"key": key}}))
        return held_out(tmp_path, recipe, task)

    found = offered(key)
    assert len(found) == 3 and {record.text for record in found} <= test
    assert {record.target for record in found} == set(ways)
    assert offered("another") == offered(None) == held_out(None, recipe, task) == []
    (tmp_path / "data" / "flows" / "test.parquet").write_bytes(b"damaged")
    assert offered(key) == []
