"""Faults of the model: what fails costs its own requests, what never works again ends the server."""

import asyncio
import threading
import time

import httpx
import pytest
from forked import fintune

from fintune.serving.errors import ApiError
from fintune.serving.writing import Sampling
from fintune.tasks import Record

ASKED = [Record(text="Sales rose.")]
FAULT = RuntimeError("CUDA error: an illegal memory access was encountered")


def status(thread, task="headline"):
    """What a client gets for one request."""
    try:
        asyncio.run(thread.predict("base", task, ASKED))
    except ApiError as error:
        return error.status, error.code
    return 200, None


def fails(error):
    def fail(*_, **__):
        raise error

    return fail


def test_a_text_that_fails_and_cannot_be_freed_costs_itself_alone(engine, thread, monkeypatch):
    one = thread()
    real = engine.backend.begin

    def begin(*given):
        texts = real(*given)
        texts.advance = texts.keep = fails(FAULT)
        return texts

    async def write():
        prompt = engine.template.completion_ids("Sales rose.")
        return [piece async for piece in one.write("base", lambda _: prompt, Sampling(max_tokens=4))]

    monkeypatch.setattr(engine.backend, "begin", begin)
    with pytest.raises(ApiError) as refused:
        asyncio.run(write())
    assert refused.value.status == 500
    assert one.ready and status(one) == (200, None)
    monkeypatch.undo()
    assert asyncio.run(write())


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), MemoryError()])
def test_not_even_an_exit_in_a_plugin_ends_the_thread(engine, thread, monkeypatch, error):
    one = thread()
    monkeypatch.setattr(type(engine.tasks["headline"]), "decide", fails(error))
    assert status(one) == (500, "internal_error")
    monkeypatch.undo()
    assert one.ready and status(one) == (200, None)


def test_requests_that_make_a_sound_model_fail_do_not_end_the_server(engine, thread, monkeypatch):
    one = thread(max_failures=2)
    monkeypatch.setattr(type(engine.tasks["headline"]), "decide", fails(ValueError("a plug-in's mistake")))
    assert [status(one) for _ in range(7)] == [(500, "internal_error")] * 7
    assert one.ready


def test_a_device_that_fails_for_good_is_given_up_after_some_failures_in_a_row(engine, thread, monkeypatch):
    one = thread(max_failures=3)
    assert status(one) == (200, None)
    monkeypatch.setattr(engine.backend, "log_likelihoods", fails(FAULT))
    answers = [status(one) for _ in range(3)]
    assert answers == [(500, "internal_error")] * 3
    deadline = time.monotonic() + 10  # the answer is sent before the model is looked at
    while one.ready and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "3 times in a row" in one.health.lost and not one.ready
    assert status(one) == (503, "model_lost")


def test_whoever_waits_for_a_step_that_never_ends_is_told_in_time(engine, thread, monkeypatch):
    one, over = thread(max_step=0.3), threading.Event()
    monkeypatch.setattr(engine.backend, "log_likelihoods", lambda *_, **__: over.wait(30))

    async def both():
        work = [one.predict("base", task, ASKED) for task in ("headline", "sentiment")]
        return await asyncio.gather(*work, return_exceptions=True)

    begun = time.monotonic()
    told = asyncio.run(both())
    over.set()
    assert [(error.status, error.code) for error in told] == [(503, "model_lost")] * 2
    assert time.monotonic() - begun < 5 and not one.ready


def serve_and_hang(arguments):
    """`fintune serve` whose model hangs as soon as it is asked."""
    from fintune.inference.backends.builtin import Builtin

    Builtin.log_likelihoods = lambda *_, **__: time.sleep(600)
    return fintune(arguments)


def test_a_server_whose_model_hangs_says_so_and_ends_with_an_error(adapters, no_keys, start):
    flags = ["--model_path", adapters / "first", "--max_step", "1"]
    server = start(*flags, keys=no_keys, command=serve_and_hang)
    assert httpx.get(f"{server.url}/healthz").json()["status"] == "ok"
    answer = httpx.post(f"{server.url}/v1/tasks/headline", json={"text": "Sales rose."}, timeout=120)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_lost")
    assert server.process.wait(120) == 1
    assert any("a step has taken more than 1 s" in line for line in server.log)
