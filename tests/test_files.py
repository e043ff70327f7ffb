"""Files and folders that are replaced: whole at every moment, whoever is killed, and nothing of it stays."""

import multiprocessing
import os
import signal
import time

import pytest

from fintune import files


def write(path, name, moment):
    """Fill a folder anew, and be killed at a moment of it."""

    def killed(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    real, count = os.replace, iter(range(10))

    def replace(old, new):
        real(old, new)
        if next(count) == moment:
            killed()

    os.replace = replace
    if moment is not None:
        files._swap = lambda *_: False
    with files.atomic_folder(path) as staging:
        (staging / name).write_text("new")
        if moment is None:
            killed()


def run(*arguments):
    process = multiprocessing.get_context("fork").Process(target=write, args=arguments)
    process.start()
    process.join(30)
    return process.exitcode


def names(folder):
    return sorted(path.name for path in folder.rglob("*"))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "day").mkdir()
    (tmp_path / "day" / "first").write_text("old")
    return tmp_path / "day"


@pytest.mark.parametrize("moment", [None, 0, 1])
def test_a_folder_is_whole_after_a_kill_at_any_moment_and_what_is_left_goes(folder, monkeypatch, moment):
    assert run(folder, "second", moment) == -signal.SIGKILL
    monkeypatch.setattr(files, "YOUNG", 0)
    files._sweep.cache_clear()
    files.recover(folder)
    assert names(folder.parent) == ["day", "second" if moment == 1 else "first"]


def test_a_folder_is_there_throughout_where_the_system_can_swap(folder, monkeypatch):
    new = folder.with_name("new")
    new.mkdir()
    if not files._swap(folder, new):
        pytest.skip("this file system cannot swap")
    moved = []
    monkeypatch.setattr(os, "replace", lambda *names: moved.append(names))
    files.replace_folder(folder, new)
    assert moved == [] and names(new.parent) == ["new"]


def test_what_another_process_writes_is_left_alone_and_has_a_name_of_its_own(folder, monkeypatch):
    monkeypatch.setattr(files, "YOUNG", 0)
    monkeypatch.setattr(os, "getpid", lambda: 1)  # as in two containers on one volume
    path = folder / "table.csv"
    with files.atomic_file(path) as one:
        one.write(b"1")
        files._sweep.cache_clear()
        with files.atomic_file(path) as other:
            other.write(b"2")
        files.recover(folder / "table.csv")
    assert path.read_bytes() == b"1" and names(folder) == ["first", "table.csv"]


def test_half_a_file_of_a_killed_process_goes_once_it_is_old(folder):
    left = folder / ".table.csv.0123456789ab.new"
    left.write_bytes(b"half")
    files.atomic_write(folder / "table.csv", "1")
    assert left.exists()  # its owner may be about to lock it
    files._sweep.cache_clear()
    later = time.time() + files.YOUNG + 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files.time, "time", lambda: later)
        files.atomic_write(folder / "table.csv", "2")
    assert names(folder) == ["first", "table.csv"]


def test_json_from_outside_is_bounded_in_size_depth_and_digits(tmp_path):
    for content, why in (
        ("[" * 100_000, "nested"),
        ("1" * 10_000, "not valid"),
        ("[1, 2, 3]", "more than 4"),
    ):
        (tmp_path / "any.json").write_text(content)
        with pytest.raises(files.DataError, match=why):
            files.read_json(tmp_path / "any.json", 4 if "more" in why else 1_000_000)
