//! Cases as data, one file each in `cases/`: a line of prose, then sections, each under a line that begins with `== `.
//!
//! `otlp` is a trace in OTLP/JSON. `exact`, `raw` and `adjusted [skew]` are what is shown of it: as a storage answers, as the query
//! API answers a raw request, and after mending by at most that skew. The text must be the same but for white space between members.
//! `UPDATE_CASES=1` writes the sections after `otlp` anew: read the difference.

use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;
use spanhouse_proto::jaeger::api_v2;

use super::*;
use crate::api::go::parse_duration;
use crate::jaeger::adjust::{adjust, sanitize};
use crate::jaeger::testing::{any_trace, trace_of_json};
use crate::json::Escape;

fn shown(trace: &Trace) -> String {
    let mut out = String::new();
    json::write_trace(&JaegerTrace::of(trace).unwrap(), Escape::Plain, &mut out);
    out
}

fn show(trace: &Trace, form: &str) -> String {
    let mut trace = trace.clone();
    match form.split_once(' ').unwrap_or((form, "0s")) {
        ("exact", _) => {}
        ("raw", _) => sanitize(&mut trace),
        ("adjusted", skew) => {
            sanitize(&mut trace);
            adjust(&mut trace, Duration::from_nanos(parse_duration(skew).unwrap() as u64));
        }
        other => panic!("no such form: {other:?}"),
    }
    shown(&trace)
}

/// Members of the outer objects on lines of their own, inner ones on one line.
fn laid_out(json: &str) -> String {
    let (mut out, mut depth, mut in_text, mut escaped) = (String::new(), 0usize, false, false);
    for c in json.chars() {
        if in_text {
            out.push(c);
            in_text = escaped || c != '"';
            escaped = !escaped && c == '\\';
            continue;
        }
        match c {
            '{' | '[' => {
                depth += 1;
                out.push(c);
            }
            '}' | ']' => {
                depth -= 1;
                out.push(c);
            }
            ',' if depth <= 3 => {
                out.push_str(",\n");
                out.push_str(&"  ".repeat(depth));
            }
            ',' => out.push_str(", "),
            _ => {
                in_text = c == '"';
                out.push(c);
            }
        }
    }
    out
}

fn without_blanks(json: &str) -> String {
    let (mut in_text, mut escaped) = (false, false);
    let keep = |c: &char| {
        let blank = !in_text && c.is_ascii_whitespace();
        in_text = if in_text { escaped || *c != '"' } else { *c == '"' };
        escaped = in_text && !escaped && *c == '\\';
        !blank
    };
    json.chars().filter(keep).collect()
}

#[test]
fn cases() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/jaeger/model/cases");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() > 10);
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let mut sections = text.split("\n== ");
        let mut updated = sections.next().unwrap().to_owned();
        let mut trace = Trace::default();
        for section in sections {
            let (head, body) = section.split_once('\n').unwrap();
            if head == "otlp" {
                trace = trace_of_json(body);
                updated.push_str(&format!("\n== {section}"));
                continue;
            }
            let got = show(&trace, head);
            if std::env::var_os("UPDATE_CASES").is_some() {
                updated = format!("{}\n\n== {head}\n{}\n", updated.trim_end(), laid_out(&got));
            } else {
                assert_eq!(got, without_blanks(body), "{} == {head}", file.display());
            }
            // What is laid out by people is read as what was written.
            assert_eq!(without_blanks(&laid_out(&got)), got);
        }
        if std::env::var_os("UPDATE_CASES").is_some() {
            std::fs::write(&file, updated).unwrap();
        }
    }
}

#[test]
fn texts_of_values() {
    let text = |value: Value| value_text(&value).into_owned();
    let cases = [
        (Value::Empty, ""),
        (Value::Str("a<b".into()), "a<b"),
        (Value::Bool(true), "true"),
        (Value::Int(-7), "-7"),
        (Value::Double(72.5), "72.5"),
        (Value::Double(3.0), "3"),
        (Value::Double(1e-7), "1e-7"),
        (Value::Double(1e21), "1e+21"),
        (Value::Double(f64::NAN), "NaN"),
        (Value::Double(f64::INFINITY), "Infinity"),
        (Value::Double(f64::NEG_INFINITY), "-Infinity"),
        (Value::Bytes(vec![0, 0, 0x30, 0x39]), "AAAwOQ=="),
        (Value::Array(vec![]), "[]"),
        (
            Value::Array(vec![Value::Str("<&>".into()), Value::Int(1), Value::Empty, Value::Bytes(vec![1])]),
            r#"["<&>",1,null,"AQ=="]"#,
        ),
        (
            Value::Map(vec![
                ("b".into(), Value::Int(1)),
                ("a".into(), Value::Bool(false)),
                ("b".into(), Value::Map(vec![("x".into(), Value::Double(0.5))])),
            ]),
            r#"{"a":false,"b":{"x":0.5}}"#,
        ),
        // A string of a newer form: an unknown field behind it.
        (Value::Raw(vec![0x0a, 1, b'x', 0x98, 0x06, 0x01]), "x"),
        (Value::RawPair(vec![0x0a, 1, b'k', 0x12, 3, 0x0a, 1, b'y', 0x98, 0x06, 0x01]), "y"),
        (Value::Raw(vec![0xff]), ""),
    ];
    for (value, expected) in cases {
        assert_eq!(text(value.clone()), expected, "{value:?}");
    }
}

#[test]
fn html_is_escaped_where_asked() {
    let trace = trace_of_json(r#"{"resourceSpans":[{"scopeSpans":[{"spans":[{"name":"<a>"}]}]}]}"#);
    let of = JaegerTrace::of(&trace).unwrap();
    let (mut html, mut plain) = (String::new(), String::new());
    json::write_trace(&of, Escape::Html, &mut html);
    json::write_trace(&of, Escape::Plain, &mut plain);
    assert!(html.contains(r#""operationName":"\u003ca\u003e""#), "{html}");
    assert!(plain.contains(r#""operationName":"<a>""#), "{plain}");
}

#[test]
fn an_empty_trace_has_no_view() {
    assert!(JaegerTrace::of(&Trace::default()).is_none());
}

#[test]
fn messages_keep_nanoseconds_and_types() {
    let trace = trace_of_json(
        r#"{"resourceSpans":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"s"}}]},"scopeSpans":[{"spans":[
            {"traceId":"0a0000000000000000000000000000ff","spanId":"02","parentSpanId":"01","name":"op","flags":257,
             "startTimeUnixNano":"1700000000123456789","endTimeUnixNano":"1700000001000000001",
             "attributes":[{"key":"i","value":{"intValue":"-5"}},{"key":"b","value":{"bytesValue":"AQI="}}],
             "events":[{"timeUnixNano":"1700000000200000001","name":"e"}]}]}]}]}"#,
    );
    let of = JaegerTrace::of(&trace).unwrap();
    let spans: Vec<_> = proto::spans(&of).collect();
    let span = &spans[0];
    assert_eq!(span.trace_id, [10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255]);
    assert_eq!(span.references[0].span_id, [0, 0, 0, 0, 0, 0, 0, 1]);
    assert_eq!(span.start_time.unwrap(), prost_types::Timestamp { seconds: 1_700_000_000, nanos: 123_456_789 });
    assert_eq!(span.duration.unwrap(), prost_types::Duration { seconds: 0, nanos: 876_543_212 });
    assert_eq!(span.flags, 1);
    assert_eq!(span.process.as_ref().unwrap().service_name, "s");
    let types: Vec<_> = span.tags.iter().map(|tag| (tag.key.as_str(), tag.v_type(), tag.v_int64)).collect();
    assert_eq!(types, [("i", api_v2::ValueType::Int64, -5), ("b", api_v2::ValueType::Binary, 0)]);
    assert_eq!(span.logs[0].timestamp.unwrap().nanos, 200_000_001);
    assert_eq!(span.logs[0].fields[0].v_str, "e");
}

fn invariants(trace: &Trace) -> Result<(), TestCaseError> {
    let of = JaegerTrace::of(trace).unwrap();
    let written = shown(trace);
    let json: serde_json::Value =
        serde_json::from_str(&written).map_err(|e| TestCaseError::fail(format!("{e}: {written}")))?;
    let spans = json["spans"].as_array().unwrap();
    prop_assert_eq!(spans.len(), trace.spans().count());
    for span in spans {
        prop_assert!(json["processes"].get(span["processID"].as_str().unwrap()).is_some());
        for list in ["references", "tags", "logs"] {
            prop_assert!(span[list].is_array());
        }
        prop_assert!(span["warnings"].as_array().is_none_or(|warnings| !warnings.is_empty()));
        prop_assert!(span["duration"].as_i64().unwrap() >= 0);
    }
    // The first span names the first process, and so on.
    let mut named = 0;
    for span in of.spans() {
        prop_assert!(span.process <= named);
        named = named.max(span.process + 1);
    }
    prop_assert_eq!(named, of.processes.len());
    prop_assert_eq!(proto::spans(&of).count(), spans.len());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_trace_is_shown(trace in any_trace(), skew in prop_oneof![Just(0u64), 0u64..1000, any::<u64>()]) {
        invariants(&trace)?;
        let mut shown = trace;
        sanitize(&mut shown);
        invariants(&shown)?;
        for span in shown.spans() {
            prop_assert!(!span.name.is_empty());
            prop_assert!(span.end_unix_nano > span.start_unix_nano || span.start_unix_nano == u64::MAX);
        }
        let count = shown.spans().count();
        adjust(&mut shown, Duration::from_nanos(skew));
        prop_assert!(shown.spans().count() <= count);
        prop_assert!(shown.groups.iter().all(|g| !g.scopes.is_empty() && g.scopes.iter().all(|s| !s.spans.is_empty())));
        invariants(&shown)?;
    }
}
