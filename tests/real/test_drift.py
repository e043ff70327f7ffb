"""Drift between the real datasets: none within one, and none missed between two (docs/monitoring.md)."""

import os
import random
from pathlib import Path

import pytest

from fintune.data.raw.registry import DATASETS
from fintune.monitoring.drift import DRIFT_WORDS, WATCH_WORDS, compare
from fintune.monitoring.profile import Observation, Profile, TaskProfile
from fintune.tasks import Record

FOLDER = os.environ.get("FINTUNE_DATA_DIR", "")
pytestmark = pytest.mark.skipif(not FOLDER, reason="FINTUNE_DATA_DIR is not set: no real data")
NAMES = ("financial_phrasebank", "twitter_financial_news", "fiqa_sa", "financial_qa_10k")


@pytest.mark.parametrize("window", [100, 300])
def test_the_vocabulary_tells_two_datasets_apart_and_not_two_samples_of_one(window):
    seen = {}
    for name in NAMES:
        if not all((Path(FOLDER) / path).is_file() for path in DATASETS[name].paths):
            pytest.skip(f"{name} is not in {FOLDER}")
        records = [item for item in DATASETS[name].read(Path(FOLDER)) if isinstance(item, Record)]
        random.Random(0).shuffle(records)
        seen[name] = [Observation.of(r.text, r.question, "", None) for r in records[: 500 + window]]
    for name in NAMES:
        reference = Profile({"any": TaskProfile.of(seen[name][:500])})
        for other in NAMES:
            report = compare(reference, {"any": seen[other][500:]})
            words = report["tasks"]["any"]["signals"]["words"]
            if name == other:
                assert words["js"] < WATCH_WORDS, (name, words)
            else:
                assert words["js"] > DRIFT_WORDS and words["status"] == "drift", (name, other, words)
