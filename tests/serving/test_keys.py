"""Keys on disk, and the addresses a server refuses without them."""

import json
import stat

import pytest

from fintune.cli import main
from fintune.errors import ConfigError
from fintune.serving import keys, shares


def test_the_file_holds_no_key_and_is_its_owners_alone(tmp_path):
    path = tmp_path / "keys.json"
    made = keys.create(path, "desk")
    secret = made.rsplit("-", 1)[1]
    assert secret not in path.read_text() and made.split("-", 2)[2] not in path.read_text()
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
    assert main(["keys", "revoke", "desk", *file]) == 1
    assert "no key in use called 'desk'" in capsys.readouterr().err
    assert keys.KeyRing(tmp_path / "keys.json").find(f"Bearer {made}") is None


def test_a_public_address_without_keys_is_refused_before_the_model_is_loaded(tmp_path, capsys):
    command = ["serve", "--host", "0.0.0.0", "--port", "0", "--keys", str(tmp_path / "none.json")]
    assert main(command) == 1
    assert "there is no API key: make one with  fintune keys create" in capsys.readouterr().err


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
