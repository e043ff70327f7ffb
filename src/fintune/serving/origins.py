"""Decides whose pages may send requests, by the Host header and by the browser's statement of their origin.

A page of another site, open in the same browser, can send requests to a local server. It cannot read the
answers (unless DNS rebinding makes its name point here), but its requests would be executed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import urlsplit

from fintune.serving.settings import LOOPBACK

Scope = dict[str, Any]
_WRITES = ("POST", "PUT", "PATCH", "DELETE")


def host_name(host: str) -> str:
    """The name in a `Host` header, without the port."""
    return re.sub(r":\d*$", "", host).strip("[]").lower()


def headers_of(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def foreign_host(headers: Mapping[str, str], public: bool, hosts: Collection[str]) -> bool:
    """Whether a request names a host other than this server.

    Args:
        public: other machines can connect, by names that the server cannot know unless configured.
        hosts: the configured names, besides this machine's own.
    """
    host = host_name(headers.get("host", ""))
    return bool(host) and not (public and not hosts) and host not in (*LOOPBACK, *hosts)


def foreign_page(
    method: str, headers: Mapping[str, str], hosts: Collection[str], origins: Collection[str]
) -> bool:
    """Whether a page of another site sent a request that may change something.

    Browsers state a request's origin, and pages cannot change that; other programs send none.

    Args:
        hosts: names of this server besides the one in `Host`.
        origins: other allowed origins.
    """
    origin = headers.get("origin", "")
    if method not in _WRITES or origin in origins:
        return False
    if said := headers.get("sec-fetch-site"):
        return said not in ("same-origin", "none")
    return bool(origin) and urlsplit(origin).hostname not in (host_name(headers.get("host", "")), *hosts)


class OwnPagesOnly:
    """An ASGI middleware: refuses foreign hosts and pages with 403, and keeps frames from going elsewhere."""

    POLICY = b"frame-src 'none'; frame-ancestors 'self'; object-src 'none'"
    """A report in a frame has its page in an attribute (`srcdoc`), so it needs no source."""

    def __init__(self, app: Any, public: bool, hosts: Collection[str] = ()) -> None:
        self.app, self.public, self.hosts = app, public, tuple(hosts)

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers, method = headers_of(scope), scope.get("method", "POST")
        if foreign_host(headers, self.public, self.hosts) or foreign_page(method, headers, self.hosts, ()):
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            text = b"This request is of another site, or names another machine (see --allow_host)."
            await send(
                {"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]}
            )
            await send({"type": "http.response.body", "body": text})
            return

        async def answer(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                own = [(b"content-security-policy", self.POLICY), (b"x-content-type-options", b"nosniff")]
                message = {**message, "headers": [*message.get("headers", []), *own]}
            await send(message)

        await self.app(scope, receive, answer)
