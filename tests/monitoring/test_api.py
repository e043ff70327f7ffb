"""The monitoring routes over HTTP, on a real server with a real store."""

import threading

import pytest
import requests
import uvicorn
from fastapi import FastAPI

from fintune.monitoring.api import router
from fintune.monitoring.metrics import Metrics
from fintune.monitoring.profile import Profile, TaskProfile
from fintune.monitoring.recorder import Recorder
from fintune.monitoring.store import TABLES, Store
from fintune.tasks import Prediction

from .conftest import free_port
from .predictions import add
from .test_drift import LABELS, answers

REFERENCE = Profile({"sentiment": TaskProfile.of(answers(400), LABELS)}, "the test data")


def serve(*routers):
    """The address of a bare FastAPI application with these routers, in a thread."""
    application = FastAPI()
    for routes in routers:
        application.include_router(routes)
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(application, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
        assert thread.is_alive()
    return f"http://127.0.0.1:{port}", server, thread


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    store = Store.open(f"sqlite:///{tmp_path_factory.mktemp('api')}/monitoring.db", keep=True)
    metrics = Metrics()
    recorder = Recorder(REFERENCE, store, metrics=metrics)
    address, server, thread = serve(
        router(store, REFERENCE, window=recorder.window, writer=recorder.writer, metrics=metrics)
    )
    yield address, recorder
    server.should_exit = True
    thread.join(5)


def answer(recorder, label="negative", text="profit fell"):
    kinds = {name: 0.9 if name == label else 0.05 for name in LABELS}
    return recorder.record("sentiment", text, Prediction(label, kinds))


def test_feedback_joins_its_prediction_and_live_accuracy_reaches_prometheus(service):
    address, recorder = service
    names = [answer(recorder) for _ in range(2)]
    for name, body in zip(names, ({"target": "negative"}, {"correct": False}), strict=True):
        reply = requests.post(f"{address}/v1/feedback", json={"prediction_id": name, **body}, timeout=60)
        assert (reply.status_code, reply.json()["task"]) == (201, "sentiment")
    report = requests.get(f"{address}/v1/monitoring/drift", timeout=60).json()
    assert report["live_scores"]["sentiment"]["accuracy"] == 0.5
    assert report["status"] == "too few"
    assert b'fintune_live_accuracy{task="sentiment"} 0.5' in recorder.exposition()


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"prediction_id": "nobody", "correct": True}, 404, "prediction_not_found"),
        ({"prediction_id": "KEPT", "target": "bullish"}, 422, "invalid_target"),
        ({"prediction_id": "KEPT", "target": 3}, 422, "invalid_target"),
        ({"prediction_id": "KEPT", "target": True}, 422, None),
        ({"prediction_id": "KEPT"}, 422, None),
        ({"prediction_id": "KEPT", "target": "x" * 20_001}, 422, None),
        ({"prediction_id": "KEPT", "correct": "yes"}, 422, None),
        ({"prediction_id": "KEPT", "correct": True, "more": 1}, 422, None),
    ],
)
def test_feedback_that_cannot_be_used_is_refused_and_not_kept(service, body, status, code):
    address, recorder = service
    name = answer(recorder)
    body = {key: name if value == "KEPT" else value for key, value in body.items()}
    assert recorder.writer.flush(10)
    before = list(recorder.store.judged())
    reply = requests.post(f"{address}/v1/feedback", json=body, timeout=60)
    assert reply.status_code == status
    if code:
        error = reply.json()["error"]
        assert error["code"] == code and error["type"] == "invalid_request_error" and error["message"]
    assert list(recorder.store.judged()) == before


def test_drift_of_the_newest_answers_is_in_the_reply_and_in_the_gauges(tmp_path):
    metrics = Metrics()
    recorder = Recorder(REFERENCE, metrics=metrics)
    for seen in answers(200, 5, shares=(0.05, 0.9, 0.05)):
        recorder.window.add("sentiment", seen)
    assert recorder.record("sentiment", "no store, no id", Prediction("neutral")) is None
    address, server, thread = serve(router(None, REFERENCE, window=recorder.window, metrics=metrics))
    report = requests.get(f"{address}/v1/monitoring/drift", timeout=60).json()
    refused = requests.post(
        f"{address}/v1/feedback", json={"prediction_id": "x", "correct": True}, timeout=60
    )
    server.should_exit = True
    thread.join(5)
    assert report["status"] == "drift" and report["tasks"]["sentiment"]["signals"]["labels"]["psi"] > 0.2
    assert b'fintune_drift_status{task="sentiment"} 2.0' in metrics.render()
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "no_store")


def test_a_number_is_the_text_that_was_answered_and_a_text_no_number(service):
    address, recorder = service
    status = []
    for answered, target in (("3", 3), ("3", "3"), (3.0, "3"), (3.0, "three")):
        kept = add(recorder.store, "qa", "How many?", Prediction(answered))
        body = {"prediction_id": kept, "target": target}
        reply = requests.post(f"{address}/v1/feedback", json=body, timeout=60)
        status.append(reply.status_code)
    assert status == [201, 201, 201, 422]
    assert "target must be a number like the answer" in reply.json()["error"]["message"]
    assert [item.target for item in recorder.store.judged("qa")] == ["3", "3", 3.0]


def test_drift_is_of_the_references_model_and_feedback_is_held_to_the_labels_of_its_own_answer(tmp_path):
    store = Store.open(f"sqlite:///{tmp_path}/monitoring.db", keep=True)
    address, server, thread = serve(router(store, REFERENCE, model="first", metrics=Metrics()))
    labels = {"first": LABELS, "second": ("bullish", "bearish")}
    status = {}
    for name, known in labels.items():
        answered = Prediction(known[0], {label: 1 / len(known) for label in known})
        for target in ("bearish", "negative"):
            kept = add(store, "sentiment", "profit fell", answered, model=name)
            body = {"prediction_id": kept, "target": target}
            reply = requests.post(f"{address}/v1/feedback", json=body, timeout=60)
            status[name, target] = reply.status_code
    report = requests.get(f"{address}/v1/monitoring/drift", timeout=60).json()
    server.should_exit = True
    thread.join(5)
    store.close()
    assert status == {
        ("first", "bearish"): 422,
        ("first", "negative"): 201,
        ("second", "bearish"): 201,
        ("second", "negative"): 422,
    }
    assert report["tasks"]["sentiment"]["n"] == 2
    assert report["live_scores"]["sentiment"] == {"feedback": 1, "accuracy": 0.0, "mae": None}


def test_a_failing_store_is_said_to_fail_now(tmp_path, caplog):
    store = Store.open(f"sqlite:///{tmp_path}/monitoring.db", keep=True)
    address, server, thread = serve(router(store, REFERENCE, metrics=Metrics()))
    TABLES.drop_all(store.database)
    body = {"prediction_id": "x", "target": "a client's own words"}
    for reply in (
        requests.post(f"{address}/v1/feedback", json=body, timeout=60),
        requests.get(f"{address}/v1/monitoring/drift", timeout=60),
    ):
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "store_unavailable")
    server.should_exit = True
    thread.join(5)
    store.close()
    assert "no such table" in caplog.text and "own words" not in caplog.text


def test_two_replicas_share_nothing_but_the_database(url):
    """An answer of one is judged through the other, and both see the score and the drift."""
    stores = [Store.open(url, keep=True) for _ in range(2)]
    served = [serve(router(store, REFERENCE, metrics=Metrics())) for store in stores]
    first, second = (Recorder(REFERENCE, store, metrics=Metrics()) for store in stores)
    name = answer(first)
    for i in range(120):
        answer(second, text=f"profit fell {i}")
    assert first.writer.flush(10) and second.writer.flush(10)
    addresses = [address for address, _, _ in served]
    body = {"prediction_id": name, "correct": True}
    assert requests.post(f"{addresses[1]}/v1/feedback", json=body, timeout=60).status_code == 201
    reports = [requests.get(f"{address}/v1/monitoring/drift", timeout=60).json() for address in addresses]
    for report in reports:
        assert report["live_scores"]["sentiment"] == {"feedback": 1, "accuracy": 1.0, "mae": None}
        assert report["tasks"]["sentiment"]["n"] == 121 and report["status"] == "drift"
    for _, server, thread in served:
        server.should_exit = True
        thread.join(5)
    for store in stores:
        store.close()
