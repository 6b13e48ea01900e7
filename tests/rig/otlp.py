"""An OTLP/HTTP receiver on the loopback that keeps the spans it is sent.

python -m tests.rig.otlp
"""

from __future__ import annotations

import contextlib
import gzip
import sys
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenSpan:
    """A span as it arrived: ids in hex, `parent_id` empty for a root, `kind` and `status` in capitals (`ERROR`)."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: Mapping[str, Any]
    resource: Mapping[str, Any]
    events: tuple[str, ...]
    status: str
    message: str
    start_ns: int
    end_ns: int


class Receiver:
    """What has arrived: `bodies` are the decompressed requests, to be searched for what must not be there."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.bodies: list[bytes] = []
        self._changed = threading.Condition()

    @property
    def traces_url(self) -> str:
        """The address for traces, for exporters that take the whole of it."""
        return f"{self.endpoint}/v1/traces"

    def add(self, body: bytes) -> None:
        """Takes one request."""
        with self._changed:
            self.bodies.append(body)
            self._changed.notify_all()

    def spans(self) -> list[SeenSpan]:
        """All spans so far, in the order of their arrival."""
        with self._changed:
            return [span for body in self.bodies for span in _spans(body)]

    def wait_spans(self, n: int = 1, timeout_s: float = 10.0) -> list[SeenSpan]:
        """Blocks until `n` spans have come; raises `TimeoutError`."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.spans()) >= n, timeout_s):
                raise TimeoutError(f"got {len(self.spans())} of {n} spans within {timeout_s:g} s")
            return self.spans()


def _spans(body: bytes) -> Iterator[SeenSpan]:
    for part in ExportTraceServiceRequest.FromString(body).resource_spans:
        resource = _attributes(part.resource.attributes)
        for scope in part.scope_spans:
            for span in scope.spans:
                yield _seen(span, resource)


def _seen(span: trace_pb2.Span, resource: Mapping[str, Any]) -> SeenSpan:
    return SeenSpan(
        name=span.name,
        kind=trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        attributes=_attributes(span.attributes),
        resource=resource,
        events=tuple(event.name for event in span.events),
        status=trace_pb2.Status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_"),
        message=span.status.message,
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
    )


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    match value.WhichOneof("value"):
        case "array_value":
            return [_value(item) for item in value.array_value.values]
        case "kvlist_value":
            return _attributes(value.kvlist_value.values)
        case None:
            return None
        case kind:
            return getattr(value, kind)


@contextlib.contextmanager
def otlp_receiver() -> Generator[Receiver]:
    """Runs a receiver in a thread."""
    receiver = Receiver()

    class Post(BaseHTTPRequestHandler):
        """Answers each export with success."""

        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.add(gzip.decompress(body) if self.headers["content-encoding"] == "gzip" else body)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class names it)
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Post) as server:
        server.daemon_threads = True
        receiver.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield receiver
        finally:
            server.shutdown()


if __name__ == "__main__":
    with otlp_receiver() as running:
        sys.stdout.write(f"READY {running.endpoint}\n")
        sys.stdout.flush()
        threading.Event().wait()
