"""On real earnings calls the salient sentences keep more of the references than the first ones do."""

import os
import re
from pathlib import Path

import pytest

from fintune.data.registry import DATASETS
from fintune.data.salience import Salience
from fintune.models.base import load_tokenizer

FOLDER = os.environ.get("FINTUNE_DATA_DIR", "")
pytestmark = pytest.mark.skipif(
    not FOLDER or not all((Path(FOLDER) / path).is_file() for path in DATASETS["ectsum"].paths),
    reason="FINTUNE_DATA_DIR is not set, or holds no ECTSum",
)


def grams(text):
    words = re.findall(r"[a-z0-9]+", text.lower())
    return {*words, *zip(words, words[1:], strict=False)}


def recall(text, reference):
    return len(grams(text) & grams(reference)) / len(grams(reference))


def test_learnt_salience_keeps_more_of_the_references_than_score_and_far_more_than_lead():
    tokenizer = load_tokenizer("smollm2-135m-instruct")

    def count(text):
        return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    records = list(DATASETS["ectsum"].read(Path(FOLDER)))
    train = [(record.text, record.target) for record in records if record.split == "train"]
    held_out = [record for record in records if record.split == "validation"][::4]
    kept = {}
    for way in (Salience("lead"), Salience("score"), Salience("learnt").fit(train[::4])):
        for budget in (256, 1024):
            texts = [way.select(record.text, budget, count) for record in held_out]
            assert all(count(text) <= budget for text in texts)
            scores = [recall(text, record.target) for text, record in zip(texts, held_out, strict=True)]
            kept[way.method, budget] = sum(scores) / len(scores)
    assert kept["score", 256] > 2 * kept["lead", 256]
    assert kept["score", 1024] > 1.3 * kept["lead", 1024]
    assert kept["learnt", 256] > kept["score", 256] and kept["learnt", 1024] > kept["score", 1024]
