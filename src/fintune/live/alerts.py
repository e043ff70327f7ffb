"""Sends alerts to a webhook: answers beyond a threshold, signed, and retried until they arrive.

A receiver checks `X-Fintune-Signature`: "sha256=" and the hex HMAC-SHA256, with the shared secret, of the
timestamp header, a full stop, and the body as received; and that the timestamp is recent. The same alert may
come twice (if the first response was lost), with the same `X-Fintune-Id`.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import requests

from fintune.errors import ConfigError
from fintune.live.config import RuleConfig
from fintune.live.feeds import retry_after
from fintune.live.items import utc
from fintune.live.store import Row, Store
from fintune.live.web import Limits, RefusedAddressError, WebError, ask

SECRET = "FINTUNE_WEBHOOK_SECRET"
ATTEMPTS = 3
"""Attempts per round; a failed alert is tried again in the next rounds, for a day."""
_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE = 5.0
_LIMITS = Limits(seconds=10, pause_seconds=5, max_bytes=64_000)
KEPT_DAYS = 1.0


def fired(rules: Sequence[RuleConfig], row: Row) -> str:
    """The first rule that an answer meets, in words; "" if none."""
    for rule in rules:
        if row["task"] != rule.task or row.get("error"):
            continue
        if rule.move is not None:
            if row["value"] is not None and abs(row["value"]) >= rule.move:
                return f"|{rule.task}| >= {rule.move:g}"
        elif row["prediction"] == rule.label and (row["confidence"] or 0) >= rule.probability:
            return f"{rule.task} = {rule.label}, p >= {rule.probability:g}"
    return ""


def signature(secret: bytes, timestamp: str, body: bytes) -> str:
    """What `X-Fintune-Signature` holds."""
    return "sha256=" + hmac.new(secret, timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


class Webhook:
    """One receiver."""

    def __init__(
        self, url: str, web: requests.Session, *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """Raises ConfigError: there is no secret for the signature."""
        secret = os.environ.get(SECRET, "")
        if len(secret) < 16:
            raise ConfigError(
                f"Alerts are signed: set {SECRET} to a secret of at least 16 characters that the receiver "
                "also knows."
            )
        self.url, self._secret = url, secret.encode()
        self._web, self._sleep = web, sleep

    def send(self, alert: str, payload: dict[str, Any]) -> str:
        """Deliver an alert; return "", or why it was refused for good.

        Raises:
            WebError: a later attempt may succeed.
        """
        body = json.dumps(payload, ensure_ascii=False, allow_nan=False).encode()
        why = ""
        for attempt in range(ATTEMPTS):
            pause = _PAUSE_SECONDS * 2**attempt
            timestamp = str(int(time.time()))
            headers = {
                "Content-Type": "application/json",
                "X-Fintune-Id": alert,
                "X-Fintune-Timestamp": timestamp,
                "X-Fintune-Signature": signature(self._secret, timestamp, body),
            }
            try:
                answer = ask(self._web, "POST", self.url, headers=headers, body=body, limits=_LIMITS)
            except RefusedAddressError as error:
                return str(error)
            except WebError as error:
                why = str(error)
            else:
                if 200 <= answer.status < 300:
                    return ""
                if answer.status not in (408, 425, 429) and answer.status < 500:
                    return f"HTTP {answer.status}"
                why = f"HTTP {answer.status}"
                pause = max(pause, retry_after(answer.headers))
            if attempt + 1 == ATTEMPTS or pause > _LONGEST_PAUSE:
                break
            self._sleep(pause)
        raise WebError(why)


def payload(row: Row) -> dict[str, Any]:
    """The alert's content for the receiver."""
    kept = "id seen published source symbols title link task prediction value confidence low high".split()
    return {"rule": row["alert"]} | {key: row[key] for key in kept if row.get(key) is not None}


def alert_id(row: Row) -> str:
    """An id made from item and task."""
    return f"{row['id']}.{row['task']}"


def deliver(store: Store, hook: Webhook, pending: list[Row], now: datetime, most: int) -> tuple[int, str]:
    """Send at most `most` pending alerts, oldest first; settled ones are removed from `pending`.

    If one fails, the others wait too, because the receiver is down.

    Returns:
        How many arrived, and why the last one failed, or "".
    """
    arrived = 0
    for row in pending[:most]:
        line = {"alert": alert_id(row), "time": utc(now)}
        try:
            refused = hook.send(line["alert"], payload(row))
        except WebError as error:
            return arrived, str(error)
        store.log_alert(line | ({"refused": refused} if refused else {"delivered": True}))
        pending.remove(row)
        if refused:
            return arrived, refused
        arrived += 1
    return arrived, ""
