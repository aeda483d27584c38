//! The mapping by cases and against a plain one, in every form; bytes no client would send; the receivers' answers.

mod encode;
mod naive;
mod receivers;

use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::{agent, grpc, http};
use crate::otlp::dump::{Dice, Form, MAX, cases, check_cases, check_harmless, check_limit, dump};
use crate::thrift::write::Protocol;

fn forms() -> [Form; 4] {
    [
        ("thrift", encode::thrift, http::otlp),
        ("compact", |batch| encode::message(Protocol::Compact, batch), agent::otlp),
        ("binary", |batch| encode::message(Protocol::Binary, batch), agent::otlp),
        ("proto", encode::proto, grpc::otlp),
    ]
}

#[test]
fn the_mapping_by_cases() {
    check_cases(
        include_str!("cases/mapping.case"),
        &forms(),
        // `thrift` stands for its three forms.
        |case, form| case.words.contains(&"all") || case.words.contains(&if form == "proto" { form } else { "thrift" }),
        |case, (_, encode, _)| encode(&serde_json::from_str(case.input).unwrap_or_else(|e| panic!("{}: {e}", case.title))),
    );
}

#[test]
fn the_bytes_of_the_reference() {
    for case in cases(include_str!("cases/bytes.case")) {
        let digits: Vec<u8> = case.input.bytes().filter_map(|byte| (byte as char).to_digit(16)).map(|d| d as u8).collect();
        let bytes: Vec<u8> = digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect();
        let convert = match case.words[0] {
            "packet" => agent::otlp,
            "batch" => http::otlp,
            "proto" => grpc::otlp,
            other => panic!("{other}"),
        };
        case.check(case.words[0], convert(&bytes, MAX));
    }
}

/// A batch of anything a client can say.
fn batch(dice: &mut Dice, size: usize) -> Json {
    let ids = ["00000000000000000000000000000001", "ffeeddccbbaa99887766554433221100", "00000000000000008000000000000000"];
    let span_ids = ["0000000000000001", "8000000000000000", "00000000000000ff", "0000000000000000"];
    let known = [
        "span.kind",
        "error",
        "otel.status_code",
        "otel.status_description",
        "http.status_code",
        "http.status_message",
        "otel.scope.name",
        "otel.scope.version",
        "otel.library.name",
        "otel.library.version",
        "event",
        "hostname",
        "host.name",
        "jaeger.version",
        "w3c.tracestate",
        "service.name",
        "k",
    ];
    let words = ["client", "server", "internal", "OK", "error", "ERROR", "404", "503", "lib", "1.0", "a=b"];
    let tag = |dice: &mut Dice| {
        let key = dice.text(&known);
        match dice.below(7) {
            0 => json!([key, "bool", dice.one_in(2)]),
            1 => json!([key, "int64", dice.pick(&[0, -1, 200, 404, 499, 503, i64::MIN, i64::MAX])]),
            2 => json!([key, "float64", dice.pick(&[0.0, -0.5, 1e300, 404.0])]),
            3 => json!([key, "binary", dice.pick(&["", "00ff", "6162"])]),
            4 if dice.one_in(4) => json!([key, 9, null]),
            _ => json!([key, "string", dice.text(&words)]),
        }
    };
    let process = |dice: &mut Dice| json!({ "serviceName": dice.pick(&["", "a", "b", "OTLPResourceNoServiceName"]), "tags": dice.many(size, tag) });
    let reference = |dice: &mut Dice| json!({ "refType": dice.pick(&["CHILD_OF", "FOLLOWS_FROM"]), "traceID": dice.pick(&ids), "spanID": dice.pick(&span_ids) });
    let log =
        |dice: &mut Dice| json!({ "timestamp": dice.pick(&[0_i64, 1_700_000_000_000_000]), "fields": dice.many(size, tag) });
    let span = |dice: &mut Dice| {
        if dice.one_in(20) {
            return json!({});
        }
        json!({
            "traceID": dice.pick(&ids),
            "spanID": dice.pick(&span_ids),
            "parentSpanID": dice.pick(&span_ids),
            "flags": dice.pick(&[0, 1, 2, 3, 9]),
            "operationName": dice.text(&["GET /", "op"]),
            "startTime": dice.pick(&[0_i64, 1, 1_700_000_000_000_001]),
            "duration": dice.pick(&[0_i64, 1, 250, 90_000_000_000]),
            "references": dice.many(3, reference),
            "tags": dice.many(size, tag),
            "logs": dice.many(3, log),
            "warnings": dice.many(2, |dice| dice.text(&["clock skew"]).into()),
            "process": if dice.one_in(3) { process(dice) } else { Json::Null },
        })
    };
    json!({ "process": process(dice), "spans": dice.many(size, span) })
}

proptest! {
    #[test]
    fn every_form_says_what_a_plain_mapping_says(seed: u64, size in 0..7_usize) {
        let batch = batch(&mut Dice(seed), size);
        for (form, encode, convert) in forms() {
            let found = dump(&convert(&encode(&batch), MAX).map_err(|e| TestCaseError::fail(e.to_string()))?);
            let expected = naive::otlp(&batch, form == "proto");
            prop_assert_eq!(&found, &expected, "{}: found {:#}\nof {:#}", form, found, batch);
        }
    }

    #[test]
    fn damaged_bytes_do_no_harm(seed: u64, size in 0..5_usize) {
        let mut dice = Dice(seed);
        let batch = batch(&mut dice, size);
        for (_, encode, convert) in forms() {
            let mut bytes = encode(&batch);
            dice.damage(&mut bytes);
            check_harmless(&bytes, convert, 12);
        }
    }

    #[test]
    fn noise_does_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        for (_, _, convert) in forms() {
            check_harmless(&bytes, convert, 12);
        }
    }
}

#[test]
fn what_becomes_too_large_is_refused() {
    let tags: Vec<Json> = (0..2_000).map(|n| json!([format!("key{n}"), "string", "some value"])).collect();
    let span = json!({ "traceID": "00000000000000000000000000000001", "spanID": "0000000000000001", "tags": tags });
    let batch = json!({ "process": { "serviceName": "a", "tags": [] }, "spans": [span] });
    for (form, encode, convert) in forms() {
        check_limit(form, &encode(&batch), convert);
    }
}
