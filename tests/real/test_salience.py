"""On real earnings calls the salient sentences keep more of the references than the first ones do."""

import os
import re
from itertools import pairwise
from pathlib import Path

import pytest

from fintune.data.raw.registry import DATASETS
from fintune.models.base import load_tokenizer
from fintune.text.salience import Salience

FOLDER = os.environ.get("FINTUNE_DATA_DIR", "")
pytestmark = pytest.mark.skipif(
    not FOLDER or not all((Path(FOLDER) / path).is_file() for path in DATASETS["ectsum"].paths),
    reason="FINTUNE_DATA_DIR is not set, or holds no ECTSum",
)


def grams(text):
    words = re.findall(r"[a-z0-9]+", text.lower())
    return {*words, *pairwise(words)}


def recall(text, reference):
    return len(grams(text) & grams(reference)) / len(grams(reference))


def test_learnt_salience_keeps_far_more_of_the_references_than_the_first_sentences():
    tokenizer = load_tokenizer("smollm2-135m-instruct")

    def count(text):
        return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    records = list(DATASETS["ectsum"].read(Path(FOLDER)))
    train = [(record.text, record.target) for record in records if record.split == "train"]
    held_out = [record for record in records if record.split == "validation"][::10]
    lead, learnt = Salience("lead"), Salience("learnt").fit(train[::10])
    assert len(learnt.weights) > 300
    for budget, times in ((256, 1.7), (1024, 1.25)):
        sums = {}
        for way in (lead, learnt):
            texts = [way.select(record.text, budget, count) for record in held_out]
            assert all(count(text) <= budget for text in texts)
            sums[way.method] = sum(recall(t, r.target) for t, r in zip(texts, held_out, strict=True))
        assert sums["learnt"] > times * sums["lead"]
