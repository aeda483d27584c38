//! The mappings by cases and against plain ones, in every form; bytes no reporter would send; the answers of the port.

mod encode;
mod naive;

use axum::body::Body;
use http::Request;
use http_body_util::BodyExt;
use proptest::prelude::*;
use serde_json::{Value as Json, json};
use tower::ServiceExt;

use super::{http as zipkin_http, json as json_v2, json_v1, proto, thrift};
use crate::otlp::dump::{Dice, Form, MAX, check_cases, check_harmless, check_limit, dump};
use crate::receive::metrics::{Outcome, Protocol};
use crate::receive::testing::Bench;

/// The time of spans that have none.
const NOW: u64 = 77_000;

fn text(spans: &Json) -> Vec<u8> {
    spans.to_string().into_bytes()
}

fn forms() -> [Form; 4] {
    [
        ("json", text, json_v2::otlp),
        ("proto", encode::proto, proto::otlp),
        ("v1-json", text, |body, max| json_v1::otlp(body, max, NOW)),
        ("v1-thrift", encode::thrift, thrift::otlp),
    ]
}

#[test]
fn the_mappings_by_cases() {
    for file in [include_str!("cases/v2.case"), include_str!("cases/v1.case")] {
        check_cases(
            file,
            &forms(),
            |case, form| case.words.contains(&form),
            |case, (form, encode, _)| match (serde_json::from_str(case.input), *form) {
                // As it stands, so that numbers and escapes are what the case says.
                (_, "json" | "v1-json") => case.input.as_bytes().to_vec(),
                (Ok(input), _) => encode(&input),
                (Err(error), _) => panic!("{}: {error}", case.title),
            },
        );
    }
}

const IDS: [&str; 3] = ["0000000000000001", "ffeeddccbbaa9988", "00000000000000ff"];
const TRACE_IDS: [&str; 3] = ["0000000000000001", "00000000000000000000000000000001", "ffeeddccbbaa99887766554433221100"];

fn endpoint(dice: &mut Dice) -> Json {
    let mut endpoint = json!({});
    for (key, values) in
        [("serviceName", &["a", "b", ""][..]), ("ipv4", &["10.0.0.1", "192.168.7.255"]), ("ipv6", &["::1", "2001:db8::7"])]
    {
        if dice.one_in(2) {
            endpoint[key] = dice.pick(values).into();
        }
    }
    if dice.one_in(2) {
        endpoint["port"] = dice.pick(&[0, 80, 65_535]).into();
    }
    endpoint
}

/// Makes spans say what the one before them says in `member`, as those of a process do: all of it or all but one.
fn repeat(dice: &mut Dice, mut spans: Json, member: &str) -> Json {
    for at in 1..spans.as_array().map_or(0, Vec::len) {
        if dice.one_in(3) {
            continue;
        }
        spans[at][member] = spans[at - 1][member].clone();
        let differs = dice.one_in(2);
        match &mut spans[at][member] {
            Json::Array(list) if differs && !list.is_empty() => drop(list.remove(dice.below(list.len()))),
            Json::Object(tags) if differs => {
                if let Some(value) = tags.values_mut().last() {
                    *value = dice.text(&["true", "other"]).into();
                }
            }
            _ => {}
        }
    }
    spans
}

/// Spans of today's model.
fn spans_v2(dice: &mut Dice, size: usize) -> Json {
    let known = [
        "error",
        "otel.status_code",
        "otel.status_description",
        "otel.library.name",
        "otel.library.version",
        "otlp.service.name.source",
        "span.kind",
        "w3c.tracestate",
        "host.name",
        "k8s.pod.name",
        "service.name",
        "deployment.environment",
        "hostess",
        "otlp.link.0",
        "otlp.link.127",
        "otlp.link.128",
        "otlp.link.x",
        "http.path",
    ];
    let words = [
        "true",
        "false",
        "Ok",
        "ERROR",
        "STATUS_CODE_ERROR",
        "internal",
        "client",
        "lib",
        "name|{\"a\":1}|2",
        "n|{}|x",
        "00000000000000000000000000000001|0000000000000002|a=b|{\"k\":[1,2.5,true,\"|\"]}|3",
    ];
    let spans = dice.many(size, |dice| {
        let mut span = json!({ "traceId": dice.pick(&TRACE_IDS), "id": dice.pick(&IDS) });
        if dice.one_in(2) {
            span["parentId"] = dice.pick(&IDS).into();
        }
        if dice.one_in(2) {
            span["kind"] = dice.pick(&["CLIENT", "SERVER", "PRODUCER", "CONSUMER"]).into();
        }
        if dice.one_in(2) {
            span["name"] = dice.text(&["get /"]).into();
        }
        for (key, values) in [("timestamp", [0, 1, 1_700_000_000_000_001_u64]), ("duration", [0, 1, 12_345_678])] {
            if dice.one_in(2) {
                span[key] = dice.pick(&values).into();
            }
        }
        for key in ["localEndpoint", "remoteEndpoint"] {
            if dice.one_in(2) {
                span[key] = endpoint(dice);
            }
        }
        let mut tags = json!({});
        for _ in 0..dice.below(size + 1) {
            tags[dice.text(&known)] = dice.text(&words).into();
        }
        span["tags"] = tags;
        let annotation = |dice: &mut Dice| json!({ "timestamp": dice.pick(&[0, 5_u64]), "value": dice.text(&words) });
        span["annotations"] = dice.many(3, annotation);
        span["debug"] = dice.one_in(2).into();
        span
    });
    repeat(dice, spans, "tags")
}

/// Spans of the first model. `typed` values are those of Thrift.
fn spans_v1(dice: &mut Dice, size: usize, typed: bool) -> Json {
    let known = [
        "error",
        "otel.status_code",
        "otel.status_description",
        "census.status_code",
        "census.status_description",
        "opencensus.status_description",
        "http.status_code",
        "http.status_message",
        "lc",
        "sa",
        "k",
    ];
    let spans = dice.many(size, |dice| {
        let mut span = json!({ "traceId": dice.pick(&TRACE_IDS), "id": dice.pick(&IDS), "name": dice.text(&["get"]) });
        if dice.one_in(2) {
            span["parentId"] = dice.pick(&IDS).into();
        }
        for (key, values) in [("timestamp", [0, 1, 1_700_000_000_000_001_u64]), ("duration", [0, 1, 12_345_678])] {
            if dice.one_in(3) {
                span[key] = dice.pick(&values).into();
            }
        }
        span["annotations"] = dice.many(4, |dice| {
            let texts = ["cs", "cr", "ss", "sr", "ms", "mr", "ws", "wr", "retry"];
            let mut annotation = json!({ "timestamp": dice.pick(&[0, 5, 9_u64]), "value": dice.text(&texts) });
            if dice.one_in(2) {
                annotation["endpoint"] = endpoint(dice);
            }
            annotation
        });
        span["binaryAnnotations"] = dice.many(size, |dice| {
            let mut annotation = json!({ "key": dice.text(&known) });
            let kind = if typed { dice.below(8) } else { 6 };
            annotation["value"] = match kind {
                0 => dice.one_in(2).into(),
                1 => dice.pick(&["", "00ff"]).into(),
                2 => dice.pick(&[0, -1, 404, 500]).into(),
                3 => dice.pick(&[0, -70_000, 404]).into(),
                4 => dice.pick(&[0, i64::MIN, 200]).into(),
                5 => dice.pick(&[0.5, -1e300]).into(),
                _ => dice.text(&["0", "1", "2", "404", "500", "OK", "true", "boom"]).into(),
            };
            if typed {
                annotation["type"] = kind.into();
            }
            if dice.one_in(2) {
                annotation["endpoint"] = endpoint(dice);
            }
            annotation
        });
        span
    });
    repeat(dice, spans, "binaryAnnotations")
}

proptest! {
    #[test]
    fn every_form_says_what_a_plain_mapping_says(seed: u64, size in 0..8_usize) {
        let mut dice = Dice(seed);
        for (form, encode, convert) in forms() {
            let spans = match form {
                "json" | "proto" => spans_v2(&mut dice, size),
                _ => spans_v1(&mut dice, size, form == "v1-thrift"),
            };
            let found = convert(&encode(&spans), MAX).map_err(|e| TestCaseError::fail(e.to_string()))?;
            let found = naive::sorted_attributes(dump(&found));
            let expected = match form {
                "json" | "proto" => naive::v2(&spans),
                _ => naive::v1(&spans, (form == "v1-json").then_some(NOW)),
            };
            prop_assert_eq!(&found, &expected, "{}: found {:#}\nof {:#}", form, found, spans);
        }
    }

    #[test]
    fn damaged_bytes_do_no_harm(seed: u64, size in 0..5_usize) {
        let mut dice = Dice(seed);
        for (form, encode, convert) in forms() {
            let spans = if form.starts_with("v1") { spans_v1(&mut dice, size, form == "v1-thrift") } else { spans_v2(&mut dice, size) };
            let mut bytes = encode(&spans);
            dice.damage(&mut bytes);
            check_harmless(&bytes, convert, 24);
        }
    }

    #[test]
    fn noise_does_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        for (_, _, convert) in forms() {
            check_harmless(&bytes, convert, 24);
        }
    }
}

#[test]
fn deep_and_large_json_ends() {
    let deep = format!(r#"[{{"traceId":"1","id":"1","x":{}{}}}]"#, "[".repeat(100_000), "]".repeat(100_000));
    // Skipped without recursion, or refused: either way there is an end.
    let _ = json_v2::otlp(deep.as_bytes(), MAX);
    let link = format!("1|1||{{\"a\":{}{}}}|0", "[".repeat(10_000), "]".repeat(10_000));
    let spans = json!([{ "traceId": "1", "id": "1", "tags": { "otlp.link.0": link } }]);
    dump(&json_v2::otlp(&text(&spans), MAX).unwrap());
    let tags: serde_json::Map<_, _> = (0..2_000).map(|n| (format!("key{n}"), json!("some value"))).collect();
    let spans = json!([{ "traceId": "1", "id": "1", "tags": tags }]);
    check_limit("json", &text(&spans), json_v2::otlp);
}

async fn send(bench: &Bench, path: &str, kind: Option<&str>, body: &[u8]) -> (u16, String) {
    let mut request = Request::post(path);
    if let Some(kind) = kind {
        request = request.header("content-type", kind);
    }
    let router = zipkin_http::router(bench.receiver.clone(), zipkin_http::no_queries());
    let response = router.oneshot(request.body(Body::from(body.to_vec())).unwrap()).await.unwrap();
    let status = response.status().as_u16();
    (status, String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
}

#[tokio::test]
async fn the_port_takes_every_form_on_any_path() {
    let bench = Bench::accepting();
    let v2 = json!([{ "traceId": "1", "id": "2", "name": "n" }]);
    let v1 = json!([{ "traceId": IDS[0], "id": IDS[0], "name": "n" }]);
    for (path, kind, body, protocol) in [
        ("/api/v2/spans", Some("application/json"), text(&v2), Protocol::ZipkinJson),
        ("/", None, text(&v2), Protocol::ZipkinJson),
        ("/api/v2/spans", Some("text/plain"), text(&v2), Protocol::ZipkinJson),
        ("/api/v2/spans", Some("application/x-protobuf"), encode::proto(&v2), Protocol::ZipkinProto),
        ("/zipkin/api/v1/spans", Some("application/json"), text(&v1), Protocol::ZipkinV1Json),
        ("/api/v1/spans", Some("application/x-thrift"), encode::thrift(&v1), Protocol::ZipkinV1Thrift),
    ] {
        let before = bench.metrics.requests(protocol, Outcome::Accepted);
        assert_eq!(send(&bench, path, kind, &body).await, (202, String::new()), "{path} {kind:?}");
        assert_eq!(bench.metrics.requests(protocol, Outcome::Accepted), before + 1, "{path} {kind:?}");
        let request = bench.ingest.requests.lock().pop().unwrap();
        assert_eq!(dump(&request.body)[0]["spans"][0]["name"], "n");
    }
    assert_eq!(send(&bench, "/api/v2/spans", None, b"[]").await.0, 202);
    for body in [&b""[..], b"{}", b"[{}]", b"[1]", b"[{\"traceId\":\"1\",\"id\":\"xyz\"}]", b"[] x"] {
        let (status, said) = send(&bench, "/api/v2/spans", None, body).await;
        assert!(status == 400 && !said.is_empty(), "{status} {said}");
    }
    let (_, said) = send(&bench, "/api/v2/spans", None, b"[{\"traceId\":\"1\"}]").await;
    assert_eq!(said, "valid span id required");
    assert_eq!(bench.memory.used(), 0);

    let get = Request::get("/api/v2/services").body(Body::empty()).unwrap();
    let router = zipkin_http::router(bench.receiver.clone(), zipkin_http::no_queries());
    assert_eq!(router.oneshot(get).await.unwrap().status().as_u16(), 405);
}
