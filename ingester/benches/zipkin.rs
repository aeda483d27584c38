//! Zipkin's forms made OTLP, alone. Items are spans.
//!
//! The spans are as exporters write them: every span has the 24 attributes of its process as tags, and in the first model each of them
//! has the endpoint of its process.

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use serde_json::{Map, Value, json};
use spanhouse_ingester::thrift::Kind;
use spanhouse_ingester::thrift::write::{Protocol, Writer};
use spanhouse_ingester::zipkin::{Form, to_otlp};

const SPANS: u64 = 1000;
const START: u64 = 1_790_000_000_000_000;

fn main() {
    divan::main();
}

/// Tags of the nth span: of the process and its own.
fn tags(n: u64) -> Vec<(String, String)> {
    let process = (0..24).map(|at| (format!("k8s.pod.label.number_{at:02}"), format!("value-of-label-{at}")));
    let own = (0..12).map(|at| (format!("http.request.number_{at:02}"), format!("value-{}", n.wrapping_mul(at + 1) % 997)));
    process.chain(own).collect()
}

fn id(n: u64) -> u64 {
    (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn json() -> Vec<u8> {
    let span = |n| {
        json!({
            "traceId": format!("{:016x}{:016x}", id(n / 8), id(n / 8)), "id": format!("{:016x}", id(n)), "kind": "SERVER",
            "name": "GET /cart", "timestamp": START + n, "duration": 1500 + n,
            "localEndpoint": { "serviceName": "frontend", "ipv4": "10.0.0.7" },
            "tags": tags(n).into_iter().map(|(key, value)| (key, value.into())).collect::<Map<_, _>>(),
        })
    };
    (0..SPANS).map(span).collect::<Value>().to_string().into_bytes()
}

fn v1_json() -> Vec<u8> {
    let endpoint = json!({ "serviceName": "frontend", "ipv4": "10.0.0.7" });
    let span = |n| {
        let annotation = |(at, text)| json!({ "timestamp": START + n + at, "value": text, "endpoint": endpoint });
        let binary = |(key, value)| json!({ "key": key, "value": value, "endpoint": endpoint });
        let annotations = [(0, "sr"), (1500, "ss")].map(annotation);
        json!({
            "traceId": format!("{:016x}{:016x}", id(n / 8), id(n / 8)), "id": format!("{:016x}", id(n)),
            "name": "GET /cart", "timestamp": START + n, "duration": 1500 + n, "annotations": annotations,
            "binaryAnnotations": tags(n).into_iter().map(binary).collect::<Value>(),
        })
    };
    (0..SPANS).map(span).collect::<Value>().to_string().into_bytes()
}

fn v1_thrift() -> Vec<u8> {
    fn endpoint(out: &mut Writer, field: i16) {
        out.field(field, Kind::Struct);
        out.begin();
        out.i32_field(1, 0x0a00_0007);
        out.bytes_field(3, b"frontend");
        out.end();
    }

    let mut out = Writer::new(Protocol::Binary);
    out.structs(SPANS as usize);
    for n in 0..SPANS {
        out.begin();
        out.i64_field(1, id(n / 8) as i64);
        out.bytes_field(3, b"GET /cart");
        out.i64_field(4, id(n) as i64);
        out.structs_field(6, 2);
        for (at, text) in [(0, "sr"), (1500, "ss")] {
            out.begin();
            out.i64_field(1, (START + n + at) as i64);
            out.bytes_field(2, text.as_bytes());
            endpoint(&mut out, 3);
            out.end();
        }
        let tags = tags(n);
        out.structs_field(8, tags.len());
        for (key, value) in tags {
            out.begin();
            out.bytes_field(1, key.as_bytes());
            out.bytes_field(2, value.as_bytes());
            out.i32_field(3, 6);
            endpoint(&mut out, 4);
            out.end();
        }
        out.end();
    }
    out.bytes
}

#[divan::bench(args = [Form::Json, Form::V1Json, Form::V1Thrift])]
fn convert(bencher: Bencher<'_, '_>, form: Form) {
    let body = match form {
        Form::V1Json => v1_json(),
        Form::V1Thrift => v1_thrift(),
        _ => json(),
    };
    let read = || to_otlp(form, black_box(&body), 1 << 26, START).expect("spans");
    bencher.counter(ItemsCount::new(SPANS)).counter(BytesCount::new(body.len())).bench_local(read);
}
