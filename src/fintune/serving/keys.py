"""API keys: made, listed, revoked, checked. The file keeps a hash of each, never the key.

A key is `ft-ID-SECRET` with 256 random bits, so one keyed hash is enough: there is nothing to guess that a
slow hash would protect. With the optional pepper (FINTUNE_KEYS_PEPPER) a stolen file cannot even check a key.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from fintune.errors import ConfigError
from fintune.files import read_json, write_json

PEPPER = "FINTUNE_KEYS_PEPPER"
_KEY = re.compile(r"ft-([0-9a-f]{12})-([A-Za-z0-9_-]{43})")
_LABEL = re.compile(r"[\w .@+-]{1,64}")
_NOBODY = "0" * 64


@dataclass(frozen=True)
class Key:
    """What the file has of a key."""

    id: str
    name: str
    salt: str
    hash: str
    created: str
    rate: int | None = None
    """Requests a minute; None is the server's limit, 0 none."""
    rate_records: int | None = None
    rate_tokens: int | None = None
    admin: bool = False
    """May load and unload adapters."""
    revoked: str | None = None


def default_path() -> Path:
    """FINTUNE_KEYS, else keys.json in the user's configuration."""
    if path := os.environ.get("FINTUNE_KEYS"):
        return Path(path)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "fintune" / "keys.json"


def create(
    path: Path,
    name: str,
    rate: int | None = None,
    admin: bool = False,
    rate_records: int | None = None,
    rate_tokens: int | None = None,
) -> str:
    """A new key, which is returned once and not kept.

    Raises:
        ConfigError: the name is empty, too long or has unusual characters.
    """
    if not _LABEL.fullmatch(name):
        raise ConfigError(f"--name is {name!r}: use 1 to 64 letters, digits, spaces and . @ + - _")
    own, secret, salt = secrets.token_hex(6), secrets.token_urlsafe(32), secrets.token_hex(16)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    with _changing(path) as keys:
        keys[own] = Key(own, name, salt, _hash(secret, salt), now, rate, rate_records, rate_tokens, admin)
    return f"ft-{own}-{secret}"


def revoke(path: Path, wanted: str) -> Key:
    """Make a key, given by its id or its name, good for nothing.

    Raises:
        ConfigError: there is no such key, or several of that name.
    """
    with _changing(path) as keys:
        found = [k for k in keys.values() if wanted in (k.id, k.name) and not k.revoked]
        if len(found) != 1:
            count = "no key" if not found else f"{len(found)} keys"
            raise ConfigError(f"There is {count} in use called {wanted!r}: see  fintune keys list")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        keys[found[0].id] = Key(**{**asdict(found[0]), "revoked": now})
    return keys[found[0].id]


def load(path: Path) -> dict[str, Key]:
    """Id → key; {} where there is no file.

    Raises:
        ConfigError: the file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        return {row["id"]: Key(**row) for row in read_json(path)["keys"]}
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no file of keys ({error}): restore it, or make keys anew.") from None


def _hash(secret: str, salt: str) -> str:
    pepper = os.environ.get(PEPPER, "").encode()
    key = hashlib.blake2b(pepper, digest_size=64).digest()
    return hashlib.blake2b(secret.encode(), key=key, salt=bytes.fromhex(salt), digest_size=32).hexdigest()


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[dict[str, Key]]:
    """The keys, to change; written when the block ends well, readable by their owner alone."""
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    before = os.umask(0o077)
    try:
        with FileLock(f"{path}.lock"):
            keys = load(path)
            yield keys
            write_json(path, {"keys": [asdict(key) for key in keys.values()]})
    finally:
        os.umask(before)


class KeyRing:
    """The keys as a server uses them: read again when the file changes, so a revoked key ends at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._keys = load(path)
        self._stamp = self._now()

    def _now(self) -> tuple[int, int] | None:
        try:
            stat = self.path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_ino

    def any(self) -> bool:
        return any(not key.revoked for key in self._keys.values())

    def find(self, authorization: str) -> Key | None:
        """The key of an `Authorization: Bearer …` header; None where it is none, unknown or revoked.

        An unknown id costs the same comparison as a wrong secret.
        """
        stamp = self._now()
        if stamp != self._stamp:
            with contextlib.suppress(Exception):  # half a file is not the keys; those known stay in force
                self._keys, self._stamp = load(self.path), stamp
        scheme, _, given = authorization.partition(" ")
        match = _KEY.fullmatch(given.strip()) if scheme.lower() == "bearer" else None
        if not match:
            return None
        key = self._keys.get(match[1])
        expected = key.hash if key else _NOBODY
        same = hmac.compare_digest(_hash(match[2], key.salt if key else _NOBODY[:32]), expected)
        return key if key and same and not key.revoked else None
