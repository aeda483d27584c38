//! The walk of a request, alone: protobuf bytes in, columns out. Items are spans.
//!
//! The request is of the kind that the shop of `spanhouse loadgen` sends, made here because the loadgen is above this crate.

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use prost::Message;
use spanhouse_ingester::otlp::walk::{WalkOptions, Walker};
use spanhouse_proto::otlp_common::any_value::Value;
use spanhouse_proto::otlp_common::{AnyValue, InstrumentationScope, KeyValue};
use spanhouse_proto::otlp_resource::Resource;
use spanhouse_proto::otlp_service::ExportTraceServiceRequest;
use spanhouse_proto::otlp_trace::{ResourceSpans, ScopeSpans, Span, Status, span};

fn main() {
    divan::main();
}

/// Numbers that look random and are the same in every run.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

fn text(key: &str, value: impl Into<String>) -> KeyValue {
    attribute(key, Value::StringValue(value.into()))
}

fn shop_span(dice: &mut Dice, trace: u64, n: u64) -> Span {
    let start = 1_790_000_000_000_000_000 + dice.below(1_000_000_000);
    let attributes = match n % 3 {
        0 => vec![
            text("http.request.method", ["GET", "POST"][dice.below(2) as usize]),
            text("http.route", format!("/api/v1/orders/{}", dice.below(12))),
            text("url.path", format!("/api/v1/orders/{:08x}", dice.next() as u32)),
            attribute("http.response.status_code", Value::IntValue(200)),
            text("server.address", "frontend.shop.svc"),
            attribute("server.port", Value::IntValue(8080)),
            text("user.id", format!("user-{:05}", dice.below(20_000))),
        ],
        1 => vec![
            text("db.system.name", "postgresql"),
            text("db.namespace", "orders"),
            text("db.query.text", format!("SELECT * FROM orders_{} WHERE id = $1", dice.below(9))),
            text("server.address", "db-1.shop.svc"),
            attribute("db.response.returned_rows", Value::IntValue(dice.below(200) as i64)),
        ],
        _ => vec![
            text("rpc.system", "grpc"),
            text("rpc.service", "shop.Cart"),
            text("rpc.method", ["Get", "Add", "Empty"][dice.below(3) as usize]),
            attribute("rpc.grpc.status_code", Value::IntValue(0)),
            text("network.peer.address", format!("10.0.{}.{}", dice.below(4), dice.below(250))),
            attribute("network.peer.port", Value::IntValue(30_000 + dice.below(20_000) as i64)),
        ],
    };
    let failed = dice.below(50) == 0;
    Span {
        trace_id: (u128::from(trace) << 64 | u128::from(trace.rotate_left(17) | 1)).to_be_bytes().to_vec(),
        span_id: (dice.next() | 1).to_be_bytes().to_vec(),
        parent_span_id: if n == 0 { Vec::new() } else { (dice.next() | 1).to_be_bytes().to_vec() },
        name: ["GET /api/v1/orders/{id}", "SELECT orders", "shop.Cart/Get"][n as usize % 3].into(),
        kind: [2, 3, 3][n as usize % 3],
        start_time_unix_nano: start,
        end_time_unix_nano: start + dice.below(50_000_000),
        attributes,
        events: failed
            .then(|| span::Event {
                time_unix_nano: start + 10,
                name: "exception".into(),
                attributes: vec![text("exception.type", "TimeoutError"), text("exception.message", "no answer in 2 s")],
                ..span::Event::default()
            })
            .into_iter()
            .collect(),
        status: failed.then(|| Status { message: "timeout".into(), code: 2 }),
        flags: 0x101,
        ..Span::default()
    }
}

/// A request of a collector: several services, each with its scopes.
fn request(spans: u64) -> Vec<u8> {
    let mut dice = Dice(1);
    let services = 10.min(spans);
    let resource_spans = (0..services).map(|service| {
        let attributes = vec![
            text("service.name", format!("service-{service}")),
            text("service.version", "1.4.2"),
            text("service.instance.id", format!("{:016x}", dice.next())),
            text("telemetry.sdk.language", "go"),
            text("k8s.pod.name", format!("service-{service}-7f9c{}", dice.below(9))),
        ];
        let mut left = spans / services;
        let mut all = Vec::new();
        while left > 0 {
            let trace = dice.next() | 1;
            let some = left.min(1 + dice.below(8));
            all.extend((0..some).map(|n| shop_span(&mut dice, trace, n)));
            left -= some;
        }
        let scope = InstrumentationScope { name: "otelhttp".into(), version: "0.58.0".into(), ..Default::default() };
        ResourceSpans {
            resource: Some(Resource { attributes, ..Resource::default() }),
            scope_spans: vec![ScopeSpans { scope: Some(scope), spans: all, ..ScopeSpans::default() }],
            ..ResourceSpans::default()
        }
    });
    ExportTraceServiceRequest { resource_spans: resource_spans.collect() }.encode_to_vec()
}

#[divan::bench(args = [50, 2000])]
fn walk(bencher: Bencher<'_, '_>, spans: u64) {
    let body = request(spans);
    let mut walker = Walker::default();
    let rows = walker.walk(&body, WalkOptions::default()).expect("a valid request").batch.len();
    bencher
        .counter(ItemsCount::new(rows))
        .counter(BytesCount::new(body.len()))
        .bench_local(|| walker.walk(black_box(&body), WalkOptions::default()).map(|walked| walked.batch.len()));
}

/// What exporters that make a group of each span send: equal resources and scopes, again and again.
#[divan::bench]
fn walk_a_group_a_span(bencher: Bencher<'_, '_>) {
    let mut request = ExportTraceServiceRequest::decode(&request(2000)[..]).expect("a valid request");
    for group in &mut request.resource_spans {
        let part = group.scope_spans.remove(0);
        group.scope_spans = part.spans.iter().map(|span| ScopeSpans { spans: vec![span.clone()], ..part.clone() }).collect();
    }
    let body = request.encode_to_vec();
    let mut walker = Walker::default();
    bencher
        .counter(ItemsCount::new(2000u32))
        .bench_local(|| walker.walk(black_box(&body), WalkOptions::default()).map(|walked| walked.batch.len()));
}
