"""Checks every request before its route: id, host, key, size and JSON; and writes the log.

Plain ASGI, so that streams and disconnections pass through unchanged.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
import time
from collections.abc import Callable
from typing import Any

import pydantic_core

from fintune.monitoring.metrics import METRICS
from fintune.serving.errors import ApiError
from fintune.serving.keys import Key, KeyRing, KeysUnreadable
from fintune.serving.origins import Scope, foreign_host, foreign_page, headers_of
from fintune.serving.settings import Settings
from fintune.serving.shares import CALLER, Caller, Limiter, address

log = logging.getLogger("fintune.access")
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
OPEN = ("/healthz", "/readyz")
"""Paths for machines that hold no key."""
_PATIENCE = 16
"""Drain an oversized body up to this many times the limit, so that the client can read the 413."""
DOCUMENT = "/document"
"""Path endings of requests that hold a document."""
PUBLIC_DOCS = ("/docs", "/openapi.json")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")


class Gate:
    """An ASGI middleware."""

    def __init__(self, app: Any, settings: Settings, keys: KeyRing | None) -> None:
        """Args: keys: None requires no key."""
        self.app = app
        self.settings = settings
        self.keys = keys
        self.limiter = Limiter()

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = headers_of(scope)
        asked = headers.get("x-request-id", "")
        own = asked if _ID.fullmatch(asked) else secrets.token_hex(8)
        facts: dict[str, Any] = {}
        scope.setdefault("state", {}).update(request_id=own, facts=facts)
        status = 0

        async def answer(message: dict[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = [(b"x-request-id", own.encode()), (b"x-content-type-options", b"nosniff")]
                message = {**message, "headers": [*message.get("headers", []), *extra]}
            await send(message)

        asks = scope["method"] in ("POST", "PUT", "PATCH")
        METRICS.in_flight.inc(asks)
        try:
            try:
                key = self._admit(scope, headers)
                scope["state"]["key"] = key
                facts.update({"key": key.id} if key else {})
                inner = await self._body(scope, headers, receive) if asks else receive
                await self.app(scope, inner, answer)
            except ApiError as error:
                await respond(error, answer)
            except ConnectionError:  # the client disconnected while it was sending
                status = status or 499
            except Exception:
                log.exception("request %s failed", own)
                if status:
                    raise
                message = f"The server failed: see its log for request {own}."
                await respond(ApiError(500, message, "server_error", "internal_error"), answer)
        finally:
            METRICS.in_flight.dec(asks)
            taken = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "other")
            METRICS.observe_http(route, status or 499, taken)
            fields = {
                "request_id": own,
                "method": scope["method"][:16],
                "route": route,
                "status": status or 499,
                "ms": round(taken * 1000, 1),
                "client": (scope.get("client") or ["?"])[0],
                **facts,
            }
            log.info("request", extra={"fields": fields})

    def _admit(self, scope: Scope, headers: dict[str, str]) -> Key | None:
        """The caller's key, if the request is allowed.

        Raises:
            ApiError: 400 wrong host name, 401 no valid key, 403 a page of another site or a key for something
                else, 429 too many requests, 503 the keys cannot be read.
        """
        settings = self.settings
        if foreign_host(headers, settings.public, settings.hosts):
            message = (
                "The Host header names another machine than this one: name a proxy's host with --allow_host."
            )
            raise ApiError(400, message, code="bad_host")
        if foreign_page(scope["method"], headers, settings.hosts, settings.cors):
            message = "A page of another site sent this request: allow its origin with --cors."
            raise ApiError(403, message, "permission_error", "foreign_page")
        if scope["path"] in (*OPEN, "/"):
            return None
        if scope["path"].startswith(PUBLIC_DOCS) or scope["method"] == "OPTIONS":
            return None
        key = None
        if self.keys is not None:
            try:
                key = self.keys.find(headers.get("authorization", ""))
            except KeysUnreadable:
                raise ApiError(
                    503, "The API keys cannot be read at the moment.", "server_error", "keys_unreadable"
                ) from None
            if key is None:
                raise ApiError(
                    401,
                    "This request has no valid API key: send  Authorization: Bearer ft-…",
                    "authentication_error",
                    "invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        if key and key.metrics and scope["path"] != "/metrics":
            raise ApiError(403, "This key may only read /metrics.", "permission_error", "metrics_only")
        caller = self._caller(scope, key)
        self.limiter.check(caller, "requests", 1)
        CALLER.set(caller)
        return key

    def _caller(self, scope: Scope, key: Key | None) -> Caller:
        """Whose share the request counts against, with its limits: the key's own, else the server's."""
        name = key.id if key else address((scope.get("client") or ["?"])[0])
        limits = []
        for limit in ("rate", "rate_records", "rate_tokens"):
            own = getattr(key, limit, None)
            limits.append(getattr(self.settings, limit) if own is None else own)
        return Caller(name, *limits)

    async def _body(self, scope: Scope, headers: dict[str, str], receive: Any) -> Callable[[], Any]:
        """A `receive` that returns the whole body, after checking that it arrives in time, fits, and is JSON.

        Raises:
            ApiError: 400 not JSON in UTF-8, 408 too slow, 413 too large, 415 not declared as JSON.
        """
        document = scope["path"].endswith(DOCUMENT)
        limit = self.settings.max_document if document else self.settings.max_body
        too_large = ApiError(413, f"The request exceeds {limit:,} bytes.", code="request_too_large")
        declared = headers.get("content-length", "0")
        if declared.isdigit() and int(declared[:20]) > _PATIENCE * limit:
            raise too_large
        content_type = headers.get("content-type", "").split(";")[0].strip().lower()

        async def read() -> bytes:
            body, sent = bytearray(), 0
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ConnectionError
                part = message.get("body", b"")
                sent += len(part)
                body += part if sent <= limit else b""
                last = not message.get("more_body", False)
                # A client that is still sending reads no response: read and discard some of the rest.
                if sent > limit and (last or sent > _PATIENCE * limit):
                    raise too_large
                if last:
                    return bytes(body)

        try:
            body = await asyncio.wait_for(read(), self.settings.slow)
        except TimeoutError:
            raise ApiError(
                408, f"The request did not arrive within {self.settings.slow:g} s.", code="timeout"
            ) from None
        if body:
            if content_type != "application/json":  # which a page of another site cannot send without asking
                raise ApiError(415, "Send JSON, with  Content-Type: application/json.", code="not_json")
            try:
                # This parser refuses half a character, which should cost only its own text, not the request.
                pydantic_core.from_json(_SURROGATE.sub(rb"\\ufffd", body), allow_inf_nan=False)
            except ValueError as error:
                raise ApiError(
                    400, f"The request is not valid JSON in UTF-8 ({error}).", code="not_json"
                ) from None
        given = False

        async def replay() -> dict[str, Any]:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        return replay


async def respond(error: ApiError, send: Any) -> None:
    """Send an error as a complete response."""
    body = json.dumps(error.body()).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    if error.status in (408, 413):
        raw.append((b"connection", b"close"))  # the rest of the body is not read
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
