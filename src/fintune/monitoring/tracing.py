"""OpenTelemetry traces, if the extra `otel` is installed and configured; otherwise nothing.

A span holds task names, sizes and outcomes, never a text. OpenTelemetry's own variables say where spans go
(OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from fintune.errors import MissingExtraError

try:
    from opentelemetry import context, trace
    from opentelemetry.propagate import extract
except ImportError:
    INSTALLED = False
else:
    INSTALLED = True


def configure(exporter: Any = None) -> bool:
    """Send spans to the OTLP endpoint of the environment; return whether there is one.

    Args:
        exporter: a span exporter to use instead.

    Raises:
        MissingExtraError: an endpoint is set, but the extra is not installed.
    """
    wanted = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or os.environ.get(
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
    )
    if exporter is None and not wanted:
        return False
    if not INSTALLED or find_spec("opentelemetry.sdk") is None:
        raise MissingExtraError("Tracing", "otel")
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    if exporter is None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        exporter = OTLPSpanExporter()
    name = os.environ.get("OTEL_SERVICE_NAME", "fintune")
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return True


def flush() -> None:
    """Send the remaining spans at the end of a process."""
    if INSTALLED:
        getattr(trace.get_tracer_provider(), "force_flush", lambda: None)()


def here() -> Any:
    """The current trace, for a `span` in another thread; None without the extra."""
    return context.get_current() if INSTALLED else None


@contextlib.contextmanager
def span(
    name: str, headers: Any = None, within: Any = None, **attributes: str | float | bool
) -> Iterator[Any]:
    """A span around the block, with its error if there is one; yields the span, or None without the extra.

    Args:
        headers: a request's headers; a `traceparent` among them makes this span part of the caller's trace.
        within: the result of `here` in another thread: the span becomes part of that trace.
    """
    if not INSTALLED:
        yield None
        return
    outer = extract(dict(headers)) if headers is not None else within
    tracer = trace.get_tracer("fintune")
    with tracer.start_as_current_span(name, context=outer, attributes=attributes) as current:
        yield current
