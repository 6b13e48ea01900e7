"""Trace context from and to the wire (https://www.w3.org/TR/trace-context), and the SDK's set-up where it is wanted."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from penstock.errors import MissingExtra

if TYPE_CHECKING:
    from opentelemetry.trace import Span

# Version 00 has nothing more; what a later one adds is passed over, as the specification asks.
_TRACEPARENT = re.compile(
    rb"(?!ff|00-.{53})[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?"
)


def parent_of(traceparent: bytes | None, tracestate: bytes | None = None) -> Span | None:
    """The caller's span, from its headers; None when there is none or it is malformed."""
    found = _TRACEPARENT.fullmatch(traceparent.strip()) if traceparent else None
    if found is None:
        return None
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

    state = TraceState.from_header([tracestate.decode("latin-1")]) if tracestate else None
    trace_id, span_id, flags = (int(part, 16) for part in found.groups())
    return NonRecordingSpan(
        SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags), trace_state=state)
    )


def export_to(otlp: str) -> None:
    """Send every span to an OTLP/HTTP receiver at this address; raises `MissingExtra`."""
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise MissingExtra("tracing needs an extra: pip install 'penstock[tracing]'") from error
    provider = TracerProvider(resource=Resource.create({"service.name": "penstock"}))
    address = otlp if otlp.endswith("/v1/traces") else f"{otlp.rstrip('/')}/v1/traces"
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=address), schedule_delay_millis=1000))
    trace.set_tracer_provider(provider)


def flush() -> None:
    """Send what has not been sent yet."""
    from opentelemetry import trace

    shutdown = getattr(trace.get_tracer_provider(), "shutdown", None)
    if shutdown is not None:
        shutdown()
