"""Whose pages may ask: the Host header, and where a browser says that a request comes from.

A page of another site, open in the same browser, can send requests to a local server. It cannot read the
answers, unless its name is made to point here (DNS rebinding); but what it sends would be done.
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
    """The name of a `Host` header, without its port."""
    return re.sub(r":\d*$", "", host).strip("[]").lower()


def headers_of(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def foreign_host(headers: Mapping[str, str], public: bool, hosts: Collection[str]) -> bool:
    """Whether a request names a host that this server is not.

    Args:
        public: other machines can connect, by names that the server cannot know unless it is told.
        hosts: the names that it is told, besides this machine's own.
    """
    host = host_name(headers.get("host", ""))
    return bool(host) and not (public and not hosts) and host not in (*LOOPBACK, *hosts)


def foreign_page(
    method: str, headers: Mapping[str, str], hosts: Collection[str], origins: Collection[str]
) -> bool:
    """Whether a request that may change something was sent by a page of another site.

    Browsers say where a request comes from, and pages cannot change that; other programs say nothing.

    Args:
        hosts: names by which this server is reached besides the one in `Host`.
        origins: other origins that may ask.
    """
    origin = headers.get("origin", "")
    if method not in _WRITES or origin in origins:
        return False
    if said := headers.get("sec-fetch-site"):
        return said not in ("same-origin", "none")
    return bool(origin) and urlsplit(origin).hostname not in (host_name(headers.get("host", "")), *hosts)


class OwnPagesOnly:
    """An ASGI middleware: 403 to foreign hosts and foreign pages, and no frame goes elsewhere."""

    POLICY = b"frame-src 'none'; frame-ancestors 'self'; object-src 'none'"
    """A report that is shown in a frame has its page in an attribute (`srcdoc`); that is no source."""

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
