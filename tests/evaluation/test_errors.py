"""Error analysis: what is confused, what is worst, whether length matters."""

from hypothesis import given
from hypothesis import strategies as st

from fintune.evaluation.errors import TEXT_CHARACTERS, analyse
from fintune.tasks import Prediction, Record, known_tasks

TASKS = known_tasks()


def _sure(label, p):
    return Prediction(label, {label: p, "other": 1 - p})


def test_confusions_have_targets_in_rows_and_the_most_confident_error_comes_first():
    records = [
        Record(text="w " * 300, target=t, id=str(i)) for i, t in enumerate(["positive"] * 3 + ["neutral"])
    ]
    answers = [_sure("positive", 0.9), _sure("negative", 0.6), _sure("neutral", 0.8), _sure("neutral", 0.99)]
    found = analyse(TASKS["sentiment"], records, answers)
    table = found["confusion"]
    row = dict(zip(table["labels"], table["matrix"], strict=True))["positive"]
    assert dict(zip(table["labels"], row, strict=True)) == {"positive": 1, "negative": 1, "neutral": 1}
    assert [(e["id"], e["confidence"]) for e in found["worst"]] == [("2", 0.8), ("1", 0.6)]
    assert len(found["worst"][0]["text"]) <= TEXT_CHARACTERS


def test_the_largest_residual_and_the_lowest_f1_come_first_and_right_answers_not_at_all():
    numbers = [Record(text="t", target=t, id=str(t)) for t in (1.0, -5.0, 2.0)]
    worst = analyse(TASKS["regression"], numbers, [Prediction(0.0)] * 3)["worst"]
    assert [e["id"] for e in worst] == ["-5.0", "2.0", "1.0"]
    asked = [Record(text="t", question="q", target=t, id=t) for t in ("Oslo", "net sales", "in net sales")]
    worst = analyse(TASKS["qa"], asked, [Prediction("net sales")] * 3)["worst"]
    assert [(e["id"], e["question"]) for e in worst] == [("Oslo", "q"), ("in net sales", "q")]


def test_long_texts_that_fail_show_in_the_length_table():
    records = [Record(text="w " * n, target="positive") for n in range(1, 10)]
    answers = [_sure("positive" if n <= 6 else "neutral", 0.7) for n in range(1, 10)]
    rows = analyse(TASKS["sentiment"], records, answers)["by_length"]
    assert [(r["words"], r["n"], r["value"]) for r in rows] == [
        ([1, 3], 3, 0),
        ([4, 6], 3, 0),
        ([7, 9], 3, 1),
    ]


@given(st.lists(st.integers(0, 30), min_size=1))
def test_every_example_is_in_one_third(lengths):
    records = [Record(text="w " * n, target="positive") for n in lengths]
    rows = analyse(TASKS["sentiment"], records, [_sure("positive", 1.0)] * len(lengths))["by_length"]
    assert sum(row["n"] for row in rows) == len(lengths)
