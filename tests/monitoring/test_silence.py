"""Databases that are locked, silent or gone: nobody waits for them, and what was answered then is kept."""

import contextlib
import socket
import sqlite3
import threading
import time

import pytest
import requests

from fintune.errors import DataError
from fintune.monitoring.api import router
from fintune.monitoring.database import PATIENCE
from fintune.monitoring.metrics import Metrics
from fintune.monitoring.recorder import Recorder
from fintune.monitoring.store import Store
from fintune.tasks import Prediction

from .conftest import free_port
from .test_api import serve

ANSWER = Prediction("neutral", {"neutral": 0.9, "positive": 0.1})


@pytest.fixture
def silent():
    """The URL of a server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        held = []

        def take():
            while True:
                try:
                    held.append(listener.accept()[0])
                except OSError:
                    return

        threading.Thread(target=take, daemon=True).start()
        yield f"postgresql://fintune@127.0.0.1:{listener.getsockname()[1]}/x"


@pytest.fixture
def locked(tmp_path):
    """The URL of a SQLite store that another process has locked, and the function that unlocks it."""
    file = tmp_path / "kept.db"
    Store.open(f"sqlite:///{file}").close()
    other = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    yield f"sqlite:///{file}", other.close
    other.close()


@pytest.fixture
def held(postgres_url):
    """The URL of a PostgreSQL store whose table another connection holds."""
    import psycopg

    Store.open(postgres_url).close()
    with psycopg.connect(postgres_url) as other:
        other.execute("LOCK TABLE prediction IN ACCESS EXCLUSIVE MODE")
        yield postgres_url, other.rollback
        other.rollback()
        other.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")


@pytest.fixture
def relay(postgres_url):
    """The URL of a PostgreSQL store behind a relay, and the event while which that passes things on."""
    behind = ("127.0.0.1", int(postgres_url.rsplit(":", 1)[1].split("/")[0]))
    flows = threading.Event()
    flows.set()

    def copy(source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(2**16):
                flows.wait()
                target.sendall(data)

    def take(listener):
        with contextlib.suppress(OSError):
            while True:
                ends = listener.accept()[0], socket.create_connection(behind)
                for pair in (ends, ends[::-1]):
                    threading.Thread(target=copy, args=pair, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=take, args=(listener,), daemon=True).start()
        yield f"postgresql://fintune@127.0.0.1:{listener.getsockname()[1]}/postgres", flows
        flows.set()
    import psycopg

    with psycopg.connect(postgres_url, autocommit=True) as other:
        other.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")


@pytest.fixture
def recorder_of(monkeypatch):
    """A function: URL → the recorder of a service that keeps its answers there."""
    made = []

    def make(url):
        monkeypatch.setenv("FINTUNE_STORE", url)
        monkeypatch.setenv("FINTUNE_KEEP_PREDICTIONS", "1")
        made.append(Recorder.from_environment(None, Metrics()))
        return made[-1]

    yield make
    for recorder in made:
        recorder.close()


def seconds(work):
    """How long it takes."""
    begun = time.monotonic()
    work()
    return time.monotonic() - begun


def test_a_command_is_told_in_seconds_that_the_store_is_silent(silent):
    with pytest.raises(DataError, match="cannot be opened"):
        Store.open(silent)


@pytest.mark.parametrize("fault", ["silent", "locked", "held"])
def test_no_answer_and_no_metric_waits_for_the_store(fault, recorder_of, request, caplog):
    given = request.getfixturevalue(fault)
    recorder = recorder_of(given if fault == "silent" else given[0])
    taken = [seconds(lambda: recorder.record("sentiment", "own words", ANSWER)) for _ in range(20)]
    assert sum(taken) < 5 * PATIENCE  # who waited for the store would need 20
    address, server, thread = serve(router(recorder.store, None, writer=recorder.writer, metrics=Metrics()))
    body = {"prediction_id": "x", "correct": True}
    for _ in range(9):  # more than threads are lent
        reply = requests.post(f"{address}/v1/feedback", json=body, timeout=60)
        assert (reply.status_code, reply.elapsed.total_seconds() < 4 * PATIENCE) == (503, True)
    for _ in range(3):
        assert seconds(recorder.exposition) < 2 * PATIENCE
    assert recorder.writer.state() == {"state": "down", "waiting": 20, "lost": 0}
    server.should_exit = True
    thread.join(5)
    assert seconds(recorder.close) < 10
    assert recorder.writer.state()["lost"] == 20
    assert caplog.text.count("so answers wait in memory") == 1 and "own words" not in caplog.text


@pytest.mark.parametrize("fault", ["locked", "held"])
def test_answers_of_an_outage_are_kept_when_it_is_over(fault, recorder_of, request):
    url, unlock = request.getfixturevalue(fault)
    recorder = recorder_of(url)
    names = [recorder.record("sentiment", f"text {i}", ANSWER) for i in range(5)]
    time.sleep(PATIENCE + 0.5)
    unlock()
    all_are_kept(recorder, names)


def all_are_kept(recorder, names):
    deadline = time.monotonic() + 20
    while recorder.writer.state()["waiting"] and time.monotonic() < deadline:
        time.sleep(0.1)
    assert recorder.writer.state() == {"state": "ok", "waiting": 0, "lost": 0}
    assert all(recorder.store.find(name) for name in names)


def test_a_database_that_falls_silent_between_two_answers_delays_none_and_loses_none(
    relay, recorder_of, monkeypatch
):
    monkeypatch.setattr("fintune.monitoring.writer.SILENT_SECONDS", 0.5)
    url, flows = relay
    recorder = recorder_of(url)
    names = [recorder.record("sentiment", "before", ANSWER)]
    assert recorder.writer.flush(10)
    flows.clear()
    begun = time.monotonic()
    for i in range(8):
        names.append(recorder.record("sentiment", f"meanwhile {i}", ANSWER))
        time.sleep(0.1)
    assert seconds(recorder.exposition) < 2 * PATIENCE and time.monotonic() - begun < 6
    assert recorder.writer.state() == {"state": "down", "waiting": 8, "lost": 0}
    flows.set()
    all_are_kept(recorder, names)


def test_a_service_starts_without_its_database_but_not_with_a_wrong_address(recorder_of, tmp_path):
    assert recorder_of(f"postgresql://fintune@127.0.0.1:{free_port()}/x").record("qa", "text", ANSWER)
    (tmp_path / "no folder").touch()
    with pytest.raises(DataError, match="mysql"):
        recorder_of("mysql://x/y")
    (tmp_path / "text.db").write_text("this is no database, but long enough to look like one " * 20)
    with pytest.raises(DataError, match="not a database"):
        recorder_of(f"sqlite:///{tmp_path}/text.db")


def test_where_nothing_is_kept_the_store_is_not_asked(silent, monkeypatch):
    monkeypatch.setenv("FINTUNE_STORE", silent)
    monkeypatch.delenv("FINTUNE_KEEP_PREDICTIONS", raising=False)
    recorder = Recorder.from_environment(None, Metrics())
    assert recorder.record("sentiment", "text", ANSWER) is None and recorder.writer is None
