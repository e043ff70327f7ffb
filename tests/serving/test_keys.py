"""Keys on disk, and the addresses a server refuses without them."""

import json
import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fintune.cli import main
from fintune.errors import ConfigError
from fintune.serving import keys, shares
from fintune.serving.origins import foreign_host, foreign_page


def test_the_file_holds_no_key_and_is_its_owners_alone(tmp_path):
    path = tmp_path / "keys.json"
    made = keys.create(path, "desk")
    assert made.split("-", 2)[2] not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert keys.KeyRing(path).find(f"Bearer {made}").name == "desk"


def test_a_stolen_file_checks_no_key_without_its_pepper(tmp_path, monkeypatch):
    path = tmp_path / "keys.json"
    monkeypatch.setenv(keys.PEPPER, "sea salt")
    made = keys.create(path, "desk")
    assert keys.KeyRing(path).find(f"Bearer {made}")
    monkeypatch.setenv(keys.PEPPER, "rock salt")
    assert keys.KeyRing(path).find(f"Bearer {made}") is None


def test_a_damaged_file_lets_nobody_in(tmp_path):
    path = tmp_path / "keys.json"
    made = keys.create(path, "desk")
    ring = keys.KeyRing(path)
    path.unlink()
    assert ring.find(f"Bearer {made}") is None
    path.write_text(json.dumps({"keys": [{"id": 1}]}))
    with pytest.raises(ConfigError, match="is no file of keys"):
        keys.KeyRing(path)


def test_the_command_makes_lists_and_revokes(tmp_path, capsys):
    file = ["--keys", str(tmp_path / "keys.json")]
    assert main(["keys", "create", "--name", "desk", "--rate", "60", *file]) == 0
    made = capsys.readouterr().out.strip()
    assert main(["keys", "list", *file]) == 0
    listed = capsys.readouterr().out
    assert "desk" in listed and "60/min" in listed and made not in listed
    assert main(["keys", "revoke", "desk", *file]) == 0
    assert main(["keys", "revoke", "desk", *file]) == 2
    assert "no key in use called 'desk'" in capsys.readouterr().err
    assert keys.KeyRing(tmp_path / "keys.json").find(f"Bearer {made}") is None


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])
@pytest.mark.parametrize("file", ["missing", "revoked"])
@pytest.mark.parametrize("by", ["flag", "variable"])
def test_a_file_of_keys_that_is_named_is_never_an_open_server(host, file, by, tmp_path, monkeypatch, capsys):
    path = tmp_path / "keys.json"
    if file == "revoked":
        keys.create(path, "desk")
        keys.revoke(path, "desk")
    command = ["serve", "--host", host, "--port", "0"]
    if by == "flag":
        command += ["--keys", str(path)]
    else:
        monkeypatch.setenv("FINTUNE_KEYS", str(path))
    assert main(command) == 2
    said = capsys.readouterr().err
    assert ("has no key in use" if file == "revoked" else "does not exist") in said
    assert "fintune keys create --name NAME" in said and "--insecure" in said


def test_a_public_address_without_keys_is_refused_before_the_model_is_loaded(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("FINTUNE_KEYS", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert main(["serve", "--host", "0.0.0.0", "--port", "0"]) == 2
    assert "there is no API key: make one with  fintune keys create" in capsys.readouterr().err
    assert keys.required(None, insecure=False, public=False) is None


def test_a_changed_file_that_cannot_be_read_is_logged_at_once_and_ends_every_key_soon(
    tmp_path, monkeypatch, caplog
):
    now = [0.0]
    monkeypatch.setattr(keys.time, "monotonic", lambda: now[0])
    path = tmp_path / "keys.json"
    made = f"Bearer {keys.create(path, 'desk')}"
    ring, whole = keys.KeyRing(path), path.read_text()
    path.write_text(whole[:40])
    assert ring.find(made) and "cannot be read" in caplog.text
    now[0] = keys.PATIENCE
    with pytest.raises(keys.KeysUnreadable):
        ring.find(made)
    assert caplog.text.count("cannot be read") == 1
    path.write_text(whole)
    assert ring.find(made)
    keys.revoke(path, "desk")
    assert ring.find(made) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file to another user")
def test_a_file_that_is_replaced_keeps_its_owner_and_mode(tmp_path):
    path = tmp_path / "keys.json"
    keys.create(path, "desk")
    os.chown(path, 1234, 1235)
    path.chmod(0o640)
    keys.revoke(path, "desk")
    found = path.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (1234, 1235, 0o640)
    assert (tmp_path / "keys.json.lock").stat().st_uid == 1234


@given(
    st.sampled_from(["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"]),
    st.none()
    | st.sampled_from(["http://a.example", "http://127.0.0.1:8000", "https://proxy.example", "null"]),
    st.none() | st.sampled_from(["same-origin", "same-site", "cross-site", "none"]),
)
def test_a_page_writes_only_to_its_own_server(method, origin, said):
    headers = {"host": "127.0.0.1:8000"} | ({"origin": origin} if origin else {})
    headers |= {"sec-fetch-site": said} if said else {}
    foreign = foreign_page(method, headers, hosts=["proxy.example"], origins=["http://a.example"])
    reads = method in ("GET", "HEAD", "OPTIONS")
    allowed = origin == "http://a.example" or said in ("same-origin", "none")
    unsaid = said is None and origin in (None, "http://127.0.0.1:8000", "https://proxy.example")
    assert foreign != (reads or allowed or unsaid)


def test_hosts_are_this_machine_and_those_that_are_allowed():
    def foreign(host, public=False, hosts=()):
        return foreign_host({"host": host}, public, hosts)

    assert not any(map(foreign, ["localhost:8000", "127.0.0.1", "[::1]:80", ""]))
    assert foreign("evil.example") and foreign("localhost.evil.example:8000")
    assert not foreign("api.bank.example", hosts=["api.bank.example"])
    assert not foreign("any.example", public=True)
    assert foreign("any.example", public=True, hosts=["api.bank.example"])


def test_a_limit_is_so_many_a_minute(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(shares.time, "monotonic", lambda: now[0])
    limiter = shares.Limiter()
    passed = 0
    for _ in range(600):  # ten minutes, a try a second
        now[0] += 1
        passed += limiter.take("desk", 6) == 0
    assert passed == 6 + 60 - 1
    assert limiter.take("other", 6) == 0
