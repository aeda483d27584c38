//! Our spans in Zipkin's terms: what came from Zipkin goes back as it was sent, what came from OpenTelemetry looks as its collector writes it.
//!
//! | ours                          | Zipkin's                                                                       |
//! |-------------------------------|--------------------------------------------------------------------------------|
//! | resource `service.name`       | localEndpoint.serviceName; without one what stands in for it, named in the tag `otlp.service.name.source` |
//! | `net.host.ip`, `net.host.port`| the rest of localEndpoint                                                      |
//! | `peer.service`, `net.peer.*`  | remoteEndpoint                                                                 |
//! | other resource and span attributes | tags, as text; the span's count more                                      |
//! | scope name, version           | tags `otel.library.name`, `otel.library.version`                               |
//! | kind                          | kind; internal is the tag `span.kind`                                          |
//! | status ERROR                  | tag `error`, `true` unless the span says more; only such spans have one        |
//! | status and message            | tags `otel.status_code` and `otel.status_description`; not on an error that came as the tag alone |
//! | events                        | annotations: the name, or `NAME|{attributes}|DROPPED`                          |
//! | links                         | tags `otlp.link.N`: `TRACE|SPAN|TRACE STATE|{attributes}|DROPPED`              |
//! | trace state                   | tag `w3c.tracestate`                                                           |
//! | start of 0                    | no timestamp                                                                   |
//!
//! `shared` is not stored: it is said of a server's span that has the id of a client's. Lost: `debug`, attributes of scopes.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use spanhouse_common::id::{SpanId, TraceId};
use spanhouse_common::model::{Attribute, Event, Link, Resource, Scope, Span};

use crate::assemble::Trace;
use crate::jaeger::model::{
    KIND_CLIENT, KIND_CONSUMER, KIND_INTERNAL, KIND_PRODUCER, KIND_SERVER, STATUS_ERROR, STATUS_OK, attributes_json,
    parent_of, value_text,
};

/// Says that a span came without a timestamp.
const ABSENT_START: &str = "otel.zipkin.absentField.startTime";
/// The whole text of an annotation of which a part became the name of the event.
pub(super) const ANNOTATION: &str = "otel.zipkin.annotation";
/// Says which attribute of the resource stands in for the name of the service.
const SERVICE_SOURCE: &str = "otlp.service.name.source";
/// What stands in for `service.name`, the first that is there.
const STAND_INS: [&str; 3] = ["faas.name", "k8s.deployment.name", "process.executable.name"];

/// Sorted by key, as Zipkin has them.
type Tags<'a> = BTreeMap<Cow<'a, str>, Cow<'a, str>>;

#[derive(Debug)]
pub(super) struct ZipkinSpan<'a> {
    pub(super) trace_id: TraceId,
    pub(super) parent: Option<SpanId>,
    pub(super) id: SpanId,
    pub(super) kind: Option<&'static str>,
    pub(super) name: &'a str,
    /// Microseconds since 1970; 0 is absent.
    pub(super) timestamp: u64,
    /// Microseconds; 0 is absent.
    pub(super) duration: u64,
    pub(super) local: Endpoint<'a>,
    pub(super) remote: Endpoint<'a>,
    pub(super) annotations: Vec<Annotation<'a>>,
    pub(super) tags: Tags<'a>,
    pub(super) shared: bool,
}

/// Empty, none and 0 are absent.
#[derive(Debug, Default)]
pub(super) struct Endpoint<'a> {
    pub(super) service: Cow<'a, str>,
    pub(super) ipv4: Option<Ipv4Addr>,
    pub(super) ipv6: Option<Ipv6Addr>,
    pub(super) port: u16,
}

#[derive(Debug)]
pub(super) struct Annotation<'a> {
    pub(super) timestamp: u64,
    pub(super) value: Cow<'a, str>,
}

impl Endpoint<'_> {
    pub(super) fn is_empty(&self) -> bool {
        self.service.is_empty() && self.ipv4.is_none() && self.ipv6.is_none() && self.port == 0
    }
}

/// The spans of a trace, made as they are asked for.
pub(super) fn spans(trace: &Trace) -> impl Iterator<Item = ZipkinSpan<'_>> {
    let clients: HashSet<SpanId> = trace.spans().filter(|s| s.kind == KIND_CLIENT).map(|s| s.span_id).collect();
    let mut all = Vec::new();
    for group in &trace.groups {
        let process = Process::of(&group.resource);
        for scope in &group.scopes {
            all.extend(scope.spans.iter().map(|span| (process.clone(), &*scope.scope, span)));
        }
    }
    all.into_iter().map(move |(process, scope, span)| zipkin_span(process, scope, span, &clients))
}

/// What all spans of a resource say.
#[derive(Debug, Clone)]
struct Process<'a> {
    service: Cow<'a, str>,
    /// The attribute that stands in for the name of the service.
    stand_in: Option<&'static str>,
    resource: &'a Resource,
}

impl<'a> Process<'a> {
    fn of(resource: &'a Resource) -> Self {
        let named = |key: &str| resource.attributes.iter().find(|a| a.key == key).map(|a| value_text(&a.value));
        let service = named("service.name").filter(|name| !name.is_empty());
        let stand_in = STAND_INS.into_iter().find(|key| named(key).is_some()).filter(|_| service.is_none());
        let service = service.or_else(|| stand_in.and_then(named)).unwrap_or_default();
        Self { service, stand_in, resource }
    }

    fn tags(&self) -> impl Iterator<Item = (Cow<'a, str>, Cow<'a, str>)> {
        let stand_in = self.stand_in;
        let others = move |a: &&Attribute| a.key != "service.name" && Some(a.key.as_str()) != stand_in;
        let source = stand_in.map(|key| (Cow::Borrowed(SERVICE_SOURCE), Cow::Borrowed(key)));
        self.resource.attributes.iter().filter(others).map(pair).chain(source)
    }
}

fn pair(attribute: &Attribute) -> (Cow<'_, str>, Cow<'_, str>) {
    (Cow::Borrowed(attribute.key.as_str()), value_text(&attribute.value))
}

fn zipkin_span<'a>(process: Process<'a>, scope: &'a Scope, span: &'a Span, clients: &HashSet<SpanId>) -> ZipkinSpan<'a> {
    let mut tags: Tags<'a> = process.tags().collect();
    let put = |tags: &mut Tags<'a>, key: &'static str, text: &'a str| {
        if !text.is_empty() {
            tags.insert(key.into(), text.into());
        }
    };
    put(&mut tags, "otel.library.name", &scope.name);
    put(&mut tags, "otel.library.version", &scope.version);
    let is_marker = |a: &Attribute| a.key == ABSENT_START && span.start_unix_nano == 0;
    tags.extend(span.attributes.iter().filter(|a| !is_marker(a)).map(pair));
    put(&mut tags, "w3c.tracestate", &span.trace_state);
    let kind = match span.kind {
        KIND_CLIENT => Some("CLIENT"),
        KIND_SERVER => Some("SERVER"),
        KIND_PRODUCER => Some("PRODUCER"),
        KIND_CONSUMER => Some("CONSUMER"),
        _ => None,
    };
    if span.kind == KIND_INTERNAL {
        put(&mut tags, "span.kind", "internal");
    }
    put_status(&mut tags, span, scope);
    for (nth, link) in span.links.iter().enumerate() {
        tags.insert(format!("otlp.link.{nth}").into(), link_text(link).into());
    }
    let local = endpoint(&mut tags, process.service, "net.host.ip", "net.host.port");
    let peer = tags.remove("peer.service").unwrap_or_default();
    let remote = endpoint(&mut tags, peer, "net.peer.ip", "net.peer.port");
    ZipkinSpan {
        trace_id: span.trace_id,
        parent: parent_of(span),
        id: span.span_id,
        kind,
        name: &span.name,
        timestamp: span.start_unix_nano / 1_000,
        duration: micros(span.end_unix_nano.saturating_sub(span.start_unix_nano)),
        local,
        remote,
        annotations: span.events.iter().map(annotation).collect(),
        tags,
        shared: span.kind == KIND_SERVER && clients.contains(&span.span_id),
    }
}

/// Less than one counts as one.
fn micros(nanos: u64) -> u64 {
    if nanos == 0 { 0 } else { (nanos / 1_000).max(1) }
}

fn put_status<'a>(tags: &mut Tags<'a>, span: &'a Span, scope: &Scope) {
    match span.status_code {
        STATUS_ERROR => {
            let error = tags.entry("error".into()).or_insert_with(|| "true".into());
            if *error == "false" {
                *error = "true".into();
            }
            // Reporters of Zipkin have the tag alone.
            if !scope.name.is_empty() || !span.status_message.is_empty() {
                tags.insert("otel.status_code".into(), "Error".into());
            }
        }
        code => {
            // Whatever it says, its presence is a failure to Zipkin.
            tags.remove("error");
            if code == STATUS_OK {
                tags.insert("otel.status_code".into(), "Ok".into());
            }
        }
    }
    if !span.status_message.is_empty() {
        tags.insert("otel.status_description".into(), span.status_message.as_str().into());
    }
}

/// Takes the address out of the tags. What is no address stays there.
fn endpoint<'a>(tags: &mut Tags<'a>, service: Cow<'a, str>, ip: &str, port: &str) -> Endpoint<'a> {
    let mut endpoint = Endpoint { service, ..Endpoint::default() };
    if let Some(text) = tags.get(ip) {
        (endpoint.ipv4, endpoint.ipv6) = (text.parse().ok(), text.parse().ok());
        if endpoint.ipv4.is_some() || endpoint.ipv6.is_some() {
            tags.remove(ip);
        }
    }
    if let Some(number) = tags.get(port).and_then(|text| text.parse().ok()).filter(|number| *number != 0) {
        endpoint.port = number;
        tags.remove(port);
    }
    endpoint
}

fn annotation(event: &Event) -> Annotation<'_> {
    let whole = event.attributes.iter().find(|a| a.key == ANNOTATION).map(|a| value_text(&a.value));
    let value = whole.unwrap_or_else(|| {
        if event.attributes.is_empty() && event.dropped_attributes_count == 0 {
            return Cow::Borrowed(event.name.as_str());
        }
        let attributes = attributes_json(&event.attributes);
        Cow::Owned(format!("{}|{attributes}|{}", event.name, event.dropped_attributes_count))
    });
    Annotation { timestamp: event.time_unix_nano / 1_000, value }
}

fn link_text(link: &Link) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let (trace_id, span_id) = (hex(&link.trace_id), hex(&link.span_id));
    let attributes = attributes_json(&link.attributes);
    format!("{trace_id}|{span_id}|{}|{attributes}|{}", link.trace_state, link.dropped_attributes_count)
}
