"""Sends requests to addresses chosen by others: no private networks, bounded size, bounded time.

A feed may redirect to any address, and its host name may change its address at any moment. So the address is
checked where the connection is made, at each hop, and the connection uses exactly the checked address
(server-side request forgery, CWE-918; DNS rebinding). Knows nothing of feeds.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError, NewConnectionError
from urllib3.util.connection import create_connection

from fintune import __version__
from fintune.data.raw.fetch import TimeUpError, brief, within
from fintune.data.storage import shown
from fintune.errors import FintuneError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_UNICAST = ipaddress.IPv6Network("2000::/3")
"""All IPv6 addresses allocated for the internet."""
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_SIX_TO_FOUR = ipaddress.IPv6Network("2002::/16")
_SPECIAL: list[Network] = [
    ipaddress.ip_network(text)
    for text in ("192.0.0.0/24", "192.88.99.0/24", "240.0.0.0/4", "2001::/23", "2001:db8::/32", "3fff::/20")
]
"""Allocated, but not to hosts: protocols, relays, Teredo, documentation."""
_ISATAP = (0x00005EFE, 0x02005EFE)
"""The beginning of the last 64 bits if an IPv4 address follows (RFC 5214)."""
_CHUNK_BYTES = 2**14
USER_AGENT = f"fintune/{__version__}"
_asking = threading.local()
"""A requesting thread's `deadline`, and its open `sockets`, so that they can be closed."""


class RefusedAddressError(FintuneError):
    """An address in a private network, or not a web address."""


class WebError(Exception):
    """Why there is no response, as half a sentence; another attempt may succeed."""


@dataclass(frozen=True)
class Limits:
    """Limits on the size and time of a response."""

    seconds: float = 20.0
    """Seconds for everything: name lookup, redirects, headers and content."""
    pause_seconds: float = 10.0
    """Between two pieces."""
    max_bytes: int = 1_000_000
    """Bytes of the content after decompression."""
    redirects: int = 5


@dataclass(frozen=True)
class Answer:
    """A server's response; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    url: str
    """The final address, after redirects."""


def is_public(address: _Address) -> bool:
    """Whether an address is on the public internet. An embedded IPv4 address must be public too.

    Anything not known to be a host is refused: all IPv6 except global unicast and forms of IPv4.
    """
    if any(address in network for network in _SPECIAL):
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return address.is_global and not address.is_multicast
    bits = int(address)
    if address.ipv4_mapped or address in _NAT64:
        return is_public(ipaddress.IPv4Address(bits & 0xFFFFFFFF))
    if address not in _UNICAST or not address.is_global:
        return False
    inner = [bits >> 80 & 0xFFFFFFFF] if address in _SIX_TO_FOUR else []
    if bits >> 32 & 0xFFFFFFFF in _ISATAP:
        inner.append(bits & 0xFFFFFFFF)
    return all(is_public(ipaddress.IPv4Address(each)) for each in inner)


def resolve(host: str, port: int, allowed: Sequence[Network] = ()) -> list[str]:
    """A host's addresses, all of them public or within `allowed`.

    Raises:
        RefusedAddressError: one of the addresses is neither.
        OSError: the name is unknown.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    for text in addresses:
        address = ipaddress.ip_address(text.partition("%")[0])
        if not is_public(address) and not any(address in network for network in allowed):
            raise RefusedAddressError(
                f"{host} is {text}, an address in a private network: if it is yours, allow that "
                "network (--allow_network, or allow_networks in the YAML)."
            )
    return addresses


def check_url(url: str) -> None:
    """Raise a RefusedAddressError if it is not a web address; looks nothing up."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise RefusedAddressError(f"{shown(url)} is not a web address: write it as https://host/path.")


def session(allowed: Sequence[Network] = (), proxy: str | None = None) -> requests.Session:
    """A session that checks every connection with `resolve`.

    Proxies from the environment are ignored, because they would make the connections instead of us.

    Args:
        proxy: makes the connections; it decides which networks it reaches, and nothing is checked here.
    """
    made = _Session()
    made.trust_env = False
    made.headers["User-Agent"] = USER_AGENT
    if proxy:
        made.proxies = {"http": proxy, "https": proxy}
    else:
        for scheme in ("http://", "https://"):
            made.mount(scheme, _CheckedAdapter(allowed))
    return made


class _Session(requests.Session):
    def resolve_redirects(self, *_: Any, **__: Any) -> Iterator[Any]:  # type: ignore[override]
        """None, because `_follow` does it. The inherited method would read a redirect's whole content."""
        return iter(())


def ask(
    web: requests.Session,
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    limits: Limits | None = None,
) -> Answer:
    """Send one request; redirects are followed unless it has a body.

    Raises:
        RefusedAddressError: the address, or one it redirects to, is not allowed.
        WebError: there is no response, or it is too large or too slow.
    """
    check_url(url)
    bounds = limits or Limits()
    deadline = time.monotonic() + bounds.seconds
    opened: list[socket.socket] = []

    def work() -> Answer:
        _asking.sockets, _asking.deadline = opened, deadline
        response = _follow(web, method, url, dict(headers or {}), body, bounds)
        with response:
            content = _content(response, bounds, deadline)
            known = {name.lower(): value for name, value in response.headers.items()}
            return Answer(response.status_code, known, content, response.url)

    try:
        return within(bounds.seconds, work)
    except TimeUpError:
        raise WebError(f"no complete response within {bounds.seconds:g} seconds") from None
    except (requests.exceptions.InvalidSchema, requests.exceptions.InvalidURL):
        raise RefusedAddressError(f"{shown(url)} redirects to something that is not a web address.") from None
    except (requests.RequestException, HTTPError, OSError) as error:
        raise WebError(brief(error)) from None
    finally:
        for connection in opened:  # end whatever the thread still waits for
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()


def _follow(
    web: requests.Session, method: str, url: str, headers: dict[str, str], body: bytes | None, bounds: Limits
) -> requests.Response:
    """The answer at the end of the redirects, whose own contents are never read."""
    for _ in range(bounds.redirects + 1):
        response = web.request(
            method,
            url,
            headers={**headers, "Connection": "close"},
            data=body,
            stream=True,
            timeout=bounds.pause_seconds,
            allow_redirects=False,
        )
        target = web.get_redirect_target(response)
        if target is None or body is not None:
            return response
        response.close()
        url = urljoin(url, target)
        try:
            check_url(url)
        except RefusedAddressError:
            raise requests.exceptions.InvalidSchema from None
    raise WebError(f"more than {bounds.redirects} redirects")


def _content(response: Any, limits: Limits, deadline: float) -> bytes:
    """The content, read piece by piece to enforce the limits of size and time."""
    declared = response.headers.get("Content-Length", "")
    if declared.isdigit() and int(declared) > limits.max_bytes:
        raise WebError(f"the response has {int(declared):,} bytes, over the limit of {limits.max_bytes:,}")
    content = bytearray()
    while chunk := response.raw.read1(_CHUNK_BYTES, decode_content=True):
        content += chunk
        if len(content) > limits.max_bytes:
            raise WebError(f"the response has more than {limits.max_bytes:,} bytes")
        if time.monotonic() > deadline:
            raise TimeUpError
    if declared.isdigit() and "content-encoding" not in response.headers and len(content) < int(declared):
        raise WebError("the response broke off")
    return bytes(content)


class _CheckedAdapter(HTTPAdapter):
    def __init__(self, allowed: Sequence[Network]) -> None:
        self._allowed = tuple(allowed)
        super().__init__(max_retries=0)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        allowed = self._allowed

        class Checked:
            """Connects only to an address that was checked."""

            def _new_conn(self: Any) -> socket.socket:
                error: OSError | None = None
                try:
                    for address in resolve(self._dns_host, self.port, allowed):
                        try:
                            made = create_connection(
                                (address, self.port), self.timeout, socket_options=self.socket_options
                            )
                        except OSError as failed:
                            error = failed
                            continue
                        _asking.sockets.append(made.dup())  # TLS moves the original into another object
                        if time.monotonic() > _asking.deadline:
                            made.close()
                            raise TimeUpError
                        return made
                except OSError as unknown:
                    error = unknown
                raise NewConnectionError(self, str(error)) from error

        class Plain(Checked, HTTPConnection):
            pass

        class Secure(Checked, HTTPSConnection):
            pass

        class PlainPool(HTTPConnectionPool):
            ConnectionCls = Plain

        class SecurePool(HTTPSConnectionPool):
            ConnectionCls = Secure

        self.poolmanager.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}
