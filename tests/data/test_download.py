"""Getting public datasets: copied from a folder at hand, and one clear answer where there is no network."""

import pytest

from fintune.data.download import download
from fintune.errors import DataError


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """A proxy at a port nobody listens on: every connection is refused, as on a machine cut off."""
    monkeypatch.delenv("FINTUNE_DATA_DIR", raising=False)
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")


def test_without_a_network_it_says_where_the_files_go_and_leaves_nothing_behind(tmp_path):
    said = []
    assert download(["fiqa_sa", "tatqa"], tmp_path, said.append) == ["fiqa_sa", "tatqa"]
    assert len(said) == 1
    for part in (
        "fiqa_sa, tatqa",
        f"{tmp_path}/tatqa/tatqa_dataset_dev.json",
        "FINTUNE_DATA_DIR",
        "built-in sample",
    ):
        assert part in said[0]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_file_with_another_checksum_is_not_stored(tmp_path, monkeypatch):
    source = tmp_path / "source" / "tatqa"
    source.mkdir(parents=True)
    (source / "tatqa_dataset_dev.json").write_text("[]")
    monkeypatch.setenv("FINTUNE_DATA_DIR", str(tmp_path / "source"))
    with pytest.raises(DataError, match="its checksum differs"):
        download(["tatqa"], tmp_path / "target")
    assert [path for path in (tmp_path / "target").rglob("*") if path.is_file()] == []


def test_an_unknown_dataset_is_refused(tmp_path):
    with pytest.raises(DataError, match="no dataset 'tatq'; there are: financial_phrasebank"):
        download(["tatq"], tmp_path)
