"""Damaged characters: found and repaired, and text that is whole stays as it is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fintune.config import Recipe
from fintune.data.prepare.dataset import prepare
from fintune.text.encoding import problem, repair

WHOLE = "Sampo's profit rose to €1.2bn – analysts’ “best case”; Nestlé, Mäkinen & Ørsted agree."


@pytest.mark.parametrize("wrong", ["cp1252", "latin-1"])
def test_utf8_read_in_another_encoding_is_repaired(wrong):
    damaged = WHOLE.replace("”", '"').encode().decode(wrong)
    assert problem(damaged) == "repairable"
    assert problem(repair(damaged)) is None
    assert "Nestlé, Mäkinen & Ørsted" in repair(damaged)


def test_whole_text_and_lost_characters_are_told_apart():
    assert problem(WHOLE) is None
    assert repair(WHOLE) == WHOLE
    assert problem("Nordea B\ufffdrs") == "lost"


@given(st.text(st.characters(max_codepoint=127)))
def test_ascii_is_never_changed(text):
    assert repair(text) == text
    assert problem(text) is None


def test_a_recipe_may_repair_and_does_not_unless_it_says_so(workdir):
    damaged = "Nestlé beats".encode().decode("cp1252")
    rows = [f"{damaged} estimate number {i},{'up' if i % 2 else 'down'}" for i in range(40)]
    (workdir / "own.csv").write_text("text,target\n" + "\n".join(rows), encoding="utf-8")
    for repair_encoding, expected in ((False, damaged), (True, "Nestlé beats")):
        recipe = Recipe.model_validate(
            {
                "custom_task": {
                    "name": "way",
                    "type": "classification",
                    "labels": ["up", "down"],
                    "instruction": "Up or down?",
                },
                "multi_task": {"task_weights": {"way": 1}},
                "data": {"repair_encoding": repair_encoding, "tasks": {"way": {"file": "own.csv"}}},
            }
        )
        records = prepare(recipe, say=lambda line: None).records("way", "train")
        assert all(record.text.startswith(expected) for record in records)
