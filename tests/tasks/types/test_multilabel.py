"""Several labels of one text: sets as targets, decided by likelihood, scored label by label."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from fintune.cli import main
from fintune.tasks import Prediction, Record, task_from_dict
from fintune.tasks.types import MultiLabelTask

LABELS = ("earnings", "guidance", "merger")
TASK = MultiLabelTask("topics", "Which topics?", LABELS)
SETS = st.sets(st.sampled_from(LABELS))


def fitted(*targets):
    task = MultiLabelTask("topics", "Which topics?", LABELS)
    task.fit([Record("t", target=target) for target in targets])
    return task


@pytest.mark.parametrize(
    ("cell", "target"),
    [
        ("guidance; earnings", "earnings, guidance"),
        (["merger"], "merger"),
        ([], "none"),
        ("none", "none"),
        ("earnings | merger", "earnings, merger"),
    ],
)
def test_a_cell_is_read_as_a_set_in_the_order_of_the_labels(cell, target):
    assert TASK.read_target(cell) == target


def test_unknown_labels_are_named_and_others_can_be_mapped_one_by_one():
    record = Record("t", target="profit, guidance")
    assert TASK.unknown_labels(record) == ["profit"]
    assert "'profit' is unknown" in TASK.problem(record)
    assert TASK.relabel(record.target, {"profit": "earnings"}) == "earnings, guidance"
    with pytest.raises(ValueError, match="not a list of labels"):
        TASK.read_target([{"label": "earnings"}])
    with pytest.raises(ValueError, match="without commas"):
        MultiLabelTask("topics", "Which?", ["a, b"])


def test_a_labels_probability_is_that_of_all_sets_that_have_it():
    task = fitted("earnings, guidance", "earnings, guidance", "merger")
    assert task.candidates() == ["none", *LABELS, "earnings, guidance"]
    answer = task.decide([math.log(p) for p in (0.1, 0.3, 0.3, 0.05, 0.25)])
    assert answer.probabilities == pytest.approx({"earnings": 0.55, "guidance": 0.55, "merger": 0.05})
    assert answer.value == "earnings, guidance" and answer.confidence == pytest.approx(0.25)
    assert fitted("merger").decide([0.0, -9.0, -9.0, -9.0]).value == "none"


@given(st.lists(st.tuples(SETS, SETS), min_size=1, max_size=30))
def test_f1_is_scikit_learns(pairs):
    records = [Record("t", target=TASK.text_of(frozenset(wanted))) for wanted, _ in pairs]
    answers = [Prediction(TASK.text_of(frozenset(got))) for _, got in pairs]
    found = TASK.metrics(records, answers)
    truth, given_ = (
        np.array([[label in each for label in LABELS] for each in side]) for side in zip(*pairs, strict=True)
    )
    assert found["macro_f1"] == pytest.approx(f1_score(truth, given_, average="macro", zero_division=0))
    if truth.any() or given_.any():
        assert found["micro_f1"] == pytest.approx(f1_score(truth, given_, average="micro", zero_division=0))
    by_label = TASK.details(records, answers)["per_class"]
    expected = f1_score(truth, given_, average=None, zero_division=0)
    assert [row["f1"] for row in by_label.values()] == pytest.approx(expected.tolist())


def test_a_stored_task_is_made_again_with_the_sets_it_learnt():
    task = fitted("earnings, merger", "guidance")
    again = task_from_dict(task.to_dict())
    assert type(again) is MultiLabelTask and again.candidates() == task.candidates()


def test_a_task_of_yaml_alone_goes_from_file_to_a_table_of_answers(workdir, tiny_base, capsys):
    words = {"earnings": "profit rose", "guidance": "the outlook holds", "merger": "it buys a rival"}
    sets = [(), ("earnings",), ("guidance",), ("merger",), ("earnings", "guidance")]
    rows = [
        {"text": f"Note {i}: {'; '.join(words[label] for label in chosen) or 'nothing new'}.", "tags": chosen}
        for i, chosen in enumerate(sets * 20)
    ]
    Path("notes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe = {
        "base_model": {"name": str(tiny_base)},
        "custom_task": {
            "name": "topics",
            "type": "multilabel",
            "instruction": "Topics?",
            "labels": list(LABELS),
        },
        "multi_task": {"task_weights": {"topics": 1}},
        "data": {
            "tasks": {"topics": {"file": "notes.jsonl", "columns": {"target": "tags"}}},
            "near_duplicates": None,
        },
        "lora_config": {"r": 4, "lora_dropout": 0.0},
        "training": {"max_steps": 2, "gradient_accumulation_steps": 1, "warmup_steps": 0, "bf16": False},
        "evaluation": {"base_model": False},
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["train", "--config", "recipe.yaml", "--output_dir", "out"]) == 0
    assert main(["evaluate", "--model_path", "out", "--output_file", "out/results.json"]) == 0
    entry = json.loads(Path("out/results.json").read_text())["tasks"]["topics"]
    metrics = entry["systems"]["adapter"]["metrics"]
    assert {"micro_f1", "macro_f1", "exact_match"} <= set(metrics)
    assert set(entry["systems"]["adapter"]["details"]["per_class"]) == set(LABELS)
    assert "F1 (micro)" in capsys.readouterr().out

    Path("new.jsonl").write_text("\n".join(json.dumps({"text": row["text"]}) for row in rows[:5]))
    answered = ["--task", "topics", "--input_file", "new.jsonl", "--output_file", "answers/"]
    assert main(["predict", "--model_path", "out", *answered]) == 0
    import pyarrow.parquet as pq

    columns = pq.read_table("answers").column_names
    assert columns == ["id", "task", "prediction", *(f"probability_{label}" for label in LABELS), "error"]
