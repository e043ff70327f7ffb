"""Baselines: answers that need no model."""

import pytest

from fintune.errors import DataError
from fintune.evaluation.systems.baselines import baseline_predictions
from fintune.tasks import Record, known_tasks

TASKS = known_tasks()
TEST = [Record(text="Sales rose.", target="positive"), Record(text="Sales fell.", target="negative")]


def test_classification_answers_the_training_majority_with_its_frequencies():
    train = [Record(text="t", target=label) for label in ["neutral", "neutral", "positive", "neutral"]]
    name, predictions = baseline_predictions(TASKS["sentiment"], train, TEST)
    assert name == "majority class"
    assert [p.value for p in predictions] == ["neutral", "neutral"]
    assert predictions[0].probabilities == {"positive": 0.25, "negative": 0, "neutral": 0.75}


def test_regression_answers_the_training_mean():
    train = [Record(text="t", target=x) for x in (1.0, 2.0, 6.0)]
    name, predictions = baseline_predictions(TASKS["regression"], train, TEST)
    assert name == "training mean" and [p.value for p in predictions] == [3.0, 3.0]


def test_summarization_answers_the_first_three_sentences_as_bullets():
    text = "Good morning. Revenue of Vel Inc. was $3.5 million. It rose 4%! Costs fell.\nThank you"
    name, [prediction] = baseline_predictions(TASKS["summarization"], [], [Record(text=text)])
    assert name == "lead-3 sentences"
    assert prediction.value == "- Good morning.\n- Revenue of Vel Inc. was $3.5 million.\n- It rose 4%!"


def test_qa_answers_the_sentence_that_shares_most_words_with_the_question():
    context = "The board met in May. Net sales were $12 million in 2023. Costs were $9 million."
    record = Record(text=context, question="What were the net sales in 2023?")
    _, [prediction] = baseline_predictions(TASKS["qa"], [], [record])
    assert prediction.value == "Net sales were $12 million in 2023."


def test_a_baseline_without_training_records_is_refused():
    with pytest.raises(DataError, match="sentiment has no training records"):
        baseline_predictions(TASKS["sentiment"], [], TEST)
