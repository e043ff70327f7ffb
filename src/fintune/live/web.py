"""Requests to addresses that others chose: no private network, no endless answer, no endless wait.

A feed may redirect to any address, and its host's name may point anywhere at any moment. So the address is
checked where the connection is made, on each hop, and the connection goes to the very address that was
checked (server-side request forgery, CWE-918; DNS rebinding). Knows nothing of feeds.
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
"""All of IPv6 that is given out for the internet."""
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_SIX_TO_FOUR = ipaddress.IPv6Network("2002::/16")
_SPECIAL: list[Network] = [
    ipaddress.ip_network(text)
    for text in ("192.0.0.0/24", "192.88.99.0/24", "240.0.0.0/4", "2001::/23", "2001:db8::/32", "3fff::/20")
]
"""Within what is given out, and not for hosts: protocols, relays, Teredo, documentation."""
_ISATAP = (0x00005EFE, 0x02005EFE)
"""How the last 64 bits begin where an IPv4 address follows (RFC 5214)."""
_CHUNK_BYTES = 2**14
USER_AGENT = f"fintune/{__version__}"
_asking = threading.local()
"""Of a thread that asks: its `deadline`, and the `sockets` it has opened, so that it can be cut off."""


class RefusedAddressError(FintuneError):
    """An address of a private network, or one that is no web address."""


class WebError(Exception):
    """Why there is no answer, in half a sentence; another attempt may have one."""


@dataclass(frozen=True)
class Limits:
    """How much of a server's answer and time is taken."""

    seconds: float = 20.0
    """For all of it: names, redirects, headers and content."""
    pause_seconds: float = 10.0
    """Between two pieces."""
    max_bytes: int = 1_000_000
    """Of the content, after decompression."""
    redirects: int = 5


@dataclass(frozen=True)
class Answer:
    """What a server said; the header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    url: str
    """Where it came from, after redirects."""


def is_public(address: _Address) -> bool:
    """Whether an address is out in the internet. What carries an IPv4 address is judged by that, too.

    What is not known to be a host's is refused: of IPv6 all but global unicast and IPv4 in one of its forms.
    """
    if any(address.version == network.version and address in network for network in _SPECIAL):
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
    """The addresses of a host, all of them public or within `allowed`.

    Raises:
        RefusedAddressError: one of them is not.
        OSError: the name is unknown.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    for text in addresses:
        address = ipaddress.ip_address(text.partition("%")[0])
        if not is_public(address) and not any(
            address.version == network.version and address in network for network in allowed
        ):
            raise RefusedAddressError(
                f"{host} is {text}, an address of a private network: if it is one of yours, allow that "
                "network (--allow_network, or allow_networks in the YAML)."
            )
    return addresses


def check_url(url: str) -> None:
    """Raise a RefusedAddressError for what is no web address; nothing is looked up."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise RefusedAddressError(f"{shown(url)} is no web address: write it as https://host/path.")


def session(allowed: Sequence[Network] = (), proxy: str | None = None) -> requests.Session:
    """A session whose every connection is checked by `resolve`.

    Proxies of the environment are not used, as they would make the connections in our place.

    Args:
        proxy: one that does: which networks it reaches is then its own matter, and nothing is checked here.
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
        """None: `_follow` does it. This one reads what a redirect says besides, all of it, in any case."""
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
    """One request, with redirects followed unless it has a body.

    Raises:
        RefusedAddressError: this address, or one it leads to, may not be asked.
        WebError: there is no answer, or it is too large or too slow.
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
        raise WebError(f"no whole answer within {bounds.seconds:g} seconds") from None
    except (requests.exceptions.InvalidSchema, requests.exceptions.InvalidURL):
        raise RefusedAddressError(f"{shown(url)} redirects to what is no web address.") from None
    except (requests.RequestException, HTTPError, OSError) as error:
        raise WebError(brief(error)) from None
    finally:
        for connection in opened:  # whatever the thread still waits for, it waits no longer
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
    """The content piece by piece, as each comes, so that neither size nor time gets out of hand."""
    declared = response.headers.get("Content-Length", "")
    if declared.isdigit() and int(declared) > limits.max_bytes:
        raise WebError(f"the answer has {int(declared):,} bytes, over the limit of {limits.max_bytes:,}")
    content = bytearray()
    while chunk := response.raw.read1(_CHUNK_BYTES, decode_content=True):
        content += chunk
        if len(content) > limits.max_bytes:
            raise WebError(f"the answer has more than {limits.max_bytes:,} bytes")
        if time.monotonic() > deadline:
            raise TimeUpError
    if declared.isdigit() and "content-encoding" not in response.headers and len(content) < int(declared):
        raise WebError("the answer broke off")
    return bytes(content)


class _CheckedAdapter(HTTPAdapter):
    def __init__(self, allowed: Sequence[Network]) -> None:
        self._allowed = tuple(allowed)
        super().__init__(max_retries=0)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        allowed = self._allowed

        class Checked:
            """Connects to an address that was checked, and to no other."""

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
                        _asking.sockets.append(made.dup())  # TLS moves the first into another object
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
