"""Metrics and classical systems on the real datasets, where FINTUNE_DATA_DIR holds them."""

import os
from itertools import islice
from pathlib import Path

import pytest

from fintune.data.raw.registry import DATASETS
from fintune.tasks import Record, known_tasks
from fintune.tasks.classical import lead
from fintune.text.numbers import numeric_match, parse_figure, supported_numbers, tatqa_scores

FOLDER = os.environ.get("FINTUNE_DATA_DIR", "")
pytestmark = pytest.mark.skipif(not FOLDER, reason="FINTUNE_DATA_DIR is not set: no real data")


def _records(name, count=None):
    if not all((Path(FOLDER) / path).is_file() for path in DATASETS[name].paths):
        pytest.skip(f"{name} is not in {FOLDER}")
    found = islice(DATASETS[name].read(Path(FOLDER)), count)
    return [item for item in found if isinstance(item, Record)]


def test_every_tat_qa_answer_is_right_by_its_own_rules_and_numbers_by_value():
    records = _records("tatqa")
    kinds = [getattr(record, "kind", "") or "span" for record in records]
    answers = [str(record.target) for record in records]
    assert all(tatqa_scores(a, a, kind) == (1, 1) for a, kind in zip(answers, kinds, strict=True))
    numbers = [a for a in answers if parse_figure(a)]
    assert len(numbers) > 800 and all(numeric_match(a, a) == 1 for a in numbers)
    assert all(numeric_match(a, f"{parse_figure(a).value:.12f}") == 1 for a in numbers)


def test_sentences_of_a_call_are_faithful_and_its_reference_mostly():
    records = _records("ectsum", 40)
    _, leads = lead(records, 30)
    copied = [supported_numbers(str(p.value), r.text) for p, r in zip(leads, records, strict=True)]
    assert all(found == total for found, total in copied) and sum(total for _, total in copied) > 100
    found, total = map(sum, zip(*(supported_numbers(r.target, r.text) for r in records), strict=True))
    assert 0.8 < found / total < 1  # references quote estimates that the call does not mention


def test_tf_idf_beats_the_majority_on_phrasebank():
    records = _records("financial_phrasebank")
    train, test = ([r for r in records if r.split == split] for split in ("train", "test"))
    _, predictions = known_tasks()["sentiment"].references()["tfidf"](train, [], test)
    right = sum(p.value == r.target for p, r in zip(predictions, test, strict=True))
    assert 0.74 < right / len(test) < 0.82  # the majority has 0.60
