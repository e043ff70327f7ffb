"""Fetching one file from a real server on loopback that cuts, refuses, stalls and asks to wait."""

import re
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fintune.data.raw.fetch import FetchError, Limits, fetch, unreachable

LIMITS = Limits(connect_seconds=2, read_seconds=2, file_seconds=20, attempts=3, pause_seconds=0.01)
CONTENT = bytes(range(256)) * 400  # 102,400 bytes, no piece like another's neighbour


def test_a_cut_connection_is_resumed_where_the_file_ends(server, tmp_path):
    server.files["/a"], server.faults["/a"] = CONTENT, [40_000, 40_000]
    fetch(f"{server.url}/a", tmp_path / "a.part", LIMITS)
    assert (tmp_path / "a.part").read_bytes() == CONTENT
    first, *others = server.gets("/a")
    starts = [int(asked.removeprefix("bytes=").removesuffix("-")) for asked in others]
    assert first == "" and len(starts) == 2 and 0 < starts[0] < starts[1] < len(CONTENT)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(faults=st.lists(st.one_of(st.integers(0, 70_000), st.just(("no range",))), max_size=4))
def test_whatever_is_cut_and_wherever_the_file_is_whole_in_the_end(server, faults):
    server.files["/a"], server.faults["/a"] = CONTENT, list(faults)
    with TemporaryDirectory() as folder:
        part = Path(folder) / "a.part"
        fetch(f"{server.url}/a", part, Limits(attempts=9, pause_seconds=0))
        assert part.read_bytes() == CONTENT


def test_a_partial_file_of_an_earlier_call_is_gone_on_from_and_one_too_long_begun_anew(server, tmp_path):
    server.files["/a"] = CONTENT
    part = tmp_path / "a.part"
    part.write_bytes(CONTENT[:50_000])
    fetch(f"{server.url}/a", part, LIMITS)
    assert part.read_bytes() == CONTENT and server.gets("/a") == ["bytes=50000-"]
    part.write_bytes(CONTENT + b"x")
    fetch(f"{server.url}/a", part, LIMITS)
    assert part.read_bytes() == CONTENT and server.gets("/a")[1:] == ["bytes=102401-", ""]


def test_a_server_that_asks_to_wait_is_waited_for(server, tmp_path):
    server.files["/a"] = CONTENT
    server.faults["/a"] = [("status", 429, {"Retry-After": "1"}), ("status", 503, {"Retry-After": "soon"})]
    start = time.monotonic()
    fetch(f"{server.url}/a", tmp_path / "a.part", LIMITS)
    assert 1 <= time.monotonic() - start < 5
    server.faults["/a"] = [("status", 429, {"Retry-After": "3600"})]
    with pytest.raises(FetchError, match="HTTP 429 and asks to wait for 3600 more"):
        fetch(f"{server.url}/a", tmp_path / "b.part", LIMITS)
    assert time.monotonic() - start < 5


def test_a_file_that_is_gone_is_asked_for_once_and_a_failing_server_as_often_as_allowed(server, tmp_path):
    with pytest.raises(FetchError, match=r"/absent is no longer there \(HTTP 404\)"):
        fetch(f"{server.url}/absent", tmp_path / "a.part", LIMITS)
    assert len(server.gets("/absent")) == 1
    server.faults["/a"] = [("status", 500, {})] * 5
    with pytest.raises(FetchError, match="failed 3 times in a row; the last time it answered HTTP 500"):
        fetch(f"{server.url}/a", tmp_path / "a.part", LIMITS)
    assert len(server.gets("/a")) == 3


def test_a_server_that_drips_is_given_up_when_the_time_is_up_and_what_came_stays(server, tmp_path):
    server.files["/a"], server.faults["/a"] = CONTENT, [("drip", 0.1)]  # 2.5 seconds in all
    part = tmp_path / "a.part"
    start = time.monotonic()
    with pytest.raises(FetchError, match=r"longer than 1 seconds"):
        fetch(f"{server.url}/a", part, Limits(file_seconds=1))
    assert time.monotonic() - start < 2
    kept = part.read_bytes()
    assert kept and CONTENT.startswith(kept)
    time.sleep(1)
    assert part.read_bytes() == kept  # nobody writes on behind


def test_as_long_as_bytes_come_the_attempts_are_not_counted_and_a_whole_file_replaces_its_part(
    server, tmp_path
):
    server.files["/a"], server.faults["/a"] = CONTENT, [*[17_000] * 4, ("no range",)]
    fetch(f"{server.url}/a", tmp_path / "a.part", Limits(attempts=2, pause_seconds=0))
    assert (tmp_path / "a.part").read_bytes() == CONTENT
    assert len(server.gets("/a")) == 5


def test_a_silent_server_times_out_and_an_absent_one_is_offline(server, tmp_path):
    server.files["/a"], server.faults["/a"] = CONTENT, [("drip", 1)] * 3
    with pytest.raises(FetchError, match=r"failed 2 times in a row; .*[Tt]ime"):
        fetch(f"{server.url}/a", tmp_path / "a.part", Limits(read_seconds=0.2, attempts=2, pause_seconds=0))
    assert unreachable(f"{server.url}/absent", LIMITS) == ""  # any answer is one
    server.__exit__()
    why = unreachable(f"{server.url}/a", LIMITS)
    assert re.fullmatch(r"127\.0\.0\.1:\d+ does not answer \(.*refused.*\)", why)
