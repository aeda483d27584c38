"""Sends traces with clients of Jaeger and prints what must come back, as the mapping says.

Usage: jaeger_in.py THRIFT_HTTP_URL AGENT_HOST AGENT_PORT GRPC_HOST_PORT SAMPLING_PORT
"""

import json
import logging
import struct
import sys
import time
import warnings

logging.basicConfig(level=logging.ERROR)
# These exporters say that they are old.
warnings.filterwarnings("ignore", category=DeprecationWarning)

TRACES = 10
thrift_url, agent_host, agent_port, grpc_target, sampling_port = sys.argv[1:]


def value(v):
    # The order matters: a bool is an int in Python.
    if isinstance(v, bool):
        return {"bool": v}
    if isinstance(v, int):
        return {"int": str(v)}
    if isinstance(v, float):
        return {"double": struct.pack(">d", v).hex()}
    if isinstance(v, bytes):
        return {"bytes": v.hex()}
    return {"string": v}


def thrift_times(span):
    """Microseconds, as the Thrift exporter rounds them."""
    from opentelemetry.exporter.jaeger.thrift.translate import _nsec_to_usec_round as micros

    start, length = micros(span.start_time), micros(span.end_time - span.start_time)
    return start * 1000, (start + length) * 1000, lambda nanos: micros(nanos) * 1000


def proto_times(span):
    """Seconds and nanoseconds, as the protobuf exporter makes them of a double."""
    from opentelemetry.exporter.jaeger.proto.grpc.translate import _proto_timestamp_from_epoch_nanos as timestamp

    def nanos(of):
        made = timestamp(of)
        return made.seconds * 10**9 + made.nanos

    return nanos(span.start_time), nanos(span.end_time), nanos


def sdk_spans(service, exporter, times):
    """Spans of the OpenTelemetry SDK through one of its Jaeger exporters."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from opentelemetry.trace import Link, SpanKind, Status, StatusCode

    class Checked:
        failed = False

        def export(self, spans):
            result = exporter.export(spans)
            self.failed |= result is not SpanExportResult.SUCCESS
            return result

        def shutdown(self):
            exporter.shutdown()

        def force_flush(self, timeout_millis=30000):
            return True

    checked, kept = Checked(), InMemorySpanExporter()
    resource = Resource.create({"service.name": service, "zone": "a"})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(SimpleSpanProcessor(checked))
    provider.add_span_processor(SimpleSpanProcessor(kept))
    tracer = provider.get_tracer("jaeger-test", "1.2.3")
    for n in range(TRACES):
        with tracer.start_as_current_span(f"root-{n}", kind=SpanKind.SERVER, attributes={"n": n, "ok": n % 2 == 0}) as root:
            context = root.get_span_context()
            with tracer.start_as_current_span("call", kind=SpanKind.CLIENT, links=[Link(context)]) as child:
                child.set_attribute("ratio", n / 7)
                child.set_attribute("text", "ü – 文")
                child.add_event("retry", {"attempt": n, "final": False, "wait": 0.25})
                if n % 3 == 0:
                    child.set_status(Status(StatusCode.ERROR, "a call failed"))
                elif n % 3 == 1:
                    child.set_status(Status(StatusCode.OK))
            with tracer.start_as_current_span("work", kind=SpanKind.INTERNAL):
                pass
    provider.shutdown()
    if checked.failed:
        sys.exit(f"{service}: an export failed")

    def event(of, nanos):
        # These exporters write the name as a field of another name than Jaeger's clients do.
        fields = {k: value(v) for k, v in of.attributes.items()}
        return {"name": "", "time": str(nanos(of.timestamp)), "attributes": fields | {"message": value(of.name)}}

    def link(of):
        trace, span = format(of.context.trace_id, "032x"), format(of.context.span_id, "016x")
        return {"trace": trace, "span": span, "attributes": {"opentracing.ref_type": value("follows_from")}}

    out = []
    for span in kept.get_finished_spans():
        start, end, nanos = times(span)
        out.append(
            {
                "service": service,
                "scope": span.instrumentation_scope.name,
                "trace": format(span.context.trace_id, "032x"),
                "span": format(span.context.span_id, "016x"),
                "parent": format(span.parent.span_id, "016x") if span.parent else "",
                "name": span.name,
                "kind": span.kind.value + 1,
                "start": str(start),
                "end": str(end),
                "status": {"code": span.status.status_code.value, "message": span.status.description or ""},
                # They write the attributes of the resource as tags of the span as well.
                "attributes": {k: value(v) for k, v in (dict(span.attributes) | dict(resource.attributes)).items()},
                "events": [event(e, nanos) for e in span.events],
                "links": [link(l) for l in span.links],
            }
        )
    return out


def opentracing_spans(service):
    """Spans of Jaeger's own client, which sends packets. What it will send is what its spans hold."""
    import opentracing
    from jaeger_client import Config

    config = Config(
        config={
            "sampler": {"type": "const", "param": 1},
            "local_agent": {"reporting_host": agent_host, "reporting_port": int(agent_port), "sampling_port": int(sampling_port)},
            "logging": False,
            "generate_128bit_trace_id": True,
        },
        service_name=service,
        validate=True,
    )
    tracer = config.new_tracer()
    spans = []
    for n in range(TRACES):
        root = tracer.start_span(f"root-{n}")
        root.set_tag("span.kind", "server")
        root.set_tag("n", n)
        root.set_tag("flag", n % 2 == 0)
        root.set_tag("ratio", n / 7)
        child = tracer.start_span("child", child_of=root)
        child.set_tag("text", "ü – 文")
        child.log_kv({"event": "retry", "attempt": n})
        if n % 3 == 0:
            child.set_tag("error", True)
        follower = tracer.start_span("follower", references=[opentracing.follows_from(root.context)])
        for span in (follower, child, root):
            time.sleep(0.001)
            span.finish()
            spans.append(span)
    # The reporter sends once a second.
    time.sleep(1.5)
    tracer.close()
    time.sleep(1)

    def of_tag(tag):
        if tag.vType == 0:
            return {"string": tag.vStr}
        if tag.vType == 1:
            return value(tag.vDouble)
        if tag.vType == 2:
            return {"bool": tag.vBool}
        return {"int": str(tag.vLong)}

    def reference(of):
        trace, span = format(of.referenced_context.trace_id, "032x"), format(of.referenced_context.span_id, "016x")
        return {"trace": trace, "span": span, "attributes": {"opentracing.ref_type": value("follows_from")}}

    out = []
    for span in spans:
        tags = {tag.key: of_tag(tag) for tag in span.tags}
        kind = tags.pop("span.kind", value(""))["string"]
        failed = tags.get("error") == value(True)
        if failed:
            tags.pop("error")
        events = []
        for log in span.logs:
            fields = {field.key: of_tag(field) for field in log.fields}
            events.append({"name": fields.pop("event")["string"], "time": str(log.timestamp * 1000), "attributes": fields})
        start, length = int(span.start_time * 1000000), int((span.end_time - span.start_time) * 1000000)
        follows = [r for r in span.references or [] if r.type == opentracing.ReferenceType.FOLLOWS_FROM]
        out.append(
            {
                "service": service,
                "scope": "",
                "trace": format(span.trace_id, "032x"),
                "span": format(span.span_id, "016x"),
                "parent": format(span.parent_id, "016x") if span.parent_id else "",
                "name": span.operation_name,
                "kind": {"server": 2}.get(kind, 0),
                "start": str(start * 1000),
                "end": str((start + length) * 1000),
                "status": {"code": 2 if failed else 0, "message": ""},
                "attributes": tags,
                "events": events,
                "links": [reference(r) for r in follows],
            }
        )
    return out


from opentelemetry.exporter.jaeger.proto.grpc import JaegerExporter as GrpcExporter
from opentelemetry.exporter.jaeger.thrift import JaegerExporter as ThriftExporter

udp = ThriftExporter(agent_host_name=agent_host, agent_port=int(agent_port), udp_split_oversized_batches=True)
spans = sdk_spans("jaeger-thrift-http", ThriftExporter(collector_endpoint=thrift_url), thrift_times)
spans += sdk_spans("jaeger-thrift-udp", udp, thrift_times)
spans += sdk_spans("jaeger-proto-grpc", GrpcExporter(collector_endpoint=grpc_target, insecure=True), proto_times)
spans += opentracing_spans("jaeger-client-python")
json.dump(spans, sys.stdout)
