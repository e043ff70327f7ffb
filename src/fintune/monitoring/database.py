"""Connects to a store's database, migrates its tables in limited time, and explains its failures.

Nothing may wait forever for a database that is locked, stopped or behind a dead network. Connecting,
statements and locks have limits here; what a driver cannot limit runs in a thread that is left behind.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Engine as Database

from fintune.data.raw.fetch import TimeUpError, within

PATIENCE = 1.0
"""Seconds that a request waits for the store, and a service's connection for another's lock."""
WAIT_SECONDS = 10
"""Seconds that a command waits for another writer, and anyone for another process's migration."""
STATEMENT_SECONDS = 10
"""Limit on a service's statement (PostgreSQL): requests give up earlier, but the connection is freed."""
AT_ONCE = 8
"""The most questions that requests ask the store at once."""
MIGRATIONS = Path(__file__).with_name("migrations")
LOCK = 7_102_026
"""Key of the PostgreSQL advisory lock for migrations."""
_COMES_BACK = ("starting up", "shutting down", "too many", "connection slots", "recovery mode")
_Result = TypeVar("_Result")


class SilentError(Exception):
    """The store does not answer in time."""


def connect(address: sa.URL, patience: float | None = None) -> Database:
    """An engine for a database; nothing is connected yet.

    Args:
        patience: for a service, the seconds to wait for locks and for a free connection; None for a command,
            which may take its time.
    """
    quiet = {"hide_parameters": True}  # errors are logged, and a client's text must not be
    if address.drivername == "sqlite":
        return _sqlite(address, patience or WAIT_SECONDS, quiet)
    limits = {"connect_timeout": 3, "keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3}
    limits["tcp_user_timeout"] = 1000 * STATEMENT_SECONDS
    own = {name: value for name, value in limits.items() if name not in address.query}
    waiting = {"pool_timeout": patience or WAIT_SECONDS, "pool_pre_ping": True}
    database = sa.create_engine(address, connect_args=own, **waiting, **quiet)

    @sa.event.listens_for(database, "connect")
    def _bound(connection: Any, _: Any) -> None:
        if patience:  # as statements, because a connection pooler refuses them as options
            connection.execute(f"SET statement_timeout = {1000 * STATEMENT_SECONDS}")
            connection.execute(f"SET lock_timeout = {int(1000 * patience)}")
            connection.commit()

    return database


def _sqlite(address: sa.URL, seconds: float, quiet: dict[str, Any]) -> Database:
    if address.database and address.database != ":memory:":
        file = Path(address.database)
        file.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):  # SQLite's own error is clearer
            file.touch(mode=0o600)  # it may hold texts; -wal and -shm inherit its mode
    database = sa.create_engine(address, connect_args={"timeout": seconds}, pool_timeout=seconds, **quiet)

    @sa.event.listens_for(database, "connect")
    def _prepare(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")

    return database


def migrate(database: Database) -> None:
    """Run the migrations that the database lacks; only one of several processes runs them.

    Raises:
        SilentError: the database does not answer, or another process migrates for too long.
    """
    from filelock import Timeout

    try:
        if database.dialect.name == "sqlite":
            _upgrade(database)
        else:
            within(2 * WAIT_SECONDS, lambda: _upgrade(database))
    except (TimeUpError, Timeout):
        raise SilentError("it does not answer, or another process changes its tables") from None


def _upgrade(database: Database) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    with _alone(database), database.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


@contextlib.contextmanager
def _alone(database: Database) -> Iterator[None]:
    """Keep other processes from migrating meanwhile."""
    if database.dialect.name == "postgresql":
        with database.connect() as connection:
            connection.execute(sa.text(f"SET lock_timeout = {1000 * WAIT_SECONDS}"))
            connection.execute(sa.text("SELECT pg_advisory_lock(:key)"), {"key": LOCK})
            try:
                yield
            finally:
                connection.execute(sa.text("SELECT pg_advisory_unlock(:key)"), {"key": LOCK})
    elif (file := database.url.database) and file != ":memory:":
        from filelock import FileLock

        with FileLock(f"{file}.lock", timeout=WAIT_SECONDS):
            yield
    else:
        yield


class Patience:
    """Calls to a store that give up after PATIENCE seconds; a silent store blocks only a few threads."""

    def __init__(self, seconds: float = PATIENCE) -> None:
        self._seconds = seconds
        self._free = threading.BoundedSemaphore(AT_ONCE)

    def __call__(self, work: Callable[[], _Result]) -> _Result:
        """Return or raise what `work` does.

        Raises:
            SilentError: it takes too long; it then continues in its thread.
        """
        if not self._free.acquire(timeout=self._seconds):
            raise SilentError(f"{AT_ONCE} earlier calls have no answer yet")

        def held() -> _Result:
            try:
                return work()
            finally:
                self._free.release()

        try:
            return within(self._seconds, held)
        except TimeUpError:
            raise SilentError(f"no answer within {self._seconds:g} s") from None


def is_outage(error: Exception) -> bool:
    """Whether the database failed and a retry may succeed; otherwise the row is wrong."""
    wrong = (sa.exc.IntegrityError, sa.exc.DataError)
    known = isinstance(error, sa.exc.SQLAlchemyError | OSError | SilentError)
    return known and not isinstance(error, wrong)


def comes_back(error: Exception) -> bool:
    """Whether an unreachable database may come back: its address and rights do not explain the failure."""
    if not isinstance(error, sa.exc.OperationalError):
        return isinstance(error, SilentError)
    said = str(error.orig)
    if "FATAL" in said:  # PostgreSQL answered
        return any(sign in said for sign in _COMES_BACK)
    return "unable to open" not in said


def reason(error: Exception) -> str:
    """Why a store failed, for a log: the driver's first line, or the kind of error.

    The other lines of an error, and errors from outside the driver, may quote the stored text.
    """
    if isinstance(error, SilentError):
        return str(error)
    if isinstance(error, sa.exc.StatementError) and (lines := str(error.orig).strip().splitlines()):
        return lines[0]
    return type(error).__name__
