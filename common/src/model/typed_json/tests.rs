//! The text of each kind, and that any value comes back.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

fn text_of(value: &Value) -> String {
    let mut out = String::new();
    write_value(value, &mut out);
    out
}

#[test]
fn the_text_of_each_kind() {
    let check = |value: Value, text: &str| {
        assert_eq!(text_of(&value), text);
        assert_eq!(text_of(&parse_value(text).unwrap()), text);
    };
    check(Value::Empty, "null");
    check(Value::Bool(true), "true");
    check(Value::Int(i64::MIN), "-9223372036854775808");
    check(Value::Int(0), "0");
    check(Value::Double(1.0), "1.0");
    check(Value::Double(-0.0), "-0.0");
    check(Value::Double(1e300), "1e300");
    check(Value::Double(f64::MIN_POSITIVE / 4.0), "5.562684646268003e-309");
    check(Value::Double(f64::NAN), r#"{"double":"nan:7ff8000000000000"}"#);
    check(Value::Double(f64::from_bits(0xfff8_0000_0000_0001)), r#"{"double":"nan:fff8000000000001"}"#);
    check(Value::Double(f64::INFINITY), r#"{"double":"inf"}"#);
    check(Value::Double(f64::NEG_INFINITY), r#"{"double":"-inf"}"#);
    check(Value::Str("a\"\\\n\r\t\u{1}\u{7f}<é\u{2028}😀".into()), "\"a\\\"\\\\\\n\\r\\t\\u0001\u{7f}<é\u{2028}😀\"");
    check(Value::Bytes(vec![0, 255]), r#"{"bytes":"AP8="}"#);
    check(Value::Raw(vec![1]), r#"{"otlp":"AQ=="}"#);
    check(Value::RawPair(vec![]), r#"{"pair":""}"#);
    check(Value::Array(vec![Value::Int(1), Value::Array(vec![])]), "[1,[]]");
    let map = Value::Map(vec![("k".into(), Value::Int(1)), ("k".into(), Value::Map(vec![]))]);
    check(map, r#"{"kv":[["k",1],["k",{"kv":[]}]]}"#);
}

#[test]
fn the_text_of_a_resource_and_a_scope() {
    let attributes = vec![
        Attribute { key: "service.name".into(), value: Value::Str("shop".into()) },
        Attribute { key: "a".into(), value: Value::Int(12) },
    ];
    let resource = Resource {
        attributes,
        dropped_attributes_count: 1,
        entity_refs: vec![EntityRef { r#type: "host".into(), id_keys: vec!["h".into()], ..Default::default() }],
        schema_url: "u".into(),
        unknown: vec![1],
        group_unknown: vec![2],
        ordinal: 3,
    };
    let mut text = String::new();
    write_resource(&resource, &mut text);
    let expected = concat!(
        r#"{"attributes":[["service.name","shop"],["a",12]],"dropped":1,"schema_url":"u","#,
        r#""entity_refs":[{"type":"host","id_keys":["h"]}],"unknown":"AQ==","group_unknown":"Ag==","ordinal":3}"#
    );
    assert_eq!(text, expected);

    let scope = Scope { name: "lib".into(), version: "1".into(), ..Default::default() };
    text.clear();
    write_scope(&scope, &mut text);
    assert_eq!(text, r#"{"name":"lib","version":"1"}"#);
    assert_eq!(parse_scope("{}").unwrap(), Scope::default());
}

#[test]
fn foreign_but_valid_json_is_read() {
    assert_eq!(parse_value(" [ 1 , \"\\ud83d\\ude00\\/\" ] ").unwrap(), {
        Value::Array(vec![Value::Int(1), Value::Str("😀/".into())])
    });
    assert_eq!(parse_resource("{ }").unwrap(), Resource::default());
}

#[test]
fn bad_text_is_refused_with_its_place() {
    let bad = [
        "",
        "nul",
        "tru",
        "[1",
        "[1,]",
        "{}",
        "{\"kv\":[[1,2]]}",
        "{\"kv\":[],\"kv\":[]}",
        "{\"x\":1}",
        "\"",
        "\"\\",
        "\"\\u12",
        "\"\\ud800\"",
        "\"\\ud800\\u0041\"",
        "\"\n\"",
        "9223372036854775808",
        "1e999",
        "--1",
        "1 2",
        "{\"bytes\":\"?\"}",
        "{\"double\":\"nan:0000000000000000\"}",
        "{\"double\":\"nan:+ff8000000000000\"}",
        "é",
        "\"\\u+123\"",
        "\"\\u00é\"",
    ];
    for text in bad {
        assert!(parse_value(text).is_err(), "{text}");
    }
    assert_eq!(parse_value("[1,x]"), Err(TypedJsonError { at: 3, what: "expected a value" }));
    assert!(parse_resource("{\"dropped\":-1}").is_err());
    assert!(parse_resource("{\"name\":\"a scope's\"}").is_err());
}

#[test]
fn depth_is_bounded() {
    let nested = |n: usize| "[".repeat(n) + &"]".repeat(n);
    assert!(parse_value(&nested(MAX_PARSE_DEPTH)).is_ok());
    assert_eq!(parse_value(&nested(100_000)).unwrap_err().what, "nested too deep");
    assert_eq!(parse_value(&"{\"kv\":[[\"\",".repeat(100_000)).unwrap_err().what, "nested too deep");
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Empty),
        any::<String>().prop_map(Value::Str),
        "[\\x00-\\x7f]{0,8}".prop_map(Value::Str),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::Int),
        any::<u64>().prop_map(|bits| Value::Double(f64::from_bits(bits))),
        prop_oneof![Just(0.0), Just(-0.0), Just(f64::NAN), Just(-f64::INFINITY)].prop_map(Value::Double),
        any::<i32>().prop_map(|whole| Value::Double(f64::from(whole))),
        vec(any::<u8>(), 0..9).prop_map(Value::Bytes),
        vec(any::<u8>(), 0..9).prop_map(Value::Raw),
        vec(any::<u8>(), 0..9).prop_map(Value::RawPair),
    ];
    leaf.prop_recursive(5, 24, 4, |inner| {
        prop_oneof![vec(inner.clone(), 0..4).prop_map(Value::Array), vec(("[a-c]{0,2}", inner), 0..4).prop_map(Value::Map),]
    })
}

fn any_attributes() -> impl Strategy<Value = Vec<Attribute>> {
    vec((any::<String>(), any_value()).prop_map(|(key, value)| Attribute { key, value }), 0..4)
}

fn any_entity_ref() -> impl Strategy<Value = EntityRef> {
    let keys = || vec(any::<String>(), 0..3);
    (any::<String>(), any::<String>(), keys(), keys(), vec(any::<u8>(), 0..4)).prop_map(
        |(schema_url, r#type, id_keys, description_keys, unknown)| EntityRef {
            schema_url,
            r#type,
            id_keys,
            description_keys,
            unknown,
        },
    )
}

/// As `==`, but a double equals only itself, bit by bit.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Double(a), Value::Double(b)) => a.to_bits() == b.to_bits(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Map(a), Value::Map(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|((ka, a), (kb, b))| ka == kb && same(a, b))
        }
        _ => a == b,
    }
}

fn same_attributes(a: &[Attribute], b: &[Attribute]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.key == b.key && same(&a.value, &b.value))
}

proptest! {
    #[test]
    fn any_value_comes_back(value in any_value()) {
        let text = text_of(&value);
        let back = parse_value(&text).unwrap();
        prop_assert!(same(&value, &back), "{value:?} became {back:?} by {text}");
        prop_assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "not JSON: {text}");
    }

    #[test]
    fn any_resource_and_scope_come_back(
        attributes in any_attributes(),
        entity_refs in vec(any_entity_ref(), 0..3),
        texts in any::<[String; 3]>(),
        counts in any::<[u32; 2]>(),
        unknown in vec(any::<u8>(), 0..5),
        group_unknown in vec(any::<u8>(), 0..5),
    ) {
        let [name, version, schema_url] = texts;
        let [dropped_attributes_count, ordinal] = counts;
        let scope = Scope {
            name, version, attributes, dropped_attributes_count, schema_url, unknown, group_unknown, ordinal,
        };
        let mut text = String::new();
        write_scope(&scope, &mut text);
        let mut back = parse_scope(&text).unwrap();
        prop_assert!(same_attributes(&scope.attributes, &back.attributes));
        back.attributes.clone_from(&scope.attributes);
        let Scope { attributes, schema_url, unknown, group_unknown, .. } = scope.clone();
        // Attributes are equal bit by bit, so what is left may be compared by `==` unless a NaN is in them.
        let mut without = scope;
        without.attributes.clear();
        back.attributes.clear();
        prop_assert_eq!(without, back);

        let resource = Resource {
            attributes, dropped_attributes_count, entity_refs, schema_url, unknown, group_unknown, ordinal,
        };
        text.clear();
        write_resource(&resource, &mut text);
        let mut back = parse_resource(&text).unwrap();
        prop_assert!(same_attributes(&resource.attributes, &back.attributes));
        let mut without = resource;
        without.attributes.clear();
        back.attributes.clear();
        prop_assert_eq!(without, back);
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "[\\[\\]{}\",:a-f0-9\\\\u.é-]{0,40}") {
        let _ = parse_value(&text);
        let _ = parse_resource(&text);
    }
}
