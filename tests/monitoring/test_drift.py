"""Drift: the mathematics, what is called drift and what is not, and the reports."""

import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fintune.errors import ConfigError, DataError
from fintune.monitoring.drift import Window, compare, jensen_shannon, population_stability
from fintune.monitoring.profile import KEPT, Observation, Profile, TaskProfile
from fintune.reports.drift import html, markdown, write_report

LABELS = ("positive", "negative", "neutral")
counts = st.lists(st.integers(0, 500), min_size=2, max_size=8).filter(any)


def answers(n, seed=0, shares=(0.3, 0.2, 0.5), certain=4.0, words="profit rose fell year company sales euro"):
    """`n` observations: labels by `shares`, confidences from Beta(`certain`, 2), texts of `words`."""
    draw = random.Random(seed)
    found = []
    for _ in range(n):
        label = draw.choices(LABELS, shares)[0]
        top = draw.betavariate(certain, 2)
        text = " ".join(draw.choices(words.split(), k=draw.randint(5, 20)))
        kinds = {label: max(top, 0.34), **{other: 0.01 for other in LABELS if other != label}}
        found.append(Observation.of(text, None, label, kinds))
    return found


REFERENCE = Profile({"sentiment": TaskProfile.of(answers(800), LABELS)}, "the test data")


def status(observed):
    return compare(REFERENCE, {"sentiment": observed})["tasks"]["sentiment"]


@settings(deadline=None)  # the first call imports SciPy
@given(counts, st.data())
def test_both_measures_are_symmetric_never_negative_and_zero_between_equals(first, data):
    second = data.draw(st.lists(st.integers(0, 500), min_size=len(first), max_size=len(first)).filter(any))
    for measure in (population_stability, jensen_shannon):
        assert measure(first, second) >= 0
        assert measure(first, second) == pytest.approx(measure(second, first))
        assert measure(first, first) == pytest.approx(0, abs=1e-12)
    assert jensen_shannon(first, second) <= 1 + 1e-12


def test_the_measures_have_their_textbook_values():
    assert jensen_shannon([5, 0], [0, 9]) == pytest.approx(1)
    assert population_stability([50, 50], [80, 20]) == pytest.approx(0.3 * np.log(0.8 / 0.2))


def test_samples_of_one_source_are_stable_in_nearly_every_window():
    verdicts = [status(answers(300, seed))["status"] for seed in range(1, 31)]
    assert verdicts.count("drift") == 0 and verdicts.count("stable") >= 28


@pytest.mark.parametrize(
    ("signal", "change"),
    [
        ("labels", {"shares": (0.1, 0.6, 0.3)}),
        ("confidence", {"certain": 1.5}),
        ("words", {"words": "bitcoin halving token chain wallet miner fork"}),
    ],
)
def test_a_shift_is_drift_in_its_own_signal(signal, change):
    entry = status(answers(300, 7, **change))
    assert entry["status"] == "drift"
    drifted = {name for name, found in entry["signals"].items() if found["status"] != "stable"}
    assert drifted == {signal}


def test_a_label_never_seen_and_a_constant_signal_do_not_break_the_comparison():
    same = [Observation.of("profit rose", None, "positive", {"positive": 1.0, "negative": 0.0})] * 200
    reference = Profile({"sentiment": TaskProfile.of(same, ["positive", "negative"])})
    other = [Observation.of("profit rose", None, "new", {"new": 1.0})] * 200
    assert compare(reference, {"sentiment": same})["status"] == "stable"
    assert compare(reference, {"sentiment": other})["tasks"]["sentiment"]["signals"]["labels"]["psi"] > 1


def sure(*confidences):
    """Observations with these confidences, all else alike."""
    return [Observation(2, (0,), None, confidence) for confidence in confidences]


@pytest.mark.parametrize(
    ("usual", "live"),
    [
        ([1.0] * 1000, [0.4] * 500),
        ([0.9] * 50 + [1.0] * 950, [0.4] * 500),
        ([0.5] * 150 + [1.0] * 850, [0.5] * 75 + [0.8] * 425),  # between two values that repeat
        ([0.0] * 1000, [0.4] * 500),
        ([0.0] * 800 + [0.5] * 200, [0.0] * 400 + [0.9] * 100),
    ],
)
def test_a_signal_that_saturates_in_the_reference_drifts_when_it_no_longer_does(usual, live):
    reference = Profile({"sentiment": TaskProfile.of(sure(*usual))})
    for observed, expected in ((live, "drift"), (usual, "stable"), (usual[::5], "stable")):
        entry = compare(reference, {"sentiment": sure(*observed)})["tasks"]["sentiment"]
        assert entry["signals"]["confidence"]["status"] == expected
    assert entry["signals"]["confidence"]["psi"] < 0.01  # nothing but the size of the window differs


def test_few_answers_are_not_judged_and_unknown_tasks_left_out():
    report = compare(REFERENCE, {"sentiment": answers(99, 1, shares=(0, 1, 0)), "other": answers(200)})
    assert report["status"] == "too few" and list(report["tasks"]) == ["sentiment"]


def test_a_profile_reads_back_and_holds_no_word_of_the_texts(tmp_path):
    path = REFERENCE.save(tmp_path)
    assert Profile.load(tmp_path) == REFERENCE
    assert not any(word in path.read_text() for word in ("profit", "company", "euro"))
    assert len(TaskProfile.of(answers(3 * KEPT), LABELS).numbers["length"]) == KEPT
    path.write_text(json.dumps({"format": 1, "buckets": 256, "tasks": {"sentiment": {"lables": 3}}}))
    with pytest.raises(DataError, match="make it again"):
        Profile.load(tmp_path)
    with pytest.raises(DataError, match="has no reference profile"):
        Profile.load(tmp_path / "elsewhere")


def test_a_window_keeps_the_newest_of_each_task():
    window = Window(3)
    for length in range(5):
        window.add("qa", Observation(length, ()))
    assert [seen.length for seen in window.tasks()["qa"]] == [2, 3, 4]


def test_a_report_is_written_in_three_forms_and_hostile_names_are_escaped(tmp_path):
    hostile = Profile({"<script>alert(1)</script>": REFERENCE.tasks["sentiment"]}, "<b>x</b>")
    report = compare(hostile, {"<script>alert(1)</script>": answers(200, 3, shares=(0.1, 0.6, 0.3))})
    assert "<script>" not in html(report) and "<b>x" not in html(report)
    assert "| labels | " in markdown(report) and "# Drift report: drift found" in markdown(report)
    assert json.loads(write_report(report, tmp_path / "drift.json").read_text())["status"] == "drift"
    with pytest.raises(ConfigError, match=r"\.pdf"):
        write_report(report, tmp_path / "drift.pdf")
