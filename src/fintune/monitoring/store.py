"""Predictions and feedback in a database: SQLite by default, PostgreSQL by URL.

Predictions are stored only with consent (`keep=True`); without it nothing of a request is written. Feedback
refers to a stored prediction by its id, and the newest on a prediction counts. Several processes may write at
once: SQLite in WAL mode with lock timeouts, PostgreSQL by nature. The migrations in this package create and
change the tables.
"""

from __future__ import annotations

import json
import logging
import threading
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Engine as Database

from fintune.errors import DataError, MissingExtraError
from fintune.monitoring.database import SilentError, comes_back, connect, migrate, reason
from fintune.monitoring.profile import Observation
from fintune.monitoring.verdicts import as_answer, is_right
from fintune.tasks import Prediction

log = logging.getLogger("fintune.monitoring")
LIVE_DAYS = 30
"""How far back live accuracy looks."""
PredictionRow = dict[str, Any]
"""A prediction as a table row."""

TABLES = sa.MetaData()
PREDICTIONS = sa.Table(
    "prediction",
    TABLES,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("created", sa.DateTime, nullable=False, index=True),
    sa.Column("task", sa.String(100), nullable=False, index=True),
    sa.Column("model", sa.String(200), nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("question", sa.Text),
    sa.Column("value", sa.Text, nullable=False),
    sa.Column("probabilities", sa.Text),
)
FEEDBACK = sa.Table(
    "feedback",
    TABLES,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column(
        "prediction_id",
        sa.String(36),
        sa.ForeignKey("prediction.id", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    sa.Column("created", sa.DateTime, nullable=False),
    sa.Column("correct", sa.Boolean),
    sa.Column("target", sa.Text),
    sa.Column("key_id", sa.String(100)),
)


@dataclass(frozen=True)
class Kept:
    """What feedback on a stored prediction is checked against."""

    task: str
    value: str | float
    labels: tuple[str, ...]
    """The labels that the answer was chosen from; empty if it is not a label."""


@dataclass(frozen=True)
class Judged:
    """A stored prediction with its newest feedback."""

    id: str
    created: datetime
    task: str
    model: str
    text: str
    question: str | None
    value: str | float
    correct: bool | None
    """The feedback's verdict, or whether target and answer match; None for a number without a verdict."""
    target: str | float | None
    key_id: str | None
    """The author's API key id, never the key."""
    labels: tuple[str, ...]


class Store:
    """A database of predictions and feedback."""

    def __init__(self, database: Database, keep: bool) -> None:
        self.database = database
        self.keep = keep
        """The consent: whether predictions may be stored."""
        self._ready = False
        self._preparing = threading.Lock()

    @classmethod
    def open(cls, url: str, *, keep: bool = False, patience: float | None = None) -> Store:
        """Connect and migrate the tables, within seconds.

        Args:
            url: in SQLAlchemy's form: sqlite:///FILE, or postgresql+psycopg://USER:PASSWORD@HOST/NAME.
            keep: consent to storing predictions.
            patience: for a service, the seconds to wait for locks. An unavailable database is logged, and
                opened by the first call that finds it.

        Raises:
            DataError: the URL is invalid, or no database answers there.
            MissingExtraError: the database's driver is not installed.
        """
        try:
            address = sa.make_url(url)
        except sa.exc.ArgumentError:
            raise DataError("The store's URL cannot be read: write it like sqlite:///monitoring.db") from None
        if address.drivername in ("postgresql", "postgres"):
            address = address.set(drivername="postgresql+psycopg")
        if address.drivername not in ("sqlite", "postgresql+psycopg"):
            raise DataError(f"The store must be SQLite or PostgreSQL, got a URL of {address.drivername}.")
        try:
            store = cls(connect(address, patience), keep)
            store.prepare()
        except ModuleNotFoundError:
            raise MissingExtraError("A store in PostgreSQL", "postgres") from None
        except (sa.exc.DatabaseError, SilentError) as error:
            shown = address.render_as_string(hide_password=True)
            if patience is None or not comes_back(error):
                raise DataError(f"The store {shown} cannot be opened: {reason(error)}") from None
            log.error("FINTUNE_STORE is not available and will be retried: %s: %s", shown, reason(error))
        return store

    def prepare(self) -> Database:
        """The database, whose tables are migrated once."""
        if not self._ready:
            with self._preparing:
                if not self._ready:
                    migrate(self.database)
                    self._ready = True
        return self.database

    def close(self) -> None:
        """Close the connections."""
        self.database.dispose()

    def add_predictions(self, rows: Sequence[PredictionRow]) -> None:
        """Store rows of `prediction_row` in one transaction; existing rows stay unchanged."""
        kind = sqlite if self.database.dialect.name == "sqlite" else postgresql
        with self.prepare().begin() as connection:
            connection.execute(kind.insert(PREDICTIONS).on_conflict_do_nothing(), rows)

    def add_feedback(
        self,
        prediction_id: str,
        *,
        correct: bool | None = None,
        target: str | float | None = None,
        key_id: str | None = None,
    ) -> None:
        """Store a person's verdict on a prediction: whether it was right, or the right answer.

        Raises:
            DataError: there is no such prediction, neither `correct` nor `target` is given, or the answer is
                a number but `target` is not.
        """
        if correct is None and target is None:
            raise DataError("Feedback needs correct (true or false), or target, the right answer.")
        if target is not None and (kept := self.find(prediction_id)):
            target = as_answer(target, kept.value)
        if isinstance(target, str):
            target = _storable(target)
        row = {
            "prediction_id": prediction_id,
            "created": _now(),
            "correct": correct,
            "target": None if target is None else json.dumps(target),
            "key_id": key_id,
        }
        try:  # the database refuses feedback without a prediction, even one just deleted
            with self.prepare().begin() as connection:
                connection.execute(FEEDBACK.insert(), row)
        except sa.exc.IntegrityError:
            raise DataError(
                f"There is no prediction {prediction_id!r}: predictions are stored only with consent "
                "switched on, and until they are deleted."
            ) from None

    def find(self, prediction_id: str) -> Kept | None:
        """A stored prediction; None if there is none with this id."""
        table = PREDICTIONS.c
        with self.prepare().connect() as connection:
            query = sa.select(table.task, table.value, table.probabilities).where(table.id == prediction_id)
            row = connection.execute(query).first()
        if row is None:
            return None
        value = json.loads(row.value)
        return Kept(row.task, value, _labels(value, row.probabilities))

    def models(self) -> list[str]:
        """Names of the models that answered."""
        with self.prepare().connect() as connection:
            names = connection.execute(sa.select(PREDICTIONS.c.model).distinct()).scalars()
            return sorted(name for name in names if name)

    def judged(
        self, task: str | None = None, since: datetime | None = None, model: str | None = None
    ) -> Iterator[Judged]:
        """Predictions with their newest feedback, oldest first; `model=None` is any model."""
        newest = (
            sa.select(sa.func.max(FEEDBACK.c.id).label("id")).group_by(FEEDBACK.c.prediction_id).subquery()
        )
        query = (
            sa.select(PREDICTIONS, FEEDBACK.c.correct, FEEDBACK.c.target, FEEDBACK.c.key_id)
            .join(FEEDBACK, FEEDBACK.c.prediction_id == PREDICTIONS.c.id)
            .join(newest, newest.c.id == FEEDBACK.c.id)
            .order_by(PREDICTIONS.c.created, PREDICTIONS.c.id)
        )
        if task is not None:
            query = query.where(PREDICTIONS.c.task == task)
        if model is not None:
            query = query.where(_by(model))
        if since is not None:
            query = query.where(PREDICTIONS.c.created >= since.astimezone(UTC).replace(tzinfo=None))
        with self.prepare().connect() as connection:
            for row in connection.execute(query):
                value, target = json.loads(row.value), json.loads(row.target or "null")
                yield Judged(
                    row.id,
                    row.created.replace(tzinfo=UTC),
                    row.task,
                    row.model,
                    row.text,
                    row.question,
                    value,
                    is_right(value, target, row.correct),
                    target,
                    row.key_id,
                    _labels(value, row.probabilities),
                )

    def scores(self, since: datetime | None = None, model: str | None = None) -> dict[str, dict[str, Any]]:
        """By task: `feedback` (predictions judged), `accuracy` (share judged right) and, for numbers, `mae`.

        `accuracy` is null without a verdict of right or wrong, `mae` without a numeric target.
        """
        found: dict[str, list[Judged]] = {}
        for item in self.judged(since=since, model=model):
            found.setdefault(item.task, []).append(item)
        scores = {}
        for task, items in found.items():
            verdicts = [item.correct for item in items if item.correct is not None]
            errors = [
                abs(item.target - item.value)
                for item in items
                if isinstance(item.target, int | float) and isinstance(item.value, int | float)
            ]
            scores[task] = {
                "feedback": len(items),
                "accuracy": sum(verdicts) / len(verdicts) if verdicts else None,
                "mae": sum(errors) / len(errors) if errors else None,
            }
        return scores

    def live_scores(self, model: str | None = None) -> dict[str, dict[str, Any]]:
        """The scores of the predictions from the last LIVE_DAYS days."""
        return self.scores(datetime.now(UTC) - timedelta(days=LIVE_DAYS), model)

    def observations(self, limit: int, model: str | None = None) -> dict[str, list[Observation]]:
        """Each task's newest `limit` stored predictions, for drift; `model=None` is any model."""
        table, wanted = PREDICTIONS.c, sa.true() if model is None else _by(model)
        with self.prepare().connect() as connection:
            tasks = connection.execute(sa.select(table.task).where(wanted).distinct()).scalars().all()
            found = {}
            for task in tasks:
                query = (
                    sa.select(table.text, table.question, table.value, table.probabilities)
                    .where(table.task == task, wanted)
                    .order_by(table.created.desc(), table.id)
                    .limit(limit)
                )
                found[task] = [
                    Observation.of(text, question, json.loads(value), json.loads(kinds or "null"))
                    for text, question, value, kinds in connection.execute(query)
                ]
        return found

    def delete_older(self, days: float) -> int:
        """Delete predictions (and their feedback) older than `days` days; return how many."""
        before = _now() - timedelta(days=days)
        with self.prepare().begin() as connection:
            return connection.execute(PREDICTIONS.delete().where(PREDICTIONS.c.created < before)).rowcount


def prediction_row(
    task: str, text: str, prediction: Prediction, *, question: str | None = None, model: str = ""
) -> PredictionRow:
    """A prediction as a row with a new id."""
    kinds = prediction.probabilities
    return {
        "id": str(uuid.uuid4()),
        "created": _now(),
        "task": task,
        "model": model,
        "text": _storable(text),
        "question": None if question is None else _storable(question),
        "value": json.dumps(prediction.value),
        "probabilities": json.dumps(dict(kinds)) if kinds else None,
    }


def _labels(value: str | float, probabilities: str | None) -> tuple[str, ...]:
    """The labels an answer was chosen from, if it is one of them; a number's levels are not labels."""
    kinds = json.loads(probabilities or "{}")
    return tuple(kinds) if value in kinds else ()


def _by(model: str) -> sa.ColumnElement[bool]:
    """Condition for a model's rows; rows without a name come from a service with only one model."""
    return PREDICTIONS.c.model.in_((model, ""))


def _now() -> datetime:
    """UTC without a time zone, which every database stores alike."""
    return datetime.now(UTC).replace(tzinfo=None)


def _storable(text: str) -> str:
    """The text without what PostgreSQL or UTF-8 cannot hold: NUL and lone surrogates."""
    return text.replace("\0", "�").encode("utf-8", "replace").decode("utf-8")
