"""Stores to test with: a SQLite file, and a PostgreSQL of its own where one is installed."""

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _postgres_tools():
    found = shutil.which("initdb")
    places = (
        [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    )
    return next((place for place in places if (place / "pg_ctl").exists()), None)


@pytest.fixture(scope="session")
def postgres_url():
    """The URL of a PostgreSQL server of this session; it refuses to run as root, so root lends it a user."""
    tools = _postgres_tools()
    if tools is None:
        pytest.skip("PostgreSQL is not installed: its initdb and pg_ctl are not found")
    # Not pytest's folder: every session that starts closes it to other users again.
    folder = Path(tempfile.mkdtemp(prefix="fintune-postgres-"))
    run_as = {}
    if os.geteuid() == 0:
        import pwd

        try:
            user = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        os.chown(folder, user.pw_uid, user.pw_gid)
        run_as = {"user": user.pw_uid, "group": user.pw_gid}
    port, data = free_port(), folder / "data"
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "cwd": folder, "timeout": 60, **run_as}
    subprocess.run([tools / "initdb", "-D", data, "-A", "trust", "-U", "fintune", "-E", "UTF8"], **quiet)
    start = [tools / "pg_ctl", "-D", data, "-o", options, "-l", folder / "log", "-w", "start"]
    subprocess.run(start, **quiet)
    try:
        yield f"postgresql://fintune@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([tools / "pg_ctl", "-D", data, "-m", "immediate", "stop"], **quiet)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """An empty store's URL."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/monitoring.db"
        return
    import sqlalchemy as sa

    address = request.getfixturevalue("postgres_url")
    yield address
    database = sa.create_engine(address.replace("postgresql:", "postgresql+psycopg:"))
    with database.begin() as connection:
        connection.execute(sa.text("DROP SCHEMA public CASCADE; CREATE SCHEMA public"))
    database.dispose()
