//! The cases in `cases/*.case`: a title, an input wrapped as its first word says, then the expected fields or an error.

use std::fmt::Write;

use super::schema::{self, Kind, Message};
use super::transcode;

/// Prints protobuf bytes by the schema, so that a case can say what it expects.
fn dump(message: &'static Message, mut bytes: &[u8], out: &mut String) {
    while !bytes.is_empty() {
        let tag = varint(&mut bytes);
        let field = message.fields.iter().find(|f| u64::from(f.number) == tag >> 3).expect("a field of the schema");
        let (name, wire) = (field.camel, tag & 7);
        match (field.kind, wire) {
            (Kind::Message(inner), 2) => {
                write!(out, "{name} {{ ").unwrap();
                dump(inner, delimited(&mut bytes), out);
                out.push_str("} ");
            }
            (Kind::Text, 2) => write!(out, "{name}: {:?} ", std::str::from_utf8(delimited(&mut bytes)).unwrap()).unwrap(),
            (Kind::Hex | Kind::Base64, 2) => {
                let hex: String = delimited(&mut bytes).iter().map(|b| format!("{b:02x}")).collect();
                write!(out, "{name}: 0x{hex} ").unwrap();
            }
            (Kind::Bool, 0) => write!(out, "{name}: {} ", varint(&mut bytes) == 1).unwrap(),
            (Kind::Int32 | Kind::Int64 | Kind::Enum(_), 0) => write!(out, "{name}: {} ", varint(&mut bytes) as i64).unwrap(),
            (Kind::Uint32, 0) => write!(out, "{name}: {} ", varint(&mut bytes)).unwrap(),
            (Kind::Fixed32, 5) => write!(out, "{name}: {} ", u32::from_le_bytes(fixed(&mut bytes))).unwrap(),
            (Kind::Fixed64, 1) => write!(out, "{name}: {} ", u64::from_le_bytes(fixed(&mut bytes))).unwrap(),
            (Kind::Double, 1) => write!(out, "{name}: {:?} ", f64::from_le_bytes(fixed(&mut bytes))).unwrap(),
            (kind, wire) => panic!("{name}: {kind:?} in wire type {wire}"),
        }
    }
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let (first, rest) = bytes.split_first().unwrap();
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            break;
        }
    }
    value
}

fn delimited<'a>(bytes: &mut &'a [u8]) -> &'a [u8] {
    let len = varint(bytes) as usize;
    let (value, rest) = bytes.split_at(len);
    *bytes = rest;
    value
}

fn fixed<const N: usize>(bytes: &mut &[u8]) -> [u8; N] {
    let (value, rest) = bytes.split_first_chunk().unwrap();
    *bytes = rest;
    *value
}

/// The JSON around the input of a case and the fields around its expectation, by the case's first word.
fn wrapping(word: &str) -> [&'static str; 4] {
    match word {
        "request" => [""; 4],
        "span" => {
            [r#"{"resourceSpans":[{"scopeSpans":[{"spans":["#, "]}]}]}", "resourceSpans { scopeSpans { spans {", "} } }"]
        }
        "value" => [
            r#"{"resourceSpans":[{"resource":{"attributes":[{"value":"#,
            "}]}}]}",
            "resourceSpans { resource { attributes { value {",
            "} } } }",
        ],
        other => panic!("a case starts with request, span or value, not {other}"),
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn check(title: &str, case: &str) {
    let (input, expected, fails) = match (case.split_once("\n=>"), case.split_once("\n!>")) {
        (Some((input, expected)), None) => (input, expected, false),
        (None, Some((input, expected))) => (input, expected, true),
        _ => panic!("{title}: a case has one `=>` or one `!>`"),
    };
    let input = input.trim();
    let (word, input) = input.split_once(' ').unwrap_or((input, ""));
    let [before, after, fields_before, fields_after] = wrapping(word);
    let mut out = Vec::new();
    match (transcode(format!("{before}{input}{after}").as_bytes(), &mut out), fails) {
        (Ok(()), false) => {
            let mut found = String::new();
            dump(&schema::REQUEST, &out, &mut found);
            assert_eq!(one_line(&found), one_line(&format!("{fields_before} {expected} {fields_after}")), "{title}");
        }
        (Err(error), true) => {
            let text = error.to_string();
            assert!(text.contains(expected.trim()), "{title}: expected {expected:?} in {text:?}");
        }
        (result, _) => panic!("{title}: {result:?}"),
    }
}

#[test]
fn cases() {
    let mut seen = 0;
    for file in [include_str!("cases/shape.case"), include_str!("cases/scalars.case")] {
        for case in file.split("== ").filter(|case| !case.trim().is_empty()) {
            let (title, case) = case.split_once('\n').unwrap();
            check(title, case);
            seen += 1;
        }
    }
    assert!(seen >= 25, "{seen} cases found");
}

/// An attribute value inside `depth` arrays.
fn nested(depth: usize) -> String {
    let value = format!("{}{{}}{}", r#"{"arrayValue":{"values":["#.repeat(depth), "]}}".repeat(depth));
    format!(r#"{{"resourceSpans":[{{"resource":{{"attributes":[{{"key":"k","value":{value}}}]}}}}]}}"#)
}

/// Runs on a stack as small as those of the runtime's threads.
fn transcodes(json: String) -> bool {
    let run = move || transcode(json.as_bytes(), &mut Vec::new()).is_ok();
    std::thread::Builder::new().stack_size(2 << 20).spawn(run).unwrap().join().unwrap()
}

#[test]
fn nesting_is_bounded_and_never_overflows_the_stack() {
    // Six levels to the attribute's value, then three per array.
    for (depth, good) in [(1, true), (32, true), (40, true), (41, false), (100, false), (10_000, false), (1_000_000, false)]
    {
        assert_eq!(transcodes(nested(depth)), good, "{depth} arrays");
    }
    for (depth, good) in [(100, true), (126, true), (127, false), (1_000_000, false)] {
        for (open, close) in [("[", "]"), (r#"{"a":"#, "}")] {
            let json = format!(r#"{{"unknown":{}1{}}}"#, open.repeat(depth), close.repeat(depth));
            assert_eq!(transcodes(json), good, "{depth} unknown {open}");
        }
        assert!(!transcodes("[".repeat(depth)));
    }
}

#[test]
fn lengths_at_the_edges_of_their_prefix() {
    for len in [0, 1, 120, 127, 128, 129, 16_383, 16_384, 2_097_152] {
        let text = "x".repeat(len);
        let mut out = Vec::new();
        transcode(format!(r#"{{"resourceSpans":[{{"schemaUrl":"{text}"}}]}}"#).as_bytes(), &mut out).unwrap();
        let mut rest = &out[..];
        assert_eq!(varint(&mut rest), 1 << 3 | 2);
        let mut inner = delimited(&mut rest);
        assert_eq!(varint(&mut inner), 3 << 3 | 2);
        assert_eq!((delimited(&mut inner).len(), inner.len(), rest.len()), (len, 0, 0));
    }
}

#[test]
fn noise_is_an_error() {
    let good = r#"{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"00","attributes":[{"key":"k"}]}]}]}]}"#;
    for at in 0..good.len() {
        let _ = transcode(&good.as_bytes()[..at], &mut Vec::new()).unwrap_err();
        for byte in [0, b'"', b'{', 0xff] {
            let mut bad = good.as_bytes().to_vec();
            bad[at] = byte;
            // Any answer will do, as long as there is one.
            let _ = transcode(&bad, &mut Vec::new());
        }
    }
}
