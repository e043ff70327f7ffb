"""API keys: create, list, revoke and check them. The file holds a hash of each key, never the key.

A key is `ft-ID-SECRET` with 256 random bits. One keyed hash is enough, since nobody can guess such a key and
a slow hash would add nothing. With the optional pepper (FINTUNE_KEYS_PEPPER) a stolen file cannot even check
a key.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from fintune.errors import ConfigError
from fintune.files import read_json, write_json

log = logging.getLogger(__name__)
PEPPER = "FINTUNE_KEYS_PEPPER"
PATIENCE = 5.0
"""Seconds for which the known keys stay valid if their changed file cannot be read."""
_KEY = re.compile(r"ft-([0-9a-f]{12})-([A-Za-z0-9_-]{43})")
_LABEL = re.compile(r"[\w .@+-]{1,64}")
_NOBODY = "0" * 64


@dataclass(frozen=True)
class Key:
    """The file's entry for a key."""

    id: str
    name: str
    salt: str
    hash: str
    created: str
    rate: int | None = None
    """Requests per minute; None is the server's limit, 0 no limit."""
    rate_records: int | None = None
    rate_tokens: int | None = None
    admin: bool = False
    """May load and unload adapters."""
    metrics: bool = False
    """May read `/metrics` only."""
    revoked: str | None = None


def default_path() -> Path:
    """FINTUNE_KEYS, else keys.json in the user's configuration folder."""
    if path := os.environ.get("FINTUNE_KEYS"):
        return Path(path)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "fintune" / "keys.json"


def create(
    path: Path,
    name: str,
    rate: int | None = None,
    admin: bool = False,
    metrics: bool = False,
    rate_records: int | None = None,
    rate_tokens: int | None = None,
) -> str:
    """Create a key; it is returned once and not stored.

    Raises:
        ConfigError: the name is empty, too long or has invalid characters, or the file is damaged.
    """
    if not _LABEL.fullmatch(name):
        raise ConfigError(f"--name is {name!r}: use 1 to 64 letters, digits, spaces and . @ + - _")
    own, secret, salt = secrets.token_hex(6), secrets.token_urlsafe(32), secrets.token_hex(16)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    with _changing(path) as keys:
        limits = (rate, rate_records, rate_tokens)
        keys[own] = Key(own, name, salt, _hash(secret, salt), now, *limits, admin, metrics)
    return f"ft-{own}-{secret}"


def revoke(path: Path, wanted: str) -> Key:
    """Revoke a key, given by its id or name.

    Raises:
        ConfigError: no key or several keys match.
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
    """Id → key; {} if there is no file.

    Raises:
        ConfigError: the file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        return {row["id"]: Key(**row) for row in read_json(path)["keys"]}
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{path} is not a key file ({error}): restore it, or create new keys.") from None


def _hash(secret: str, salt: str) -> str:
    pepper = os.environ.get(PEPPER, "").encode()
    key = hashlib.blake2b(pepper, digest_size=64).digest()
    return hashlib.blake2b(secret.encode(), key=key, salt=bytes.fromhex(salt), digest_size=32).hexdigest()


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[dict[str, Key]]:
    """The keys, for changing; written if the block ends without an error.

    Only the owner can read a new file. An existing file keeps its owner and mode: the server that reads it
    may run as another user than the one who revokes a key.
    """
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    before = os.umask(0o077)
    try:
        with FileLock(f"{path}.lock"):
            keys = load(path)
            yield keys
            new = write_json(path.with_name(f".{path.name}.new"), {"keys": list(map(asdict, keys.values()))})
            if path.exists():
                former = path.stat()
                if hasattr(os, "chown") and os.geteuid() == 0:
                    for file in (new, Path(f"{path}.lock")):
                        os.chown(file, former.st_uid, former.st_gid)
                new.chmod(stat.S_IMODE(former.st_mode))
            os.replace(new, path)
    finally:
        os.umask(before)


def required(named: Path | None, insecure: bool, public: bool) -> KeyRing | None:
    """The keys that a server requires; None if it requires none.

    Args:
        named: the key file from the flag; None is the default file, which may be absent.
        insecure: the operator wants no keys.
        public: other machines can connect.

    Raises:
        ConfigError: the named file is missing, a file is damaged or has no key in use, or other machines
            could connect without a key.
    """
    if insecure:
        return None
    path = named or default_path()
    if path.exists() or named or os.environ.get("FINTUNE_KEYS"):
        ring = KeyRing(path)
        if ring.any():
            return ring
        what = "has no key in use" if path.exists() else "does not exist"
        raise ConfigError(
            f"The API key file {path} {what}: create a key with  "
            f"fintune keys create --name NAME --keys {path}  (or pass --insecure to require none)."
        )
    if public:
        raise ConfigError(
            "--host is an address that other machines can reach, but there is no API key: "
            "create one with  fintune keys create --name NAME  (or pass --insecure)."
        )
    return None


class KeysUnreadable(Exception):
    """The key file has changed and cannot be read, so no request can be checked."""


class KeyRing:
    """A server's keys: read again when the file changes, so that a revoked key stops working at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._keys = load(path)
        self._stamp = self._now()
        self._unreadable_since: float | None = None

    def _now(self) -> tuple[int, int] | None:
        try:
            stat = self.path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_ino

    def any(self) -> bool:
        return any(not key.revoked for key in self._keys.values())

    def find(self, authorization: str) -> Key | None:
        """The key in an `Authorization: Bearer …` header; None if it is missing, unknown or revoked.

        An unknown id takes the same comparison as a wrong secret.

        Raises:
            KeysUnreadable: the file has changed and has been unreadable for `PATIENCE` seconds.
        """
        self._look()
        scheme, _, given = authorization.partition(" ")
        match = _KEY.fullmatch(given.strip()) if scheme.lower() == "bearer" else None
        if not match:
            return None
        key = self._keys.get(match[1])
        expected = key.hash if key else _NOBODY
        same = hmac.compare_digest(_hash(match[2], key.salt if key else _NOBODY[:32]), expected)
        return key if key and same and not key.revoked else None

    def _look(self) -> None:
        stamp = self._now()
        if stamp == self._stamp:
            return
        try:
            self._keys, self._stamp = load(self.path), stamp
            self._unreadable_since = None
        except Exception as error:
            now = time.monotonic()
            if self._unreadable_since is None:
                self._unreadable_since = now
                log.error(
                    "%s has changed and cannot be read (%s): the known keys stay valid for %g more seconds",
                    self.path,
                    error,
                    PATIENCE,
                )
            if now - self._unreadable_since >= PATIENCE:
                raise KeysUnreadable from None
