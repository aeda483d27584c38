"""Sends traces with the OpenTelemetry SDK and prints what must come back.

Usage: send.py GRPC_ENDPOINT HTTP_ENDPOINT
"""

import json
import struct
import sys

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import Compression, OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanKind, Status, StatusCode

TRACES = 25


class Checked:
    """An exporter that remembers whether every export succeeded."""

    def __init__(self, inner):
        self.inner = inner
        self.failed = False

    def export(self, spans):
        result = self.inner.export(spans)
        self.failed |= result is not SpanExportResult.SUCCESS
        return result

    def shutdown(self):
        self.inner.shutdown()

    def force_flush(self, timeout_millis=30000):
        return self.inner.force_flush(timeout_millis)


def value(v):
    # The order matters: a bool is an int in Python.
    if isinstance(v, bool):
        return {"bool": v}
    if isinstance(v, int):
        return {"int": str(v)}
    if isinstance(v, float):
        return {"double": struct.pack(">d", v).hex()}
    if isinstance(v, str):
        return {"string": v}
    if isinstance(v, bytes):
        return {"bytes": v.hex()}
    return {"array": [value(one) for one in v]}


def attributes(of):
    return {key: value(v) for key, v in (of or {}).items()}


def expected(span, service):
    return {
        "service": service,
        "scope": span.instrumentation_scope.name,
        "trace": format(span.context.trace_id, "032x"),
        "span": format(span.context.span_id, "016x"),
        "parent": format(span.parent.span_id, "016x") if span.parent else "",
        "name": span.name,
        "kind": span.kind.value + 1,
        "start": str(span.start_time),
        "end": str(span.end_time),
        "status": {"code": span.status.status_code.value, "message": span.status.description or ""},
        "attributes": attributes(span.attributes),
        "events": [{"name": e.name, "time": str(e.timestamp), "attributes": attributes(e.attributes)} for e in span.events],
        "links": [
            {
                "trace": format(link.context.trace_id, "032x"),
                "span": format(link.context.span_id, "016x"),
                "attributes": attributes(link.attributes),
            }
            for link in span.links
        ],
    }


def send(service, exporter):
    checked, kept = Checked(exporter), InMemorySpanExporter()
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    provider.add_span_processor(BatchSpanProcessor(checked, max_export_batch_size=64))
    provider.add_span_processor(SimpleSpanProcessor(kept))
    tracer = provider.get_tracer("python-tests", "1.2.3")
    for n in range(TRACES):
        with tracer.start_as_current_span(f"GET /käse/{n}", kind=SpanKind.SERVER) as root:
            root.set_attributes(
                {
                    "text": "grüße ✓ 𝄞",
                    "empty": "",
                    "yes": True,
                    "no": False,
                    "int": -(2**63) + n,
                    "large": 2**63 - 1,
                    "double": 0.1 + n,
                    "tiny": 5e-324,
                    "texts": ["a", "", "ü"],
                    "ints": [1, -2, 3],
                    "doubles": [0.5, -0.0],
                    "bools": [True, False],
                    "nothing": [],
                    "long": "x" * 5000,
                }
            )
            for call in range(4):
                with tracer.start_as_current_span("call", kind=SpanKind.CLIENT, attributes={"n": call}) as child:
                    child.add_event("sent", {"bytes": 10 * call})
                    with tracer.start_as_current_span("query", links=[Link(root.get_span_context(), {"why": "root"})]):
                        pass
            try:
                with tracer.start_as_current_span("fails"):
                    raise ValueError("no such käse")
            except ValueError:
                root.set_status(Status(StatusCode.ERROR, "a call failed"))
    provider.shutdown()
    if checked.failed:
        sys.exit(f"{service}: an export failed")
    return [expected(span, service) for span in kept.get_finished_spans()]


grpc_endpoint, http_endpoint = sys.argv[1:]
spans = send("python-grpc", GrpcExporter(endpoint=grpc_endpoint, insecure=True))
spans += send("python-http", HttpExporter(endpoint=http_endpoint, compression=Compression.Gzip))
json.dump(spans, sys.stdout)
