"""Predictions and feedback in SQLite and in PostgreSQL."""

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from fintune.errors import DataError
from fintune.monitoring.database import MIGRATIONS
from fintune.monitoring.lessons import training_rows
from fintune.monitoring.metrics import Metrics
from fintune.monitoring.recorder import Recorder
from fintune.monitoring.store import PREDICTIONS, TABLES, Store
from fintune.tasks import Prediction

from .predictions import add

NEUTRAL = Prediction("neutral", {"positive": 0.1, "neutral": 0.9})


@pytest.fixture
def store(url):
    store = Store.open(url, keep=True)
    yield store
    store.close()


def rows(store):
    with store.database.connect() as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(PREDICTIONS)).scalar()


def test_without_consent_nothing_is_written_and_feedback_finds_nothing(url):
    recorder = Recorder(store=Store.open(url), metrics=Metrics())
    assert recorder.record("sentiment", "profit rose", NEUTRAL) is None
    assert rows(recorder.store) == 0
    with pytest.raises(DataError, match="consent"):
        recorder.store.add_feedback("any", correct=True)
    recorder.close()


def test_the_newest_feedback_counts_and_a_target_decides_whether_the_answer_was_right(store):
    names = [add(store, "sentiment", f"text {i}", NEUTRAL) for i in range(4)]
    store.add_feedback(names[0], correct=False)
    store.add_feedback(names[0], correct=True)
    store.add_feedback(names[1], target=" Neutral ")
    store.add_feedback(names[2], target="negative", key_id="desk-7")
    number = add(store, "regression", "news", Prediction(0.5))
    store.add_feedback(number, target=-1.0)
    scores = store.scores()
    assert scores["sentiment"] == {"feedback": 3, "accuracy": pytest.approx(2 / 3), "mae": None}
    assert scores["regression"] == {"feedback": 1, "accuracy": None, "mae": 1.5}
    assert [item.key_id for item in store.judged("sentiment")] == [None, None, "desk-7"]
    assert store.scores(since=datetime.now(UTC) + timedelta(hours=1)) == {}


def test_wrong_answers_become_training_rows_and_the_newest_stands(store):
    first, second, right = (add(store, "sentiment", t, NEUTRAL) for t in ("same", "same", "other"))
    store.add_feedback(first, target="positive")
    store.add_feedback(second, target="negative")
    store.add_feedback(right, correct=True)
    store.add_feedback(add(store, "sentiment", "who knows", NEUTRAL), correct=False)
    assert [(row["text"], row["target"]) for row in training_rows(store, "sentiment")] == [
        ("same", "negative")
    ]
    everything = training_rows(store, "sentiment", everything=True)
    assert [(row["text"], row["target"]) for row in everything] == [
        ("same", "negative"),
        ("other", "neutral"),
    ]


@pytest.mark.parametrize(
    ("answer", "target", "kept", "right"),
    [
        ("3", 3.0, "3", True),
        ("3.0", 3, "3.0", True),
        ("4", 3.0, "3", False),
        ("1234567", 1234567.0, "1234567", True),
        ("unknown", 0.1, "0.1", False),
        (0.5, "-1.5", -1.5, None),
        (0.5, 2, 2.0, None),
    ],
)
def test_a_target_is_kept_in_the_type_of_the_answer(tmp_path, answer, target, kept, right):
    store = Store.open(f"sqlite:///{tmp_path}/monitoring.db", keep=True)
    store.add_feedback(add(store, "qa", "text", Prediction(answer)), target=target)
    (item,) = store.judged()
    store.close()
    assert (item.target, type(item.target), item.correct) == (kept, type(kept), right)


def test_a_text_is_no_target_of_a_number(store):
    name = add(store, "regression", "news", Prediction(0.5))
    for target in ("lots", "nan"):
        with pytest.raises(DataError, match=f"must be a number like the answer, got '{target}'"):
            store.add_feedback(name, target=target)
    assert store.scores() == {}


def test_newer_feedback_on_a_text_takes_back_what_older_taught(store):
    def judge(text, **feedback):
        store.add_feedback(add(store, "sentiment", text, NEUTRAL), **feedback)

    for text in ("called right", "called wrong", "target wrong"):
        judge(text, target="positive")
    judge("called right", correct=True)
    judge("called wrong", correct=False)  # does not say what is right, so the older stands
    positive = Prediction("positive", {"positive": 0.6, "neutral": 0.4})
    store.add_feedback(add(store, "sentiment", "target wrong", positive), correct=False)
    assert [(row["text"], row["target"]) for row in training_rows(store, "sentiment")] == [
        ("called wrong", "positive")
    ]
    everything = training_rows(store, "sentiment", everything=True)
    assert [row["target"] for row in everything] == ["positive", "neutral"]


def test_each_model_has_its_own_observations_and_scores_and_one_that_answers_alone_needs_no_name(store):
    for name, text in (("first", "one"), ("second", "one two"), ("", "one two three")):
        store.add_feedback(add(store, "qa", text, Prediction("yes"), model=name), correct=not name)
    lengths = {
        name: sorted(seen.length for seen in store.observations(10, name).get("qa", ()))
        for name in ("first", "second", "third", None)
    }
    assert lengths == {"first": [1, 3], "second": [2, 3], "third": [3], None: [1, 2, 3]}
    assert store.scores(model="first")["qa"]["accuracy"] == 0.5
    assert store.scores()["qa"]["accuracy"] == pytest.approx(1 / 3)


def test_feedback_on_every_model_teaches_and_other_labels_for_one_task_stand_apart(store):
    market = Prediction("bullish", {"bullish": 0.8, "bearish": 0.2})
    for name, answer, target in (
        ("first", NEUTRAL, "positive"),
        ("second", market, "bearish"),
        ("base", NEUTRAL, "negative"),
    ):
        kept = add(store, "sentiment", "profit fell", answer, model=name)
        store.add_feedback(kept, target=target)
    assert [(row["model"], row["target"]) for row in training_rows(store, "sentiment")] == [
        ("second", "bearish"),
        ("base", "negative"),
    ]


def test_two_processes_open_and_write_one_store_at_once_and_lose_nothing(url):
    count = 60
    command = [sys.executable, Path(__file__).with_name("writer.py"), url, str(count)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    writers = [subprocess.Popen([*command, name], **pipes) for name in ("one", "two")]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n", writer.stderr.read()
    for writer in writers:
        writer.stdin.write("\n")
        writer.stdin.flush()
    for writer in writers:
        _, complaint = writer.communicate(timeout=60)
        assert writer.returncode == 0, complaint
    store = Store.open(url)
    assert rows(store) == 2 * count
    kept = {item.text: item.correct for item in store.judged("sentiment")}
    assert kept == {f"{name} {i}": i % 2 == 0 for name in ("one", "two") for i in range(count)}
    store.close()


def test_a_new_file_of_texts_is_its_owners_alone_and_one_that_is_there_keeps_its_mode(tmp_path):
    shared = tmp_path / "shared.db"
    shared.touch()
    shared.chmod(0o640)
    before = os.umask(0o022)
    try:
        stores = [Store.open(f"sqlite:///{tmp_path}/{name}.db", keep=True) for name in ("own", "shared")]
    finally:
        os.umask(before)
    for store in stores:
        add(store, "sentiment", "profit rose", NEUTRAL)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.glob("*.db*")}
    for store in stores:
        store.close()
    assert {modes[f"own.db{ending}"] for ending in ("", "-wal", "-shm")} == {0o600}
    assert {modes[f"shared.db{ending}"] for ending in ("", "-wal", "-shm")} == {0o640}


def test_hostile_texts_come_back_and_change_nothing(store):
    text = "'; DROP TABLE prediction; --\0 \ud800 \N{PILE OF POO} {{7*7}} %s"
    name = add(store, "qa", text, Prediction("ok"), question="why\0?")
    store.add_feedback(name, target="no\0pe")
    (item,) = store.judged("qa")
    assert item.text == "'; DROP TABLE prediction; --� ? \N{PILE OF POO} {{7*7}} %s"
    assert (item.question, item.target) == ("why�?", "no�pe")
    with pytest.raises(DataError, match="There is no prediction"):
        store.add_feedback("' OR 1=1 --", correct=True)


def test_a_failing_store_quotes_no_text_in_its_error(store):
    TABLES.drop_all(store.database)
    with pytest.raises(sa.exc.SQLAlchemyError) as error:
        add(store, "qa", "a client's own words", Prediction("a secret answer"), question="whose?")
    assert not any(text in str(error.value) for text in ("own words", "secret", "whose?"))


def test_forgetting_takes_the_feedback_along(store):
    old, _ = (add(store, "sentiment", text, NEUTRAL) for text in ("old", "new"))
    store.add_feedback(old, correct=True)
    with store.database.begin() as connection:
        before = datetime.now(UTC).replace(tzinfo=None) - timedelta(days=40)
        connection.execute(PREDICTIONS.update().where(PREDICTIONS.c.id == old), {"created": before})
    assert store.delete_older(30) == 1
    assert store.scores() == {} and rows(store) == 1


def test_the_newest_kept_answers_are_what_drift_reads(store):
    for text in ("one two", "one two three"):
        add(store, "sentiment", text, NEUTRAL)
    (seen,) = store.observations(1)["sentiment"]
    assert (seen.length, seen.label, seen.confidence) == (3, "neutral", 0.9)


def test_the_migrations_make_the_tables_the_code_expects_and_can_be_undone(url):
    from alembic import command
    from alembic.autogenerate import compare_metadata
    from alembic.config import Config
    from alembic.migration import MigrationContext

    store = Store.open(url)
    Store.open(url).close()  # a second time changes nothing
    with store.database.begin() as connection:
        assert compare_metadata(MigrationContext.configure(connection), TABLES) == []
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with store.database.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    assert sa.inspect(store.database).get_table_names() == ["alembic_version"]
    store.close()


def test_a_store_that_cannot_be_opened_says_why_without_its_password(tmp_path):
    with pytest.raises(DataError, match="cannot be opened") as error:
        Store.open("postgresql://fintune:hunter2@127.0.0.1:1/x")
    assert "hunter2" not in str(error.value)
    (tmp_path / "text.db").write_text("this is no database, but long enough to look like one " * 20)
    with pytest.raises(DataError, match="not a database"):
        Store.open(f"sqlite:///{tmp_path}/text.db")
    for url in ("mysql://x/y", "no url"):
        with pytest.raises(DataError):
            Store.open(url)
