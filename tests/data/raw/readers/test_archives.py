"""Archives are read in place: what is hostile or damaged is refused, and nothing is ever written."""

import contextlib
import gzip
import io
import stat
import tarfile
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fintune.data.raw.readers import archives
from fintune.errors import DataError

PATTERN = r"data/(?P<name>[^/]+)\.txt"


def tar(path, *entries):
    """Write a .tar.gz of (name, type, content or link target) entries."""
    with tarfile.open(path, "w:gz") as made:
        for name, kind, content in entries:
            member = tarfile.TarInfo(name)
            member.type = kind
            if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                member.linkname = content
            data = content.encode() if kind == tarfile.REGTYPE else b""
            member.size = len(data)
            made.addfile(member, io.BytesIO(data))
    return path


def read(path, **options):
    return {match["name"]: text for match, text in archives.members(path, PATTERN, **options)}


@pytest.fixture(autouse=True)
def nothing_is_written(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield
    left = {p.name for p in tmp_path.rglob("*")} - {"here", "a.tar.gz", "a.zip"}
    assert left == set()


GOOD = ("repo-1/data/a.txt", tarfile.REGTYPE, "Sales rose.")


def test_the_wanted_files_are_read_and_the_others_left_alone(tmp_path):
    entries = [
        ("repo-1/data", tarfile.DIRTYPE, ""),
        GOOD,
        ("repo-1/data/b.csv", tarfile.REGTYPE, "x"),
        ("repo-1/deep/data/c.txt", tarfile.REGTYPE, "x"),
        ("repo-1/latest", tarfile.SYMTYPE, "data/a.txt"),
    ]
    assert read(tar(tmp_path / "a.tar.gz", *entries)) == {"a": "Sales rose."}


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (("/etc/passwd", tarfile.REGTYPE, "x"), "absolute path"),
        (("C:\\evil.txt", tarfile.REGTYPE, "x"), "absolute path"),
        (("repo-1/data/../../../b.txt", tarfile.REGTYPE, "x"), "climbs out"),
        (("repo-1\\..\\..\\b.txt", tarfile.REGTYPE, "x"), "climbs out"),
        (("repo-1/data/b.txt", tarfile.SYMTYPE, "/etc/passwd"), "link to /etc/passwd, outside"),
        (("repo-1/other", tarfile.SYMTYPE, "../../secret"), "outside the archive"),
        (("repo-1/other", tarfile.LNKTYPE, "../secret"), "outside the archive"),
        (("repo-1/data/b.txt", tarfile.SYMTYPE, "a.txt"), "a link where a file belongs"),
        (("repo-1/data/b.txt", tarfile.LNKTYPE, "repo-1/data/a.txt"), "a link where a file belongs"),
        (("repo-1/data/b.txt", tarfile.CHRTYPE, ""), "device or pipe"),
        (("repo-1/x", tarfile.BLKTYPE, ""), "device or pipe"),
        (("repo-1/x", tarfile.FIFOTYPE, ""), "device or pipe"),
        (("repo-1/data/b.txt", tarfile.DIRTYPE, ""), "a folder where a file belongs"),
    ],
)
def test_a_hostile_member_has_the_archive_refused(tmp_path, entry, why):
    path = tar(tmp_path / "a.tar.gz", entry, GOOD)
    with pytest.raises(DataError, match=why) as error:
        read(path)
    assert entry[0] in str(error.value)


def test_a_member_that_claims_to_be_huge_is_refused_before_it_is_read(tmp_path):
    header = tarfile.TarInfo("data/a.txt")
    header.size = 2**40
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(header.tobuf()))
    with pytest.raises(DataError, match=r"of 1,099,511,627,776 bytes"):
        read(tmp_path / "a.tar.gz")


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_bomb_is_refused_once_it_unpacks_to_more_than_text_does(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(archives, "FREE_BYTES", 2**20)
    header = tarfile.TarInfo("elsewhere")
    header.type, header.size = kind, 2**25
    bomb = header.tobuf() + bytes(2**25)
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(bomb, 9))
    with pytest.raises(DataError, match="over 100 times its size"):
        read(tmp_path / "a.tar.gz")


def test_damaged_archives_are_told_to_be_downloaded_again(tmp_path):
    path = tar(tmp_path / "a.tar.gz", GOOD)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-6] ^= 1  # in the checksum at the end
    for content in (
        whole[:-9],
        bytes(flipped),
        b"<html>no archive</html>",
        b"",
        gzip.compress(b"no tar" * 99, mtime=0),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"is damaged .*download it again"):
            read(path)


def zipped(path, *entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, mode, content in entries:
            member = zipfile.ZipInfo(name)
            member.external_attr = mode << 16
            member.compress_type = zipfile.ZIP_DEFLATED
            made.writestr(member, content)
    return path


def test_a_zip_is_read_in_its_encoding_and_a_hostile_one_refused(tmp_path, monkeypatch):
    path, file = tmp_path / "a.zip", stat.S_IFREG | 0o644
    zipped(path, ("bank/data/a.txt", file, "säilyi".encode("iso-8859-1")), ("bank/data/b.pdf", file, b"\xff"))
    assert read(path, encoding="iso-8859-1") == {"a": "säilyi"}
    with pytest.raises(DataError, match="not utf-8-sig text"):
        read(path)
    for name, mode, why in (
        ("/data/a.txt", file, "absolute path"),
        ("../data/a.txt", file, "climbs out"),
        ("data/a.txt", stat.S_IFLNK | 0o777, "not a regular file"),
    ):
        with pytest.raises(DataError, match=why):
            read(zipped(path, (name, mode, "/etc/passwd")))
    with pytest.raises(DataError, match=r"of 17,825,792 bytes"):
        read(zipped(path, ("data/a.txt", file, bytes(17 * 2**20))))
    monkeypatch.setattr(archives, "FREE_BYTES", 2**20)
    with pytest.raises(DataError, match="far more than"):
        read(zipped(path, ("data/a.txt", file, bytes(2**20)), ("data/b.txt", file, bytes(2**20))))
    whole = zipped(path, ("data/a.txt", file, b"Sales rose." * 99)).read_bytes()
    flipped = bytearray(whole)
    flipped[45] ^= 1
    for content in (whole[:-9], bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(DataError, match="is damaged"):
            read(path)


CUTS = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 9), st.binary(max_size=9)), max_size=3)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["tar", "zip", "bare"]), CUTS, st.integers(0, 600))
def test_whatever_an_archive_holds_it_is_read_or_refused(tmp_path, kind, cuts, end):
    """Bytes are changed in the packed file, and in the tar within its gzip."""
    path = tmp_path / ("a.zip" if kind == "zip" else "a.tar.gz")
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as made:
            made.writestr("data/a.txt", "Sales rose.")
        content = path.read_bytes()
    else:
        content = tar(path, GOOD, ("repo-1/data", tarfile.DIRTYPE, "")).read_bytes()
        content = gzip.decompress(content) if kind == "bare" else content
    for at, length, put in cuts:
        content = content[:at] + put + content[at + length :]
    content = content[:end] if end < 300 else content
    path.write_bytes(gzip.compress(content, 1) if kind == "bare" else content)
    with contextlib.suppress(DataError):
        read(path)
