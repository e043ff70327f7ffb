"""Error analysis: what is confused, what is worst, which examples are harder, which labels look wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fintune.evaluation.analysis import errors
from fintune.evaluation.analysis.errors import BROWSED, TEXT_CHARACTERS
from fintune.evaluation.analysis.neighbours import Neighbours
from fintune.evaluation.analysis.slices import (
    STOCK_EXAMPLES,
    STOCKS,
    error_slices,
    traits_of,
    wilson_interval,
)
from fintune.evaluation.scores import Scored
from fintune.tasks import Prediction, Record, known_tasks
from fintune.tasks.label_noise import CANDIDATES, confident_disagreements, near_copies

TASKS = known_tasks()


def analyse(task, records, answers, train=()):
    return errors.analyse(Scored.of(task, records, answers), train)


def mistake(task, record, answer):
    return task.mistake(record, answer)


def _sure(label, p):
    return Prediction(label, {label: p, "other": 1 - p})


def _spread(**shares):
    return Prediction(max(shares, key=shares.get), shares)


def test_confusions_have_targets_in_rows_and_the_most_confident_error_comes_first():
    records = [
        Record(text="w " * 300, target=t, id=str(i)) for i, t in enumerate(["positive"] * 3 + ["neutral"])
    ]
    answers = [_sure("positive", 0.9), _sure("negative", 0.6), _sure("neutral", 0.8), _sure("neutral", 0.99)]
    analysis = analyse(TASKS["sentiment"], records, answers)
    found = analysis.summary
    table = found["confusion"]
    row = dict(zip(table["labels"], table["matrix"], strict=True))["positive"]
    assert dict(zip(table["labels"], row, strict=True)) == {"positive": 1, "negative": 1, "neutral": 1}
    assert [(e["id"], e["confidence"]) for e in found["worst"]] == [("2", 0.8), ("1", 0.6)]
    assert len(found["worst"][0]["text"]) <= TEXT_CHARACTERS
    assert found["mistakes"] == {"positive → negative": 1, "positive → neutral": 1}
    assert [e and e["rank"] for e in analysis.examples] == [None, 2, 1, None]


def test_the_largest_residual_and_the_lowest_f1_come_first_and_right_answers_not_at_all():
    numbers = [Record(text="t", target=t, id=str(t)) for t in (1.0, -5.0, 2.0)]
    found = analyse(TASKS["regression"], numbers, [Prediction(0.0)] * 3).summary
    assert [e["id"] for e in found["worst"]] == ["-5.0", "2.0", "1.0"]
    assert [e["id"] for e in found["largest"]["too_high"]] == ["-5.0"]
    assert [e["id"] for e in found["largest"]["too_low"]] == ["2.0", "1.0"]
    asked = [Record(text="t", question="q", target=t, id=t) for t in ("Oslo", "net sales", "in net sales")]
    worst = analyse(TASKS["qa"], asked, [Prediction("net sales")] * 3).summary["worst"]
    assert [(e["id"], e["question"]) for e in worst] == [("Oslo", "q"), ("in net sales", "q")]


def test_a_regression_error_is_an_answer_farther_off_than_the_training_mean():
    train = [Record(text="t", target=t) for t in (0.0, 4.0)]
    records = [Record(text=text, target=3.0) for text in ("Sales rose 5 %.", "Sales did not rise.")]
    slices = analyse(TASKS["regression"], records, [Prediction(2.5), Prediction(5.0)], train).summary[
        "slices"
    ]
    found = {row["value"]: row["errors"] for row in slices if row["trait"] == "negation"}
    assert found == {"without negation": 0, "with negation": 1}
    examples = analyse(TASKS["regression"], records, [Prediction(2.5), Prediction(5.0)], train).examples
    assert [example["counts"] for example in examples] == [False, True]  # both are inexact


@pytest.mark.parametrize(
    ("expected", "got", "name"),
    [
        ("Net sales", "the net sales.", ""),
        ("Net sales", "", "empty"),
        ("$12 million", "It was $12 million in the year before that one", "verbose"),
        ("$12 million", "$13 million", "wrong number"),
        ("net sales of services and goods", "net sales", "incomplete"),
        ("the board of directors", "a new factory in Oslo", "wrong span"),
        ("net sales rose strongly", "net sales rose by much", "other wording"),
    ],
)
def test_an_answer_to_a_question_is_wrong_in_a_way_that_has_a_name(expected, got, name):
    record = Record(text="t", question="q", target=expected)
    assert mistake(TASKS["qa"], record, Prediction(got))[0] == name


def test_a_summary_is_faulted_for_a_number_its_text_lacks_before_one_it_leaves_out():
    task = TASKS["summarization"]
    record = Record(text="Revenue was $1.2 billion, up 5%.", target="Revenue $1.2 billion\nUp 5%")
    assert mistake(task, record, Prediction("- Revenue $1,200 million\n- Up 5 percent"))[0] == "other wording"
    assert mistake(task, record, Prediction("- Revenue $1.2 billion")) == (
        "missing number",
        {"missing": ["5 %"]},
    )
    assert mistake(task, record, Prediction("- Revenue $1.3 billion, up 5%")) == (
        "unfaithful number",
        {"unfaithful": ["1.3 billion"], "missing": ["1.2 billion"]},
    )
    found = analyse(task, [record], [Prediction("- Revenue $1.3 billion")]).summary
    assert found["numbers"] == {"summaries_with_unfaithful": 1, "summaries_with_missing": 1}


@pytest.mark.parametrize(
    ("value", "numbers", "negation", "ticker"),
    [
        ("Profit didn't rise", "without", "with", "without"),
        ("$AAPL up 3%", "with", "without", "with"),
        ("It cost $300 at Nokia (NYSE: NOK)", "with", "without", "with"),
        ("Notable growth, another record", "without", "without", "without"),
    ],
)
def test_traits_of_a_text(value, numbers, negation, ticker):
    (row,) = traits_of(TASKS["sentiment"], [Record(text=value, target="neutral")])
    found = row["numbers"], row["negation"], row["ticker"]
    assert found == (f"{numbers} numbers", f"{negation} negation", f"{ticker} ticker")


def test_a_label_is_rare_by_its_share_of_training():
    train = [Record(text="t", target=t) for t in ["neutral"] * 8 + ["positive"] * 3 + ["negative"]]
    records = [Record(text="t", target=t) for t in ("negative", "positive")]
    rows = traits_of(TASKS["sentiment"], records, train)
    assert [row["rarity"] for row in rows] == ["rare label", "other label"]


def test_stocks_that_enough_examples_are_about_have_slices_of_their_own():
    texts = [
        "$AAPL and $TSLA fell",
        "shares of $aapl rose",
        "(NYSE: T) cut its dividend",
        "no stock, $5 alone",
    ]
    counts = (6, 6, STOCK_EXAMPLES - 1, 5)
    records = [Record(text=t, target=1.0) for t, n in zip(texts, counts, strict=True) for _ in range(n)]
    records += [Record(text="a filing", target=1.0, group="KO")] * STOCK_EXAMPLES
    records += [Record(text="a filing", target=1.0, group="one sentence")] * STOCK_EXAMPLES
    wrong = [i < 3 for i in range(len(records))]
    rows = error_slices(traits_of(TASKS["regression"], records), wrong, [0.0] * len(records))
    found = {row["value"]: (row["n"], row["errors"]) for row in rows if row["trait"] == "stock"}
    others = STOCK_EXAMPLES - 1 + 5 + STOCK_EXAMPLES
    assert found == {
        "$AAPL": (12, 3), "$KO": (STOCK_EXAMPLES, 0), "another stock, or none": (others, 0)
    }  # fmt: skip
    many = [Record(text=f"${'ABCDEFGHIJ'[i % 10]}", target=1.0) for i in range(10 * STOCK_EXAMPLES)]
    assert len({row["stock"] for row in traits_of(TASKS["regression"], many)}) == STOCKS + 1


@given(st.integers(0, 60), st.integers(1, 60))
def test_the_wilson_interval_is_the_published_formula(hits, n):
    hits = min(hits, n)
    p, z = hits / n, 1.959964
    middle, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    expected = ((middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n))
    assert wilson_interval(hits, n) == pytest.approx(expected, abs=1e-6)


@given(st.lists(st.tuples(st.integers(1, 40), st.booleans()), min_size=1, max_size=60))
def test_every_example_is_in_one_slice_of_each_trait(examples):
    records = [Record(text="w " * n + ("no 5" if i % 2 else ""), target="positive")
               for i, (n, _) in enumerate(examples)]  # fmt: skip
    wrong = [flag for _, flag in examples]
    rows = error_slices(traits_of(TASKS["sentiment"], records), wrong, [float(w) for w in wrong])
    for trait in {row["trait"] for row in rows}:
        chosen = [row for row in rows if row["trait"] == trait]
        assert sum(row["n"] for row in chosen) == len(records)
        assert sum(row["errors"] for row in chosen) == sum(wrong)
        assert all(row["interval"][0] <= row["rate"] + 1e-12 <= row["interval"][1] + 2e-12 for row in chosen)
        assert all(row["mean"] == pytest.approx(row["rate"]) for row in chosen)


def test_the_nearest_training_example_shares_the_rare_words():
    texts = ("Sales rose in the quarter", "Elcoteq moves its plant to Tallinn", "The board met in May")
    train = [Record(text=text, target="neutral", id=text[:4]) for text in texts]
    neighbours = Neighbours(TASKS["sentiment"], train)
    same, other, none = neighbours.nearest(
        [Record(text=t) for t in ("Elcoteq moves its plant to Tallinn", "In May the plant closed", "Xyzzy")]
    )
    assert same[0][0].id == "Elco" and same[0][1] == pytest.approx(1, abs=1e-6)
    assert other[0][0].id == "The " and none == []
    cosines = [cosine for _, cosine in other]
    assert cosines == sorted(cosines, reverse=True) and 0 < cosines[0] < 1
    assert Neighbours(TASKS["sentiment"], []).nearest([Record(text="a")]) == [[]]


def test_a_disagreement_is_confident_from_what_is_usual_for_the_answered_label():
    targets = ["a", "a", "b", "b", "a"]
    answers = [_spread(a=0.9, b=0.1), _spread(a=0.6, b=0.4), _spread(a=0.3, b=0.7),
               _spread(a=0.85, b=0.15), _spread(a=0.45, b=0.55)]  # fmt: skip
    # usual: p(a) = (0.9 + 0.6 + 0.45) / 3 = 0.65, p(b) = (0.7 + 0.15) / 2 = 0.425
    assert confident_disagreements(targets, answers) == [(3, pytest.approx(0.7)), (4, pytest.approx(0.1))]
    assert confident_disagreements(["a"], [Prediction("b")]) == []


def test_a_near_copy_in_training_counts_only_with_another_label():
    copy, same = Record(text="t", target="b"), Record(text="t", target="a")
    around = [[(same, 0.99), (copy, 0.9)], [(copy, 0.7)], [(same, 0.95)]]
    assert near_copies(["a", "a", "a"], around) == [(0, copy, 0.9)]


def test_errors_carry_their_nearest_training_examples_and_label_noise_shows_the_copy():
    train = [Record(text="Operating profit rose to EUR 13.1 mn", target="neutral", id="train-1")]
    record = Record(text="Operating profit rose to EUR 13.1 mn", target="positive", id="test-1")
    answer = _spread(positive=0.1, neutral=0.8, negative=0.1)
    analysis = analyse(TASKS["sentiment"], [record, Record(text="x", target="neutral")], [answer] * 2, train)
    (copy,) = analysis.summary["label_noise"]["near_copies"]
    (confident,) = analysis.summary["label_noise"]["confident"]
    assert copy["near_copy"]["id"] == "train-1" and copy["near_copy"]["target"] == "neutral"
    assert confident["neighbours_agree"] == [1, 1] and confident["gap"] == pytest.approx(0.7)
    assert analysis.examples[0]["nearest"][0]["id"] == "train-1" and analysis.examples[1] is None


def test_labels_to_look_at_are_cut_and_counted():
    records = [Record(text=f"text {i}", target="positive", id=str(i)) for i in range(CANDIDATES + 6)]
    records += [Record(text="x", target="neutral")]
    answers = [_spread(positive=0.1, neutral=0.8, negative=0.1)] * len(records)
    noise = analyse(TASKS["sentiment"], records, answers).summary["label_noise"]
    assert len(noise["confident"]) == CANDIDATES
    assert noise["found"] == {"confident": CANDIDATES + 6, "near_copies": 0}


def test_only_the_worst_errors_get_neighbours_but_all_get_a_rank():
    train = [Record(text="sales rose", target=1.0)]
    records = [Record(text="sales fell", target=float(i)) for i in range(1, BROWSED + 6)]
    analysis = analyse(TASKS["regression"], records, [Prediction(0.0)] * len(records), train)
    ranked = sorted(analysis.examples, key=lambda e: e["rank"])
    assert [e["rank"] for e in ranked] == list(range(1, BROWSED + 6))
    assert ["nearest" in e for e in ranked] == [True] * BROWSED + [False] * 5
