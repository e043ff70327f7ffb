"""Overload, cancellation, death and a graceful end, on servers of their own."""

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

LONG = {"model": "first", "prompt": "Sales", "max_tokens": 512, "stop": None}


@pytest.fixture
def own(adapters, no_keys, start):
    """A function: flags → a server; all are ended after the test."""
    begun = []

    def run(*flags, keys=no_keys, port=0):
        begun.append(start("--model_path", adapters / "first", *flags, keys=keys, port=port))
        return begun[-1]

    yield run
    for server in begun:
        if server.process.poll() is None:
            server.process.kill()
        server.process.wait(10)


def metric(server, name):
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return next(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name} "))


def test_at_overload_the_excess_is_refused_at_once_and_the_rest_answered(own):
    server = own("--max_queue", "4", "--max_batch", "2")
    inputs = [{"text": "Sales rose. " * 10}] * 4

    def ask(_):
        begun = time.perf_counter()
        response = httpx.post(f"{server.url}/v1/tasks/headline", json={"inputs": inputs}, timeout=60)
        return response, time.perf_counter() - begun

    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(ask, range(24)))
    refused = [(r, taken) for r, taken in answers if r.status_code == 503]
    assert refused and {r.status_code for r, _ in answers} == {200, 503}
    for response, _ in refused:
        assert int(response.headers["retry-after"]) >= 1
        assert response.json()["error"]["code"] == "overloaded"
    assert ask(0)[0].status_code == 200  # and afterwards all is as before


def test_a_client_that_goes_away_stops_the_writing(own):
    server = own()
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    stream = client.completions.create(**{**LONG, "stream": True, "temperature": 1.0, "seed": 3})
    next(iter(stream))
    stream.close()
    deadline = time.monotonic() + 10
    name = 'fintune_tokens_total{kind="completion",task="text"}'
    while time.monotonic() < deadline and f"\n{name}" not in httpx.get(f"{server.url}/metrics").text:
        time.sleep(0.05)
    assert 0 < metric(server, name) < 500


def test_a_request_that_takes_too_long_gets_504_and_holds_nothing_up(own):
    server = own("--timeout", "0.3")
    response = httpx.post(f"{server.url}/v1/completions", json={**LONG, "temperature": 1.0}, timeout=30)
    assert response.status_code == 504 and response.json()["error"]["code"] == "timeout"
    assert httpx.get(f"{server.url}/readyz").status_code == 200


def test_killed_mid_request_the_client_gets_a_clean_error_and_a_restart_serves(own):
    server = own()
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=20)
    stream = client.completions.create(**{**LONG, "stream": True, "temperature": 1.0})
    next(iter(stream))
    server.process.kill()
    with pytest.raises((openai.APIConnectionError, httpx.RemoteProtocolError, httpx.ReadError)):
        for _ in stream:
            pass
    with pytest.raises(openai.APIConnectionError):
        client.models.list()
    server.process.wait(10)
    again = own(port=server.port)
    assert again.port == server.port
    assert httpx.post(f"{again.url}/v1/tasks/headline", json={"text": "Sales rose."}).status_code == 200


def test_a_server_told_to_stop_finishes_what_runs(own):
    server = own()
    found = []

    def ask():
        body = {**LONG, "max_tokens": 200, "temperature": 1.0}
        found.append(httpx.post(f"{server.url}/v1/completions", json=body, timeout=60))

    asking = threading.Thread(target=ask)
    asking.start()
    while asking.is_alive() and metric(server, "fintune_requests_in_flight") < 1:
        time.sleep(0.01)
    assert server.stop() in (0, -signal.SIGTERM)
    asking.join(10)
    assert found[0].status_code == 200 and found[0].json()["choices"][0]["finish_reason"]


def test_keys_are_asked_for_limited_and_revoked_while_the_server_runs(own, tmp_path):
    from fintune.serving import keys

    path = tmp_path / "keys.json"
    plain, slow = keys.create(path, "desk"), keys.create(path, "slow", rate=2)
    admin = keys.create(path, "boss", admin=True)
    page = {"Origin": "https://a.example"}
    server = own("--cors", page["Origin"], keys=path)

    def ask(key, method="GET", where="/v1/models"):
        headers = {**page, **({"Authorization": f"Bearer {key}"} if key else {})}
        return httpx.request(method, f"{server.url}{where}", headers=headers)

    assert ask(plain).status_code == 200
    for wrong in (None, "ft-000000000000-" + "a" * 43, plain[:-1] + ("a" if plain[-1] != "a" else "b"), "é"):
        response = (
            ask(wrong.encode().decode("latin-1") if wrong else wrong) if wrong != "é" else ask("x" * 9000)
        )
        assert response.status_code == 401 and response.json()["error"]["code"] == "invalid_api_key"
    assert [ask(slow).status_code for _ in range(3)] == [200, 200, 429]
    assert int(ask(slow).headers["retry-after"]) > 0
    for refusal in (ask(None), ask(slow)):  # a page of an allowed origin can read why
        assert refusal.status_code in (401, 429)
        assert refusal.headers["access-control-allow-origin"] == page["Origin"]
        assert "Retry-After" in refusal.headers["access-control-expose-headers"]
    few = {"Authorization": f"Bearer {keys.create(path, 'few', rate_records=3)}"}
    inputs = {"inputs": [{"text": f"Sales rose {i} %."} for i in range(2)]}
    answers = [
        httpx.post(f"{server.url}/v1/tasks/headline", json=inputs, headers=few, timeout=30) for _ in range(2)
    ]
    assert [answer.status_code for answer in answers] == [200, 429]
    assert "3 records per minute" in answers[1].json()["error"]["message"]
    assert ask(plain, "POST", "/v1/adapters/first").status_code == 403
    assert ask(admin, "POST", "/v1/adapters/first").status_code == 200
    scrape = keys.create(path, "scrape", metrics=True)
    assert ask(scrape, where="/metrics").status_code == 200
    assert ask(scrape).status_code == ask(scrape, "POST", "/v1/adapters/first").status_code == 403
    keys.revoke(path, "desk")
    assert ask(plain).status_code == 401 and ask(admin).status_code == 200
    assert httpx.get(f"{server.url}/healthz").status_code == 200
