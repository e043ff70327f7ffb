"""What the environment makes of the recorder, and that consent is never assumed."""

import pytest

from fintune.errors import ConfigError
from fintune.monitoring.metrics import Metrics
from fintune.monitoring.profile import Profile, TaskProfile
from fintune.monitoring.recorder import Recorder
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
        recorder.store.close()
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
