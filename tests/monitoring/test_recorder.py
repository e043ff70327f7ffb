"""What the environment makes of the recorder, and that consent is never assumed."""

import logging

import pytest

from fintune.errors import ConfigError
from fintune.monitoring.metrics import Metrics
from fintune.monitoring.profile import Profile, TaskProfile
from fintune.monitoring.recorder import Recorder
from fintune.monitoring.store import TABLES, Store
from fintune.tasks import Prediction

from .test_drift import LABELS, answers

ANSWER = Prediction("neutral", {"neutral": 0.9, "positive": 0.1})


@pytest.fixture
def environment(monkeypatch):
    """A function that sets FINTUNE_STORE and FINTUNE_KEEP_PREDICTIONS, None being unset."""

    def to(store, keep=None):
        for name, value in (("FINTUNE_STORE", store), ("FINTUNE_KEEP_PREDICTIONS", keep)):
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)

    return to


def test_texts_are_kept_only_where_the_environment_says_so(environment, tmp_path):
    kept = []
    for keep in (None, "0", "1"):
        environment(f"sqlite:///{tmp_path}/{keep}.db", keep)
        recorder = Recorder.from_environment(None, Metrics())
        name = recorder.record("sentiment", "a client's own words", ANSWER)
        recorder.close()
        kept.append((name is not None, b"own words" in _bytes(tmp_path, f"{keep}.db")))
    assert kept == [(False, False), (False, False), (True, True)]


def _bytes(folder, name):
    return b"".join(path.read_bytes() for path in folder.glob(f"{name}*"))


def test_an_environment_that_contradicts_itself_is_refused(environment):
    environment(None, "1")
    with pytest.raises(ConfigError, match="needs FINTUNE_STORE"):
        Recorder.from_environment(None)
    environment(None, "yes")
    with pytest.raises(ConfigError, match="0 or 1, got 'yes'"):
        Recorder.from_environment(None)


def test_the_adapters_profile_is_the_reference_and_metrics_show_the_drift(environment, tmp_path):
    environment(None)
    Profile({"sentiment": TaskProfile.of(answers(300), LABELS)}).save(tmp_path)
    recorder = Recorder.from_environment(tmp_path, Metrics())
    for i in range(150):
        assert recorder.record("sentiment", f"quite another matter {i}", ANSWER) is None
        recorder.record("qa", "no part of the reference", Prediction("yes"))
    assert b'fintune_drift_status{task="sentiment"} 2.0' in recorder.exposition()
    assert list(recorder.window.tasks()) == ["sentiment"]


def test_answers_of_other_models_are_kept_and_are_no_part_of_the_models_drift_and_accuracy(tmp_path):
    store = Store.open(f"sqlite:///{tmp_path}/kept.db", keep=True)
    reference = Profile({"sentiment": TaskProfile.of(answers(300), LABELS)})
    recorder = Recorder(reference, store, model="first", metrics=Metrics())
    for name, right in (("first", True), ("base", False), ("second", False)):
        kept = recorder.record("sentiment", "profit rose", ANSWER, model=name)
        assert recorder.writer.flush(10)
        store.add_feedback(kept, correct=right)
    assert len(recorder.window.tasks()["sentiment"]) == 1
    assert b'fintune_live_accuracy{task="sentiment"} 1.0' in recorder.exposition()
    assert store.models() == ["base", "first", "second"]
    recorder.close()


def test_answers_wait_for_a_store_that_fails_and_it_is_logged_once_without_a_text(tmp_path, caplog):
    store = Store.open(f"sqlite:///{tmp_path}/kept.db", keep=True)
    reference = Profile({"sentiment": TaskProfile.of(answers(300), LABELS)})
    recorder = Recorder(reference, store, metrics=Metrics())
    TABLES.drop_all(store.database)
    names = [recorder.record("sentiment", f"a client's own words {i}", ANSWER) for i in range(3)]
    assert all(names) and not recorder.writer.flush(10)
    exposed = recorder.exposition().decode()
    assert "fintune_store_up 0.0" in exposed and "fintune_store_waiting 3.0" in exposed
    assert 'fintune_drift_status{task="sentiment"} -1.0' in exposed  # what needs no store goes on
    assert recorder.writer.state() == {"state": "down", "waiting": 3, "lost": 0}
    failures = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert ["no such table: prediction" in r.getMessage() for r in failures] == [True, True]  # keep, judge
    assert "own words" not in caplog.text
    TABLES.create_all(store.database)
    recorder.close()
    assert "FINTUNE_STORE works again" in caplog.text
    again = Store.open(f"sqlite:///{tmp_path}/kept.db")
    assert all(again.find(name) for name in names)
    again.close()


def test_what_a_store_that_is_away_cannot_take_is_counted(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("fintune.monitoring.writer.MOST_ROWS", 2)
    store = Store.open(f"sqlite:///{tmp_path}/kept.db", keep=True)
    recorder = Recorder(None, store, metrics=Metrics())
    TABLES.drop_all(store.database)
    names = [recorder.record("sentiment", f"text {i}", ANSWER) for i in range(5)]
    assert [bool(name) for name in names] == [True, True, False, False, False]
    recorder.close()
    assert recorder.writer.state()["lost"] == 5
    assert 'fintune_store_failures_total{operation="keep"} 5.0' in recorder.metrics.render().decode()
    assert caplog.text.count("are not stored") == 1


def test_a_row_that_the_store_refuses_costs_no_other(tmp_path):
    store = Store.open(f"sqlite:///{tmp_path}/kept.db", keep=True)
    recorder = Recorder(None, store, metrics=Metrics())
    with recorder.writer._changed:  # so that all are written together
        good = [recorder.record("sentiment", "text", ANSWER, model=name) for name in ("first", "second")]
        bad = recorder.record(None, "text", ANSWER)
        good.append(recorder.record("sentiment", "text", ANSWER))
    assert recorder.writer.flush(10)
    assert [bool(store.find(name)) for name in (*good, bad)] == [True, True, True, False]
    assert recorder.writer.state() == {"state": "ok", "waiting": 0, "lost": 1}
    recorder.close()
