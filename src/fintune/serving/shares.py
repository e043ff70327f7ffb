"""Shares a server fairly among callers: rates, turns and room, by key or, without keys, by address.

A caller with many requests takes turns with the others, and cannot fill the queue while others wait.
"""

from __future__ import annotations

import ipaddress
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from fintune.serving.errors import later

MAX_KEPT = 10_000
"""Callers remembered; beyond this number, those without recent use are forgotten."""


@dataclass(frozen=True)
class Caller:
    """Who sends requests: a key, or an address if no key is required. Limits are per minute; 0 is none."""

    name: str = ""
    rate: int = 0
    records: int = 0
    tokens: int = 0


CALLER: ContextVar[Caller] = ContextVar("caller", default=Caller())  # noqa: B039 (it is frozen)
"""The caller whose request is being answered."""


def address(host: str) -> str:
    """A client's address for counting: for IPv6 its network, in which one client has all addresses."""
    try:
        found = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    return host if found.version == 4 else str(ipaddress.ip_network((found, 64), strict=False))


class Limiter:
    """Rate limits per minute, by kind: token buckets that refill evenly. Thread-safe."""

    def __init__(self) -> None:
        self._buckets: dict[tuple[str, str], tuple[float, float, float]] = {}  # left, when, full
        self._lock = threading.Lock()

    def take(self, who: str, limit: int, amount: float = 1, kind: str = "requests") -> float:
        """Take an amount; return 0, or the seconds until there is enough.

        An amount above the bucket's size takes a full bucket; the rest is paid back before anything else.
        """
        if limit <= 0:
            return 0.0
        with self._lock:
            left = self._left(who, limit, kind)
            missing = min(amount, limit) - left
            if missing > 0:
                return missing * 60 / limit
            self._buckets[who, kind] = left - amount, time.monotonic(), limit
            return 0.0

    def spend(self, who: str, limit: int, amount: float, kind: str) -> None:
        """Take an amount that was already used, such as an answer's tokens."""
        if limit > 0:
            with self._lock:
                self._buckets[who, kind] = self._left(who, limit, kind) - amount, time.monotonic(), limit

    def check(self, caller: Caller, kind: str, amount: float) -> None:
        """`take` with the caller's own limits.

        Raises:
            ApiError: 429, which names the limit.
        """
        limit = {"requests": caller.rate, "records": caller.records, "tokens": caller.tokens}[kind]
        if wait := self.take(caller.name, limit, amount, kind):
            message = f"Your limit is {limit:,} {kind} per minute:"
            raise later(429, message, "rate_limit_error", "rate_limit_exceeded", wait)

    def _left(self, who: str, limit: int, kind: str) -> float:
        now = time.monotonic()
        if len(self._buckets) > MAX_KEPT:
            kept = self._buckets.items()
            self._buckets = {key: b for key, b in kept if b[0] + (now - b[1]) * b[2] / 60 < b[2]}
        left, then, _ = self._buckets.get((who, kind), (float(limit), now, 0))
        return min(float(limit), left + (now - then) * limit / 60)


class Waits(Protocol):
    """A request in the line."""

    key: tuple[str, ...]

    @property
    def owner(self) -> str: ...

    @property
    def size(self) -> int:
        """Number of records that still wait."""

    @property
    def begun(self) -> bool: ...


W = TypeVar("W", bound=Waits)


class Line(Generic[W]):
    """The jobs that wait for the model thread, in turns: the owner who was given least is next.

    This is start-time fair queueing (Goyal et al., 1996): each owner's clock advances with what it is given;
    an owner who returns starts at the clock of those being served.
    """

    def __init__(self) -> None:
        self.jobs: list[W] = []
        """In the order of their arrival."""
        self.size = 0
        """Records that wait."""
        self._clocks: dict[str, float] = {}
        self._now = 0.0

    def add(self, job: W) -> None:
        if all(other.owner != job.owner for other in self.jobs):
            self._clocks[job.owner] = max(self._clocks.get(job.owner, 0.0), self._now)
        self.jobs.append(job)
        self.size += job.size

    def keep(self, wanted: Callable[[W], bool]) -> list[W]:
        """Keep the wanted jobs; return the others."""
        gone = [job for job in self.jobs if not wanted(job)]
        if gone:
            self.jobs = [job for job in self.jobs if wanted(job)]
            self.size = sum(job.size for job in self.jobs)
        return gone

    def first(self, may: Callable[[W], bool] = lambda job: True) -> W | None:
        """The oldest startable job of the owner whose turn it is."""
        found: dict[str, W] = {}
        for job in self.jobs:
            if job.owner not in found and may(job):
                found[job.owner] = job
        return found[min(found, key=self._clock)] if found else None

    def like(self, key: tuple[str, ...]) -> Iterator[W]:
        """The jobs of a key, each time the oldest of the owner whose turn it is; jobs without waiting records
        are skipped. Charge each job before asking for the next."""
        own: dict[str, deque[W]] = {}
        for job in self.jobs:
            if job.key == key:
                own.setdefault(job.owner, deque()).append(job)
        while own:
            owner = min(own, key=self._clock)
            jobs = own[owner]
            while jobs and not jobs[0].size:
                jobs.popleft()
            if jobs:
                self._now = max(self._now, self._clock(owner))
                yield jobs[0]
            else:
                del own[owner]

    def charge(self, owner: str, amount: float) -> None:
        """Advance an owner's clock by what it was given."""
        clock = self._clock(owner)
        self._clocks[owner] = clock + amount
        if len(self._clocks) > MAX_KEPT:
            self._clocks = {name: clock for name, clock in self._clocks.items() if clock > self._now}

    def over(self, owner: str, size: int, room: int) -> tuple[int, list[W]] | None:
        """What must give way so that `size` more records of an owner fit into the room: (its share, jobs).

        The share is the room divided by the number of owners who wait. If others have more than that, their
        newest jobs give way to an owner within its share. None if the owner would exceed its share.
        """
        held: Counter[str] = Counter()
        for job in self.jobs:
            held[job.owner] += job.size
        share = room // len(held.keys() | {owner})
        victims: list[W] = []
        free = room - self.size
        if held[owner] + size > share and free < size:
            return None
        while free < size:
            greedy, most = held.most_common(1)[0]
            if greedy == owner or most <= share:
                return None
            own = [job for job in self.jobs if job.owner == greedy and job not in victims]
            victim = next((job for job in reversed(own) if not job.begun), own[-1])
            victims.append(victim)
            held[greedy] -= victim.size
            free += victim.size
        return share, victims

    def owners(self) -> set[str]:
        return {job.owner for job in self.jobs}

    def _clock(self, owner: str) -> float:
        return self._clocks.get(owner, self._now)
