"""Alerts arrive signed and once, also after an outage of the receiver or of the run."""

import hashlib
import hmac
import json
import time

import pytest
from feed_server import Reply

from fintune.errors import ConfigError
from fintune.live.alerts import SECRET, Webhook, fired
from fintune.live.config import AlertConfig, RuleConfig
from fintune.live.web import WebError, session

KEY = "a secret of our own"


@pytest.fixture
def hook(server, web, monkeypatch):
    monkeypatch.setenv(SECRET, KEY)
    return Webhook(server.url + "/hook", web, sleep=lambda seconds: None)


def replies(*answers):
    waiting = list(answers)
    return lambda *_: waiting.pop(0) if len(waiting) > 1 else waiting[0]


def test_an_alert_is_signed_over_its_time_and_body(server, hook):
    server.routes["/hook"] = Reply(status=204)
    assert hook.send("a1.headline", {"title": "Acme fällt", "confidence": 0.97}) == ""
    method, _, headers, body = server.seen[0]
    timestamp = headers["x-fintune-timestamp"]
    expected = hmac.new(KEY.encode(), f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()
    assert (method, headers["x-fintune-signature"]) == ("POST", f"sha256={expected}")
    assert abs(int(timestamp) - time.time()) < 5
    assert headers["x-fintune-id"] == "a1.headline"
    assert json.loads(body) == {"title": "Acme fällt", "confidence": 0.97}


def test_an_alert_is_sent_again_until_the_receiver_is_back(server, hook):
    server.routes["/hook"] = replies(Reply(status=503), Reply(status=429), Reply(status=200))
    assert hook.send("a", {}) == ""
    assert len(server.seen) == 3


def test_a_receiver_that_stays_down_leaves_the_alert_for_later(server, hook):
    server.routes["/hook"] = Reply(status=500)
    with pytest.raises(WebError, match="HTTP 500"):
        hook.send("a", {})
    assert len(server.seen) == 3


def test_a_long_retry_after_is_not_waited_for_here(server, hook):
    server.routes["/hook"] = Reply(status=429, headers={"Retry-After": "3600"})
    with pytest.raises(WebError, match="HTTP 429"):
        hook.send("a", {})
    assert len(server.seen) == 1


@pytest.mark.parametrize("reply", [Reply(status=403), Reply(status=307, headers={"Location": "/other"})])
def test_a_refusal_is_final_and_a_redirect_is_one(server, hook, reply):
    server.routes["/hook"] = reply
    assert hook.send("a", {}).startswith("HTTP ")
    assert [path for _, path, _, _ in server.seen] == ["/hook"]


def test_a_webhook_in_a_private_network_needs_leave(server, monkeypatch):
    monkeypatch.setenv(SECRET, KEY)
    assert "private network" in Webhook(server.url + "/hook", session()).send("a", {})
    assert server.seen == []


def test_without_a_secret_there_is_no_webhook(web, monkeypatch):
    monkeypatch.setenv(SECRET, "short")
    with pytest.raises(ConfigError, match=SECRET):
        Webhook("https://hooks.example/x", web)


def row(task="headline", prediction=None, confidence=None, value=None, error=None):
    return dict(task=task, prediction=prediction, confidence=confidence, value=value, error=error)


def test_rules_fire_from_their_threshold_on():
    rules = [
        RuleConfig(task="headline", label="bearish", probability=0.8),
        RuleConfig(task="regression", move=2),
    ]
    assert fired(rules, row(prediction="bearish", confidence=0.8)) == "headline = bearish, p >= 0.8"
    assert fired(rules, row(prediction="bearish", confidence=0.79)) == ""
    assert fired(rules, row(prediction="bullish", confidence=0.99)) == ""
    assert fired(rules, row(task="regression", value=-2.0)) == "|regression| >= 2"
    assert fired(rules, row(task="regression", value=1.99)) == ""
    assert fired(AlertConfig().rules, row(error="cannot be answered")) == ""
