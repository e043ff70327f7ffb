"""Spans as OpenTelemetry's own exporter gets them, in a process of their own: a provider is set once."""

import os
import subprocess
import sys

from fintune.monitoring import tracing

CODE = """
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from fintune.monitoring import tracing

exporter = InMemorySpanExporter()
assert tracing.configure(exporter)
caller = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
try:
    with tracing.span("request", headers=caller, task="sentiment"):
        with tracing.span("batch", size=4):
            raise ValueError("no such label")
except ValueError:
    pass
tracing.flush()
for span in exporter.get_finished_spans():
    print(span.name, f"{span.context.trace_id:032x}", dict(span.attributes), span.status.status_code.name)
"""


def test_spans_nest_in_the_callers_trace_and_carry_the_error():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == [
        "batch 0af7651916cd43dd8448eb211c80319c {'size': 4} ERROR",
        "request 0af7651916cd43dd8448eb211c80319c {'task': 'sentiment'} ERROR",
    ], done.stderr


def test_without_an_endpoint_nothing_is_sent(monkeypatch):
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    assert tracing.configure() is False
    with tracing.span("request", task="qa") as span:
        assert span is None or not span.is_recording()
