"""A real OpenTelemetry SDK for one test at a time, which keeps the spans that were started and ended."""

from __future__ import annotations

from types import ModuleType

import pytest
from opentelemetry import trace as otel
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider


class Clock:
    """The time that a policy sees, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    @classmethod
    def of(cls, monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> Clock:
        """The clock that a module reads from now on."""
        moved = cls()
        monkeypatch.setattr(module, "monotonic", moved)
        return moved


class Spans(SpanProcessor):
    """What was started and what was ended, each in its order."""

    def __init__(self) -> None:
        self.provider = TracerProvider()
        self.provider.add_span_processor(self)
        self.started: list[Span] = []
        self.ended: list[ReadableSpan] = []

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:  # the base class names it
        """Keep a span that began."""
        self.started.append(span)

    def on_end(self, span: ReadableSpan) -> None:
        """Keep a span that ended."""
        self.ended.append(span)

    def only(self, name: str) -> ReadableSpan:
        """The one span of this name, which has ended once."""
        assert sorted(map(id_of, self.started)) == sorted(map(id_of, self.ended))
        (found,) = [span for span in self.ended if span.name == name]
        return found


def id_of(span: ReadableSpan) -> int:
    """The span's own id."""
    context = span.get_span_context()
    assert context is not None
    return context.span_id


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Spans:
    """The spans of this test; a process has one global provider, so it is lent to the test and taken back."""
    kept = Spans()
    monkeypatch.setattr(otel, "_TRACER_PROVIDER", kept.provider)
    return kept
