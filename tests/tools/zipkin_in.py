"""Sends traces with clients of Zipkin and prints what must come back, as the mapping says of what they sent.

Usage: zipkin_in.py HOST PORT
"""

import json
import sys

import py_zipkin.logging_helper as logging_helper
import requests
from py_zipkin import Encoding, Kind
from py_zipkin.encoding import protobuf
from py_zipkin.encoding._encoders import _V1JSONEncoder, _V2JSONEncoder, get_encoder
from py_zipkin.transport import SimpleHTTPTransport
from py_zipkin.zipkin import zipkin_span

TRACES = 10
host, port = sys.argv[1:]
RESOURCE = ("service.", "host.", "telemetry.sdk.", "process.")


def text(v):
    return {"string": v}


def any_value(v):
    return {"bool": v} if isinstance(v, bool) else text(v)


def of_v2(span):
    """A span in JSON of today's form, as it must come back."""
    tags = dict(span.get("tags", {}))
    attributes = {}
    for key, prefix in (("localEndpoint", "net.host"), ("remoteEndpoint", "net.peer")):
        endpoint = span.get(key) or {}
        if key == "remoteEndpoint" and endpoint.get("serviceName"):
            attributes["peer.service"] = text(endpoint["serviceName"])
        ip = endpoint.get("ipv6") or endpoint.get("ipv4")
        if ip:
            attributes[prefix + ".ip"] = text(ip)
        if endpoint.get("port"):
            attributes[prefix + ".port"] = {"int": str(endpoint["port"])}
    code, message = 0, ""
    if "otel.status_code" in tags:
        code = {"OK": 1, "ERROR": 2}.get(tags.pop("otel.status_code"), 0)
        message = tags.pop("otel.status_description", "")
    if "error" in tags:
        code = 2
        if tags["error"] == "true":
            del tags["error"]
    scope = tags.pop("otel.library.name", "")
    tags.pop("otel.library.version", None)
    attributes |= {key: text(value) for key, value in tags.items() if not key.startswith(RESOURCE)}
    start = span.get("timestamp", 0) * 1000
    trace = span["traceId"].rjust(32, "0")
    return {
        "service": (span.get("localEndpoint") or {}).get("serviceName"),
        "scope": scope,
        "trace": trace,
        "span": span["id"].rjust(16, "0"),
        "parent": (span.get("parentId") or "").rjust(16, "0") if span.get("parentId") else "",
        "name": span.get("name", ""),
        "kind": {"SERVER": 2, "CLIENT": 3, "PRODUCER": 4, "CONSUMER": 5}.get(span.get("kind"), 0),
        "start": str(start),
        "end": str(start + span.get("duration", 0) * 1000),
        "status": {"code": code, "message": message},
        "attributes": attributes,
        "events": [
            {"name": a["value"], "time": str(a["timestamp"] * 1000), "attributes": {}} for a in span.get("annotations") or []
        ],
        "links": [],
    }


CORE = {"cs": 3, "cr": 3, "ss": 2, "sr": 2, "ms": 4, "mr": 5}


def of_v1(span):
    """The same for the first form."""
    annotations, binary = span.get("annotations") or [], span.get("binaryAnnotations") or []
    core = [a for a in annotations if a["value"] in CORE]
    named = [a["endpoint"]["serviceName"] for a in core if a.get("endpoint", {}).get("serviceName")]
    named += [a["endpoint"]["serviceName"] for a in reversed(binary) if a.get("endpoint", {}).get("serviceName")]
    tags = {a["key"]: a["value"] for a in binary}
    code, message = 0, ""
    if "otel.status_code" in tags:
        code = {"OK": 1, "ERROR": 2}.get(tags.pop("otel.status_code"), 0)
        message = tags.pop("otel.status_description", "") or tags.pop("error", "")
    elif "error" in tags:
        code, message = 2, tags.pop("error")
    if span.get("timestamp"):
        start = span["timestamp"]
        end = start + span.get("duration", 0)
    else:
        times = [a["timestamp"] for a in annotations]
        start, end = min(times), max(times)
    others = [a for a in annotations if a["value"] not in CORE]
    return {
        "service": named[0] if named else "unknown-service",
        "scope": "",
        "trace": span["traceId"].rjust(32, "0"),
        "span": span["id"],
        "parent": span.get("parentId") or "",
        "name": span["name"],
        "kind": CORE[core[0]["value"]] if core else 0,
        "start": str(start * 1000),
        "end": str(end * 1000),
        "status": {"code": code, "message": "" if message == "true" else message},
        "attributes": {key: any_value(value) for key, value in tags.items()},
        "events": [{"name": a["value"], "time": str(a["timestamp"] * 1000), "attributes": {}} for a in others],
        "links": [],
    }


class Remembering:
    """An encoder that keeps the spans it was given."""

    def __init__(self, inner, kept):
        self.inner, self.kept = inner, kept

    def encode_span(self, span):
        self.kept.append(span)
        return self.inner.encode_span(span)

    def __getattr__(self, name):
        return getattr(self.inner, name)


class Checked(SimpleHTTPTransport):
    """The client's own transport, which tells when a batch was not taken."""

    def send(self, payload):
        path, kind = self._get_path_content_type(payload)
        answer = requests.post(f"http://{self.address}:{self.port}{path}", data=payload, headers={"Content-Type": kind})
        if answer.status_code != 202:
            sys.exit(f"{path} {kind}: {answer.status_code} {answer.text}")


def py_zipkin_spans(service, encoding):
    kept = []
    logging_helper.get_encoder = lambda which: Remembering(get_encoder(which), kept)
    for n in range(TRACES):
        with zipkin_span(
            service_name=service,
            span_name=f"root-{n}",
            transport_handler=Checked(host, int(port)),
            encoding=encoding,
            sample_rate=100,
            kind=Kind.SERVER,
            port=8080,
            use_128bit_trace_id=n % 2 == 0,
        ) as root:
            root.update_binary_annotations({"http.path": "/a", "text": "ü – 文", "n": str(n)})
            with zipkin_span(service_name=service, span_name="call", kind=Kind.CLIENT) as child:
                child.add_sa_binary_annotation(port=5432, service_name="db", host="10.0.0.7")
                child.add_annotation("retry")
                if n % 3 == 0:
                    child.update_binary_annotations({"error": "timed out"})
            with zipkin_span(service_name=service, span_name="work"):
                pass
    if encoding in (Encoding.V1_JSON, Encoding.V1_THRIFT):
        return [of_v1(json.loads(_V1JSONEncoder().encode_span(span))) for span in kept]
    sent = [json.loads(_V2JSONEncoder().encode_span(span)) for span in kept]
    if encoding is Encoding.V2_PROTO3:
        # This form rounds seconds to microseconds in a way of its own.
        for span, made in zip(sent, map(protobuf.create_protobuf_span, kept)):
            span |= {"timestamp": made.timestamp, "duration": made.duration}
            span["annotations"] = [{"timestamp": a.timestamp, "value": a.value} for a in made.annotations]
    return [of_v2(span) for span in sent]


def sdk_spans(service, version):
    """Spans of the OpenTelemetry SDK through its Zipkin exporter; what it sends is looked at on the way."""
    from opentelemetry.exporter.zipkin.json import Protocol, ZipkinExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.trace import SpanKind, Status, StatusCode

    sent = []

    class Session(requests.Session):
        def post(self, url, data=None, **arguments):
            sent.extend(json.loads(data))
            answer = super().post(url, data=data, **arguments)
            if answer.status_code != 202:
                sys.exit(f"{service}: {answer.status_code} {answer.text}")
            return answer

    path = f"/api/v{1 if version == 'V1' else 2}/spans"
    exporter = ZipkinExporter(version=Protocol[version], endpoint=f"http://{host}:{port}{path}", session=Session(), max_tag_value_length=256)
    provider = TracerProvider(resource=Resource.create({"service.name": service, "zone": "a"}))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("zipkin-test", "1.2.3")
    for n in range(TRACES):
        with tracer.start_as_current_span(f"root-{n}", kind=SpanKind.SERVER, attributes={"n": n, "ok": n % 2 == 0}):
            with tracer.start_as_current_span("call", kind=SpanKind.CLIENT) as child:
                child.set_attribute("ratio", n / 7)
                child.set_attribute("text", "ü – 文")
                child.add_event("retry", {"attempt": n})
                if n % 3 == 0:
                    child.set_status(Status(StatusCode.ERROR, "a call failed"))
                elif n % 3 == 1:
                    child.set_status(Status(StatusCode.OK))
            with tracer.start_as_current_span("work"):
                pass
    provider.shutdown()
    return [of_v1(span) if version == "V1" else of_v2(span) for span in sent]


spans = []
for encoding in (Encoding.V1_THRIFT, Encoding.V1_JSON, Encoding.V2_JSON, Encoding.V2_PROTO3):
    spans += py_zipkin_spans("py-zipkin-" + encoding.value.lower(), encoding)
spans += sdk_spans("otel-zipkin-v1", "V1")
spans += sdk_spans("otel-zipkin-v2", "V2")
json.dump(spans, sys.stdout)
