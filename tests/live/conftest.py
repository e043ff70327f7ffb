"""A loopback server, a session that may reach it, and a small engine."""

import ipaddress

import pytest
from feed_server import Server

LOOPBACK = [ipaddress.ip_network("127.0.0.0/8")]


@pytest.fixture
def server():
    with Server() as running:
        yield running


@pytest.fixture
def web():
    from fintune.live.web import session

    return session(LOOPBACK)


@pytest.fixture(scope="module")
def engine(untuned):
    """The tiny base, with levels for the regression task."""
    from fintune.tasks import Record

    engine = untuned(max_length=256)
    moves = (-4.0, -2.0, -1.0, 0.0, 0.5, 1.0, 2.0, 4.0)
    engine.tasks["regression"].fit([Record(text="-", target=move) for move in moves])
    return engine
