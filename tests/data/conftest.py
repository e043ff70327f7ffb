"""A file server on loopback."""

import pytest
from file_server import FileServer


@pytest.fixture
def server():
    with FileServer() as server:
        yield server
