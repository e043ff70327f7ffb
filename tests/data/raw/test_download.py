"""Getting public datasets: copied, downloaded and checked; and one clear answer where there is no network."""

import hashlib
import io
import json
import socket
import tarfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fintune.config import Recipe, TaskDataConfig
from fintune.data.raw.download import download
from fintune.data.raw.fetch import Limits
from fintune.data.raw.registry import DATASETS, Dataset, Origin, RawFile
from fintune.data.raw.sources import describe_sources, fetch_missing, find_source
from fintune.errors import DataError
from fintune.tasks import task_set

LIMITS = Limits(connect_seconds=2, read_seconds=2, file_seconds=10, attempts=2, pause_seconds=0.01)
CONTENT = b"text,label\nShares rise,1\n"
SUM = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def no_network(monkeypatch):
    """A proxy at a port nobody listens on: every connection is refused, as on a machine cut off."""
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")


@pytest.fixture(autouse=True)
def no_data_at_hand(monkeypatch, workdir):
    monkeypatch.delenv("FINTUNE_OFFLINE", raising=False)


@pytest.fixture
def ours(monkeypatch):
    """A function: origins → the name of a dataset with one file had from them."""

    def dataset(*origins, sha256=SUM, name="ours"):
        file = RawFile(f"{name}/a.csv", sha256, "a.csv", others=tuple(origins))
        made = Dataset(name, "Ours", "classification", "none", "here", "public:none", "", "", (file,))
        monkeypatch.setitem(DATASETS, name, made)
        return name

    return dataset


@pytest.fixture
def hub(server, monkeypatch):
    """The file server as the hub, for a client that is not offline."""
    import huggingface_hub

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "hub-cache")
    huggingface_hub.close_session()  # it keeps the proxies of its first request
    yield server
    huggingface_hub.close_session()


def files_below(folder):
    return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file())


def quiet(_):
    pass


def test_a_download_is_checked_recorded_and_not_repeated(server, ours):
    server.files["/a"] = CONTENT
    name = ours(Origin(f"{server.url}/a", sha256=SUM))
    assert download([name], "raw", quiet, LIMITS) == []
    assert files_below("raw") == ["downloads.json", "ours/a.csv"]
    record = json.loads(Path("raw/downloads.json").read_text())["ours/a.csv"]
    assert (record["url"], record["sha256"], record["bytes"]) == (f"{server.url}/a", SUM, len(CONTENT))
    before, said = len(server.seen), []
    assert download([name], "raw", said.append, LIMITS) == []
    assert len(server.seen) == before and "already there" in said[0]

    Path("raw/ours/a.csv").write_bytes(b"changed")
    assert download([name], "raw", said.append, LIMITS) == []
    assert "has changed since it was downloaded" in said[1] and SUM in said[1]
    assert Path("raw/ours/a.csv").read_bytes() == CONTENT


def test_what_has_no_known_checksum_is_recorded_and_a_change_on_disk_noticed(server, ours):
    server.files["/a"] = CONTENT
    name = ours(Origin(f"{server.url}/a"), sha256=None)
    download([name], "raw", quiet, LIMITS)
    Path("raw/ours/a.csv").write_bytes(b"changed")
    said = []
    download([name], "raw", said.append, LIMITS)
    assert "has changed" in said[0] and Path("raw/ours/a.csv").read_bytes() == CONTENT


def test_a_wrong_checksum_is_not_stored_and_the_next_place_is_tried(server, ours):
    server.files |= {"/wrong": b"something else", "/a": CONTENT}
    wrong = hashlib.sha256(b"something else").hexdigest()
    name = ours(Origin(f"{server.url}/wrong", sha256=SUM))
    with pytest.raises(DataError, match=f"{wrong} instead of {SUM}.*not stored"):
        download([name], "raw", quiet, LIMITS)
    assert files_below("raw") == []
    name = ours(Origin(f"{server.url}/wrong", sha256=SUM), Origin(f"{server.url}/a", sha256=SUM))
    assert download([name], "raw", quiet, LIMITS) == []
    assert Path("raw/ours/a.csv").read_bytes() == CONTENT


def test_a_partial_file_that_is_no_beginning_of_the_right_one_is_left_behind(server, ours):
    server.files["/a"] = CONTENT
    Path("raw/ours").mkdir(parents=True)
    Path("raw/ours/a.csv.part").write_bytes(b"of another version")
    assert download([ours(Origin(f"{server.url}/a", sha256=SUM))], "raw", quiet, LIMITS) == []
    assert server.gets("/a") == ["bytes=18-", ""]
    assert files_below("raw") == ["downloads.json", "ours/a.csv"]


def test_an_archive_without_a_known_checksum_must_be_whole_and_not_hostile(server, monkeypatch):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as made:
        made.addfile(tarfile.TarInfo("repo/../../escape.txt"))
    file = RawFile("a.tar.gz", None, others=(Origin(f"{server.url}/a"),))
    made = Dataset("ours", "Ours", "classification", "none", "here", "public:none", "", "", (file,))
    monkeypatch.setitem(DATASETS, "ours", made)
    for content, why in ((archive.getvalue(), "climbs out"), (b"<html>Log in</html>", "is damaged")):
        server.files["/a"] = content
        with pytest.raises(DataError, match=f"/a gave no valid archive: .*{why}"):
            download(["ours"], "raw", quiet, LIMITS)
        assert files_below("raw") == []


def test_a_web_page_in_place_of_a_file_is_not_stored(server, ours):
    server.files["/a"] = b"\n<!DOCTYPE html><title>Log in</title>"
    with pytest.raises(DataError, match="/a gave a web page instead of the file"):
        download([ours(Origin(f"{server.url}/a"), sha256=None)], "raw", quiet, LIMITS)
    assert files_below("raw") == []


def test_an_optional_file_that_is_not_to_be_had_is_named_and_the_dataset_is_there(server, monkeypatch):
    server.files["/a"] = CONTENT
    files = (
        RawFile("a.csv", SUM, "a.csv", others=(Origin(f"{server.url}/a", sha256=SUM),)),
        RawFile("more.csv", None, "more.csv", others=(Origin(f"{server.url}/more"),), optional=True),
    )
    made = Dataset("ours", "Ours", "classification", "none", "here", "public:none", "", "", files)
    monkeypatch.setitem(DATASETS, "ours", made)
    said = []
    assert download(["ours"], "raw", said.append, LIMITS) == []
    assert "without more.csv" in said[0] and "HTTP 404" in said[0] and files_below("raw")[0] == "a.csv"
    server.files["/more"] = CONTENT
    assert download(["ours"], "raw", said.append, LIMITS) == []
    assert "downloaded" not in said[1] and "a.csv, more.csv" in said[1]


def test_processes_that_download_at_once_store_one_whole_file(server, ours):
    content = bytes(range(256)) * 2000
    server.files["/a"], server.faults["/a"] = content, [100_000, 200_000]
    name = ours(Origin(f"{server.url}/a"), sha256=None)
    with ThreadPoolExecutor(4) as pool:
        results = [pool.submit(download, [name], "raw", quiet, LIMITS) for _ in range(4)]
    assert [result.result() for result in results] == [[]] * 4
    assert Path("raw/ours/a.csv").read_bytes() == content
    assert len(server.gets("/a")) == 3  # by one of them, cut twice


def test_one_dataset_that_is_gone_does_not_keep_the_others(server, ours):
    server.files["/a"] = CONTENT
    gone = ours(Origin(f"{server.url}/gone"), Origin(f"{server.url}/gone-too"), name="gone")
    there = ours(Origin(f"{server.url}/a", sha256=SUM))
    with pytest.raises(
        DataError, match=r"gone could not be downloaded: .*/gone is no longer there.*/gone-too is no"
    ):
        download([gone, there], "raw", quiet, LIMITS)
    assert Path("raw/ours/a.csv").read_bytes() == CONTENT


def test_a_file_comes_through_the_proxy_of_the_environment(server, ours, monkeypatch):
    url = "http://upstream.invalid/a"
    server.files[url] = CONTENT  # a proxy is asked for the whole address
    monkeypatch.setenv("http_proxy", server.url)
    assert download([ours(Origin(url, sha256=SUM))], "raw", quiet, LIMITS) == []
    assert server.gets(url) == [""]


def test_a_hub_file_comes_at_its_revision_and_then_from_the_cache(hub, ours):
    revision = hub.commit = "a" * 40
    path = f"/datasets/us/ours/resolve/{revision}/data/a.csv"
    hub.files[path], hub.faults[path] = CONTENT, [10, ("status", 429, {"Retry-After": "0"})]
    name = ours(Origin(hub=("us/ours", revision, "data/a.csv"), sha256=SUM))
    assert download([name], "raw", quiet, LIMITS) == []
    assert Path("raw/ours/a.csv").read_bytes() == CONTENT
    assert len(hub.gets(path)) == 3  # cut, told to wait, given
    Path("raw/ours/a.csv").unlink()
    assert download([name], "raw", quiet, LIMITS) == [] and len(hub.gets(path)) == 3
    assert Path("raw/ours/a.csv").read_bytes() == CONTENT


def test_a_hub_archive_gives_its_one_member_as_utf8(hub, ours):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("Bank-v1.0/Sentences.txt", "Kauppi säilyi@neutral\r\n".encode("iso-8859-1"))
        made.writestr("__MACOSX/Bank-v1.0/._Sentences.txt", b"\0\1")
    hub.files[f"/datasets/us/bank/resolve/{hub.commit}/bank.zip"] = archive.getvalue()
    origin = Origin(hub=("us/bank", hub.commit, "bank.zip"), member=r"Sentences\.txt", encoding="iso-8859-1")
    name = ours(origin, sha256=None)
    assert download([name], "raw", quiet, LIMITS) == []
    assert Path("raw/ours/a.csv").read_bytes() == "Kauppi säilyi@neutral\r\n".encode()
    assert files_below("raw") == ["downloads.json", "ours/a.csv"]


def test_a_hub_file_that_is_gone_is_told_and_the_repository_serves(hub, ours):
    hub.files["/a"] = CONTENT
    gone = Origin(hub=("us/ours", hub.commit, "a.csv"), sha256=SUM)
    with pytest.raises(DataError, match=r"resolve/0{40}/a\.csv is no longer there \(HTTP 404\)"):
        download([ours(gone)], "raw", quiet, LIMITS)
    assert download([ours(gone, Origin(f"{hub.url}/a", sha256=SUM))], "raw", quiet, LIMITS) == []


def test_without_a_network_it_says_where_the_files_go_and_leaves_nothing_behind(no_network):
    said = []
    assert download(["fiqa_sa", "financial_phrasebank"], "raw", said.append) == [
        "fiqa_sa",
        "financial_phrasebank",
    ]
    assert len(said) == 1
    for part in (
        "raw.githubusercontent.com does not answer",
        "fiqa_sa, financial_phrasebank",
        "raw/financial_phrasebank/Sentences_50Agree.txt  from https://raw.githubusercontent.com/",
        "data/FinancialPhraseBank-v1.0.zip (its member Sentences_50Agree.txt)",
        "FINTUNE_DATA_DIR",
        "built-in sample",
    ):
        assert part in said[0]
    assert files_below("raw") == []


def test_nothing_is_asked_when_told_to_stay_offline(server, ours, monkeypatch):
    monkeypatch.setenv("FINTUNE_OFFLINE", "1")
    said = []
    assert download([ours(Origin(f"{server.url}/a"))], "raw", said.append) == ["ours"]
    assert server.seen == [] and "FINTUNE_OFFLINE is set" in said[0]


def test_a_hub_told_to_stay_offline_is_not_asked(server, ours, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", server.url)  # conftest.py has set HF_HUB_OFFLINE
    said = []
    name = ours(Origin(hub=("us/absent", "b" * 40, "a.csv"), sha256=SUM))
    assert download([name], "raw", said.append) == ["ours"]
    assert server.seen == [] and "HF_HUB_OFFLINE is set" in said[0]


def test_a_file_at_hand_is_copied_and_one_with_another_checksum_is_not(no_network, ours, monkeypatch):
    Path("hand/ours").mkdir(parents=True)
    Path("hand/ours/a.csv").write_bytes(CONTENT)
    monkeypatch.setenv("FINTUNE_DATA_DIR", "hand")
    said = []
    assert download([ours()], "raw", said.append) == [] and "copied" in said[0]
    assert Path("raw/ours/a.csv").read_bytes() == CONTENT
    Path("hand/ours/a.csv").write_bytes(b"[]")
    with pytest.raises(DataError, match=r"another checksum than it should .* so it was not copied"):
        download([ours()], "target", quiet)
    assert files_below("target") == []


def test_an_unknown_dataset_is_refused():
    with pytest.raises(DataError, match="no dataset 'tatq'; valid are: all, financial_phrasebank"):
        download(["tatq"])


def recipe(task="headline", **data):
    return Recipe.model_validate({"multi_task": {"task_weights": {task: 1}}, "data": data})


def write(folder):
    for name in ("train", "valid"):
        path = Path(folder) / "twitter_financial_news" / f"sent_{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text,label\nShares rise,1\n")


def test_data_is_looked_for_in_the_given_folder_then_the_variables_then_the_download_folder(monkeypatch):
    wanted = recipe(dir="given")
    (task,) = task_set(wanted)
    places = []
    Path("given/fiqa_sa").mkdir(parents=True)
    Path("given/fiqa_sa/task1_post_ABSA_test.json").write_text("{}")  # so that it is a data folder
    monkeypatch.setenv("FINTUNE_DATA_DIR", "variable")
    for folder in ("data/raw", "variable", "given"):
        write(folder)
        source = find_source(task, TaskDataConfig(), wanted.data)
        places.append(Path(next(iter(source.files.values())).path).relative_to(Path.cwd()).parts[0])
    assert places == ["data", "variable", "given"]
    assert describe_sources(wanted, [task]) == "twitter_financial_news"


def test_a_run_without_data_and_network_knows_it_within_three_seconds_and_says_why(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never answers
        for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "HTTP_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("no_proxy", "")
        said, start = [], time.monotonic()
        wanted = recipe("sentiment")
        why = fetch_missing(wanted, said.append)
    assert time.monotonic() - start < 3
    assert len(said) == 1 and "financial_phrasebank" in said[0] and "FINTUNE_OFFLINE=1" in said[0]
    assert "raw.githubusercontent.com does not answer" in why
    assert "huggingface.co" not in why  # nor is the hub asked then
    text = describe_sources(wanted, task_set(wanted), why)
    assert text == f"the built-in sample ({why})"


def test_under_commercial_only_no_other_licence_is_downloaded_and_a_stand_in_at_hand_is_taken(
    no_network, monkeypatch
):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    said = []
    wanted = recipe("sentiment", commercial_only=True)
    fetch_missing(wanted, said.append)
    assert "twitter_sentiment" in said[0] and not any("financial_phrasebank" in line for line in said)
    assert "built-in sample" in describe_sources(wanted, task_set(wanted))
    write("data/raw")
    assert describe_sources(wanted, task_set(wanted)) == "twitter_sentiment"

    said = []
    left_out = recipe("regression", commercial_only=True, tasks={"regression": {"dataset": "fiqa_sa"}})
    assert fetch_missing(left_out, said.append) == "" and said == []
    assert describe_sources(left_out, task_set(left_out)) == ""


@pytest.mark.parametrize("variable", ["FINTUNE_OFFLINE", "HF_HUB_OFFLINE"])
def test_a_run_told_to_stay_offline_tries_nothing(monkeypatch, variable):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv(variable, "1")
    said = []
    assert fetch_missing(recipe(), said.append) == f"{variable} is set" and said == []
    write("data/raw")
    assert fetch_missing(recipe(), said.append) == ""
