"""The built-in sample: the same for a seed, balanced, and a test split that asks for generalisation."""

import re
from collections import Counter

import pytest

from fintune.data.raw.sample import SIZES, sample_records
from fintune.errors import DataError
from fintune.tasks import known_tasks

TASKS = list(SIZES)


def by_split(task):
    splits = {"train": [], "validation": [], "test": []}
    for record in sample_records(task):
        splits[record.split].append(record)
    return splits


@pytest.mark.parametrize("task", TASKS)
def test_a_seed_gives_the_same_records_and_every_one_of_them_is_valid(task):
    records, owner = sample_records(task, seed=3), known_tasks()[task]
    assert records == sample_records(task, seed=3) != sample_records(task, seed=4)
    assert [owner.problem(record) for record in records] == [None] * sum(SIZES[task])
    assert len({(record.text, record.question) for record in records}) == len(records)
    assert not any(re.search(r"[{}~|]|//", record.text) for record in records)


@pytest.mark.parametrize("task", TASKS)
def test_no_company_of_a_split_is_named_in_another(task):
    splits = by_split(task)
    companies = {split: {record.group for record in records} for split, records in splits.items()}
    for split, records in splits.items():
        others = set().union(*(names for other, names in companies.items() if other != split))
        text = "\n".join(record.text for record in records)
        assert not [name for name in others if name in text]


def phrasing(text, company):
    """A text without what a template's slots hold: the company, numbers, and any capitalised word."""
    text = text.replace(company, "")
    return re.sub(r"[\d.,$%]+|\$?\b[A-Z]\w*|million|billion|EUR|GBP", "", text)


@pytest.mark.parametrize("task", TASKS)
def test_the_test_split_has_phrasings_of_its_own(task):
    splits = by_split(task)
    grams = {
        split: Counter(
            gram
            for record in records
            for words in [phrasing(record.text, record.group).split()]
            for gram in {tuple(words[i : i + 6]) for i in range(len(words) - 5)}
        )
        for split, records in splits.items()
    }

    def shared(split):
        return sum(count for gram, count in grams[split].items() if gram in grams["train"]) / max(
            1, sum(grams[split].values())
        )

    assert shared("test") < 0.05 < 0.5 < shared("validation")


@pytest.mark.parametrize("task", ["sentiment", "headline"])
def test_labels_are_balanced_in_every_split(task):
    for records in by_split(task).values():
        counts = Counter(record.target for record in records).values()
        assert max(counts) - min(counts) <= 1


def test_the_answer_to_a_question_stands_in_its_context():
    assert all(str(record.target) in record.text for record in sample_records("qa"))


def test_a_task_without_a_sample_is_refused():
    with pytest.raises(DataError, match="no built-in sample for task 'topic'"):
        sample_records("topic")
