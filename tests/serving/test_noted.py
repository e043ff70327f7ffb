"""What operators see of a running server: every metric fed, answers of every route kept, traces sent."""

import gzip
import shutil
import sqlite3
from http.server import BaseHTTPRequestHandler

import httpx
import pytest
from loopback import Loopback

TEXT = "Operating profit rose to EUR 13.1 mn from EUR 8.7 mn."
QUESTION = f"{TEXT}\nWhat was the operating profit?"


@pytest.fixture(scope="module")
def collector():
    """A server that takes spans over OTLP, and the spans it was sent."""
    pytest.importorskip("opentelemetry.sdk", reason="traces need the otel extra")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    spans = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            sent = ExportTraceServiceRequest.FromString(body)
            spans.extend(s for r in sent.resource_spans for scope in r.scope_spans for s in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with Loopback(Handler) as running:
        yield running.url, spans


@pytest.fixture(scope="module")
def watched(adapters, start, no_keys, collector, tmp_path_factory):
    """A server that keeps answers and sends traces, after a request to each route; and what it answered."""
    running = start(
        "--model_path",
        adapters / "first",
        keys=no_keys,
        FINTUNE_STORE=f"sqlite:///{tmp_path_factory.mktemp('store')}/kept.db",
        FINTUNE_KEEP_PREDICTIONS="1",
        OTEL_EXPORTER_OTLP_ENDPOINT=collector[0],
    )
    caller = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    answers = {}
    with httpx.Client(base_url=running.url, timeout=60) as client:

        def ask(path, headers=None, **body):
            response = client.post(path, json=body, headers=headers)
            assert response.is_success, response.text
            return response

        for task in ("headline", "regression", "summarization"):
            for _ in range(2):
                answers[task] = ask(f"/v1/tasks/{task}", caller, text=TEXT).json()["data"][0]
        messages = [{"role": "user", "content": QUESTION}]
        chat = {"messages": messages, "max_tokens": 8}
        answers["sentiment"] = ask("/v1/chat/completions", model="first:sentiment", **chat).json()
        answers["qa"] = ask("/v1/chat/completions", model="first:qa", stream=True, **chat).text
        answers["chat"] = ask("/v1/chat/completions", model="first", **chat).json()
        kept = answers["sentiment"]["prediction_id"]
        ask("/v1/feedback", prediction_id=kept, correct=True)
        answers["metrics"] = client.get("/metrics").text
    running.stop()
    return answers


def test_every_declared_metric_is_fed(watched):
    from prometheus_client.parser import text_string_to_metric_families

    moved = {
        family.name
        for family in text_string_to_metric_families(watched["metrics"])
        if any(sample.value for sample in family.samples if not sample.name.endswith("_created"))
    }
    from fintune.monitoring.metrics import Metrics

    declared = {family.name for family in Metrics().registry.collect()}
    at_rest = {"fintune_queue_length", "fintune_requests_in_flight"}  # nothing waits when it is asked
    at_rest |= {"fintune_store_failures", "fintune_store_waiting"}
    without_reference = {name for name in declared if "drift" in name}  # tests/monitoring has one
    assert declared - moved == at_rest | without_reference


def test_tokens_and_waiting_are_counted_by_task(watched):
    metrics = dict(
        line.rsplit(" ", 1) for line in watched["metrics"].splitlines() if not line.startswith("#")
    )

    def tokens(task, kind):
        return float(metrics[f'fintune_tokens_total{{kind="{kind}",task="{task}"}}'])

    assert tokens("headline", "prompt") > tokens("headline", "cached") > 0
    assert tokens("summarization", "completion") > 0
    assert float(metrics['fintune_cache_lookups_total{result="hit"}']) >= 3
    assert float(metrics['fintune_queue_seconds_count{task="headline"}']) == 2
    for task in ("sentiment", "qa", "text"):
        assert float(metrics[f'fintune_requests_total{{outcome="ok",task="{task}"}}']) == 1
    assert watched["sentiment"]["usage"]["prompt_tokens"] > 20


def test_an_answer_of_a_chat_is_kept_as_that_of_a_task_is_and_a_plain_chat_is_not(watched):
    assert watched["headline"]["prediction_id"] and watched["sentiment"]["prediction_id"]
    assert '"prediction_id": "' in watched["qa"]
    assert "prediction_id" not in watched["chat"]


def test_a_batch_is_a_span_of_its_requests_trace_which_is_the_callers_and_none_holds_a_text(
    watched, collector
):
    spans = {s.span_id: s for s in collector[1] if s.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"}
    batches = [s for s in spans.values() if s.name == "batch"]
    assert len(batches) == 6
    for batch in batches:
        above = [spans[batch.parent_span_id]]
        while above[-1].parent_span_id in spans:
            above.append(spans[above[-1].parent_span_id])
        assert above[-1].name == "POST /v1/tasks/{task}"
    values = [a.value.string_value for s in collector[1] for a in s.attributes]
    assert "headline" in values and not any("profit" in value for value in values)


def test_drift_is_of_the_default_models_answers_alone(adapters, start, no_keys, tmp_path):
    from fintune.monitoring.profile import Profile, TaskProfile

    own = shutil.copytree(adapters / "first", tmp_path / "own")
    Profile({"headline": TaskProfile(n=200, labels={"positive": 100, "negative": 100})}).save(own)
    running = start(
        "--model_path",
        own,
        "--adapters",
        adapters / "second",
        keys=no_keys,
        FINTUNE_STORE=f"sqlite:///{tmp_path}/kept.db",
        FINTUNE_KEEP_PREDICTIONS="1",
    )
    with httpx.Client(base_url=running.url, timeout=60) as client:
        for name in ("own", "second"):
            reply = client.post("/v1/tasks/headline", json={"text": TEXT, "model": name})
            assert reply.json()["data"][0]["prediction_id"]
        report = client.get("/v1/monitoring/drift").json()
    running.stop()
    assert report["tasks"]["headline"]["n"] == 1


def test_a_store_that_fails_costs_no_answer_and_puts_no_text_into_the_log(adapters, start, no_keys, tmp_path):
    store = tmp_path / "kept.db"
    running = start(
        "--model_path",
        adapters / "first",
        keys=no_keys,
        FINTUNE_STORE=f"sqlite:///{store}",
        FINTUNE_KEEP_PREDICTIONS="1",
    )
    with sqlite3.connect(store) as database:
        database.execute("DROP TABLE feedback")
        database.execute("DROP TABLE prediction")
    with httpx.Client(base_url=running.url, timeout=60) as client:
        label = client.post("/v1/tasks/headline", json={"text": TEXT})
        chat = {"model": "first:qa", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 8}
        written = client.post("/v1/chat/completions", json=chat)
        name = label.json()["data"][0]["prediction_id"]
        refused = client.post("/v1/feedback", json={"prediction_id": name, "correct": True})
        metrics, ready = client.get("/metrics"), client.get("/readyz")
    running.stop()
    assert [reply.status_code for reply in (label, written, metrics)] == [200, 200, 200]
    (answer,) = label.json()["data"]
    assert answer["prediction"] and answer["prediction_id"]  # it waits to be kept
    assert ready.json()["store"]["state"] == "down" and "fintune_store_up 0.0" in metrics.text
    assert refused.status_code == 503
    log = "".join(running.log)
    assert "FINTUNE_STORE fails" in log and "Operating profit" not in log
