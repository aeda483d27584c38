//! The traces that queries are asked about: small, the same in every run but for ids and time, and sent in pieces.

use spanhouse_proto::otlp_common::KeyValue;
use spanhouse_proto::otlp_common::any_value::Value;
use spanhouse_proto::otlp_service::ExportTraceServiceRequest;
use spanhouse_proto::otlp_trace::{Span, Status, span};

use crate::harness::otlp::{attribute, new_id, now, of_service, span_id};
use crate::harness::server::Server;

pub(crate) const SECOND: u64 = 1_000_000_000;
const MILLI: u64 = 1_000_000;

pub(crate) const TRACES: usize = 60;

/// Spans of a trace; their numbers, from 1, are ids too.
pub(crate) const SPANS: usize = 7;

/// Services of the spans, the root first.
const SERVICES: [&str; SPANS] = ["frontend", "frontend", "checkout", "checkout", "checkout", "mail", "mail"];

/// Parents by number; 0 for the root.
const PARENTS: [u64; SPANS] = [0, 1, 2, 3, 3, 1, 6];

#[derive(Debug)]
pub(crate) struct Shop {
    /// Oldest first; spans in the order of their numbers.
    pub(crate) traces: Vec<(u128, Vec<Span>)>,
    /// Nanoseconds, a multiple of ten seconds: when the first trace starts. One starts each second.
    pub(crate) start: u64,
}

fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.to_owned()))
}

fn int(key: &str, value: i64) -> KeyValue {
    attribute(key, Value::IntValue(value))
}

/// How long the root of trace `n` takes, in milliseconds.
pub(crate) fn root_millis(n: usize) -> u64 {
    100 + 50 * n as u64
}

pub(crate) fn fails(n: usize) -> bool {
    n.is_multiple_of(5)
}

impl Shop {
    pub(crate) fn new() -> Self {
        let start = (now() - 300 * SECOND) / (10 * SECOND) * (10 * SECOND);
        Self { traces: (0..TRACES).map(|n| trace(n, start)).collect(), start }
    }

    /// Seconds before the first and after the last span.
    pub(crate) fn range(&self) -> (u64, u64) {
        (self.start / SECOND - 20, self.start / SECOND + 120)
    }

    pub(crate) fn spans(&self) -> usize {
        TRACES * SPANS
    }

    /// Requests with these spans of each trace, a part of the traces each.
    pub(crate) fn requests(&self, spans: std::ops::Range<usize>) -> Vec<ExportTraceServiceRequest> {
        let mut out = Vec::new();
        for traces in self.traces.chunks(TRACES / 4) {
            let mut resource_spans = Vec::new();
            for service in ["frontend", "checkout", "mail"] {
                let of = |n: &usize| SERVICES[*n] == service;
                let chosen: Vec<Span> =
                    traces.iter().flat_map(|(_, all)| spans.clone().filter(of).map(|n| all[n].clone())).collect();
                if !chosen.is_empty() {
                    let mut resource = of_service(service, chosen);
                    let version = text("service.version", if service == "mail" { "2" } else { "1" });
                    resource.resource.get_or_insert_default().attributes.push(version);
                    resource_spans.push(resource);
                }
            }
            out.push(ExportTraceServiceRequest { resource_spans });
        }
        out
    }

    /// Sends these spans of each trace.
    pub(crate) async fn send(&self, server: &Server, spans: std::ops::Range<usize>) {
        for request in self.requests(spans) {
            server.send(&request).await;
        }
    }

    /// Sends everything, each trace over several requests.
    pub(crate) async fn send_all(&self, server: &Server) {
        for spans in [0..2, 2..5, 5..SPANS] {
            self.send(server, spans).await;
        }
    }

    /// Ids of the traces that fulfil a condition, newest first as searches tell them.
    pub(crate) fn newest(&self, wanted: impl Fn(usize) -> bool) -> Vec<u128> {
        self.traces.iter().enumerate().rev().filter(|(n, _)| wanted(*n)).map(|(_, (id, _))| *id).collect()
    }
}

fn trace(n: usize, start: u64) -> (u128, Vec<Span>) {
    let id = new_id();
    // Not on a second: the ends of intervals are tested elsewhere.
    let start = start + n as u64 * SECOND + 7 * MILLI;
    let spans = (1..=SPANS as u64).map(|number| one(id, n, number, start)).collect();
    (id, spans)
}

fn one(id: u128, n: usize, number: u64, start: u64) -> Span {
    let failed = fails(n) && matches!(number, 1 | 3);
    let status = if failed { 500 } else { 200 };
    let user = format!("u{}", n % 7);
    let (name, kind, mut attributes) = match number {
        1 => {
            let (name, method) = if n.is_multiple_of(2) { ("GET /cart", "GET") } else { ("POST /orders", "POST") };
            (name, 2, vec![text("http.method", method), int("http.status_code", status), text("user.id", &user)])
        }
        2 => ("call checkout", 3, vec![text("peer.service", "checkout")]),
        3 => ("PlaceOrder", 2, vec![text("rpc.system", "grpc"), int("http.status_code", status)]),
        4 => ("SELECT stock", 3, vec![text("db.system.name", "postgresql"), text("db.query.text", "SELECT * FROM stock")]),
        5 => ("INSERT orders", 3, vec![text("db.system.name", "postgresql"), text("db.query.text", "INSERT INTO orders")]),
        6 => ("process orders", 5, vec![text("messaging.system", "kafka")]),
        _ => ("smtp send", 1, vec![int("mail.bytes", 1000 + n as i64)]),
    };
    // As a checker of other backends names them.
    attributes.push(text("vulture-string-01", &format!("v{}", n % 4)));
    attributes.push(attribute("load", Value::DoubleValue(n as f64 / 8.0)));
    let event = |time| span::Event {
        time_unix_nano: time,
        name: "exception".into(),
        attributes: vec![text("exception.type", "IOError"), text("exception.message", "connection refused")],
        ..span::Event::default()
    };
    let begin = start + (number - 1) * 3 * MILLI;
    let length = if number == 1 { root_millis(n) * MILLI } else { (12 - number) * 5 * MILLI };
    Span {
        trace_id: id.to_be_bytes().to_vec(),
        span_id: span_id(number),
        parent_span_id: Some(PARENTS[number as usize - 1]).filter(|n| *n > 0).map(span_id).unwrap_or_default(),
        name: name.into(),
        kind,
        start_time_unix_nano: begin,
        end_time_unix_nano: begin + length,
        attributes,
        events: if failed { vec![event(begin + MILLI)] } else { Vec::new() },
        status: Some(if failed { Status { message: "no stock".into(), code: 2 } } else { Status::default() }),
        ..Span::default()
    }
}
