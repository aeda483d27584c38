//! Spans and queries made at random, over one small vocabulary so that they meet. The same seed gives the same.
//!
//! What the language's rules leave open is not asked: arithmetic on event attributes, aggregates over attributes that are
//! no numbers, ordering of ids, ties between labels of several types.

use std::sync::Arc;

use rand::{Rng, RngExt as _};
use spanhouse_common::id::{SpanId, TraceId};
use spanhouse_common::model::{Attribute, Event, Link, Resource, Scope, Span, StoredSpan, Value};

use crate::engine::Grid;
use crate::traceql;

/// Where choices come from: a seed, or what a fuzzer likes.
pub type Random = dyn Rng;

/// When the grid starts; spans start from 5 s before to 5 s after its minute.
pub const BASE: u64 = 1_700_000_000_000_000_000;
const SECOND: u64 = 1_000_000_000;
const MINUTE: u64 = 60 * SECOND;

/// `n` holds only numbers, and `ok` only bools or nothing a query could read.
const KEYS: [&str; 6] = ["a", "b", "c", "n", "ok", "odd key"];
const TEXTS: [&str; 6] = ["x", "y", "GET /", "1", "", "true"];
const INTS: [i64; 8] = [-1, 0, 1, 2, 3, 5, 200, 500];
const FLOATS: [f64; 6] = [0.5, 1.0, 2.0, -1.5, 2.5, 200.0];
const NAMES: [&str; 5] = ["GET /", "query", "x", "y", "render"];
const SERVICES: [&str; 3] = ["shop", "cart", "x"];
const EVENTS: [&str; 3] = ["exception", "log", "x"];

fn chance(rng: &mut Random, percent: u32) -> bool {
    rng.random_range(0..100) < percent
}

fn pick<T: Copy>(rng: &mut Random, of: &[T]) -> T {
    of[rng.random_range(0..of.len())]
}

/// Spans of one to three small traces, as they might arrive.
pub fn data(rng: &mut Random) -> Vec<StoredSpan> {
    let resources: Vec<_> = (0..3).map(|_| Arc::new(resource(rng))).collect();
    let scopes = [Arc::new(Scope::default()), Arc::new(scope(rng))];
    let mut spans: Vec<StoredSpan> = Vec::new();
    for number in 0..rng.random_range(1..=3u128) {
        let trace = TraceId((if number == 2 { u128::MAX - 5 } else { number + 1 }).to_be_bytes());
        let mut ids: Vec<u64> = Vec::new();
        for _ in 0..rng.random_range(1..=12) {
            let mut span = span(rng, trace, &mut ids);
            if chance(rng, 4) && span.kind == 3 {
                // Client and server of one id.
                let server = Span { kind: 2, start_unix_nano: span.start_unix_nano + 1, ..span.clone() };
                spans.push(stored(rng, server, &resources, &scopes));
                span.name = "client".to_owned();
            }
            spans.push(stored(rng, span, &resources, &scopes));
            if chance(rng, 5) {
                let copy = spans.last().map(|span| StoredSpan { maybe_duplicate: true, ..span.clone() });
                spans.extend(copy);
            }
        }
    }
    spans
}

fn stored(rng: &mut Random, span: Span, resources: &[Arc<Resource>], scopes: &[Arc<Scope>]) -> StoredSpan {
    let resource = Arc::clone(&resources[rng.random_range(0..resources.len())]);
    let scope = Arc::clone(&scopes[rng.random_range(0..scopes.len())]);
    StoredSpan { span, resource, scope, maybe_duplicate: false }
}

fn resource(rng: &mut Random) -> Resource {
    let mut attributes = attributes(rng, 2);
    if chance(rng, 85) {
        let value = Value::Str(pick(rng, &SERVICES).to_owned());
        attributes.insert(0, Attribute { key: "service.name".to_owned(), value });
    }
    Resource { attributes, ..Resource::default() }
}

fn scope(rng: &mut Random) -> Scope {
    let version = pick(rng, &["", "1.2"]).to_owned();
    Scope { name: "lib".to_owned(), version, attributes: attributes(rng, 2), ..Scope::default() }
}

fn span(rng: &mut Random, trace_id: TraceId, ids: &mut Vec<u64>) -> Span {
    let id = match ids.last() {
        Some(last) if chance(rng, 3) => *last,
        _ => pick(rng, &[0x100, 0xa000_0000_0000_0000]) + rng.random_range(1..200u64),
    };
    let parent = match rng.random_range(0..100) {
        0..15 => None,
        15..18 => Some(0),
        18..25 => Some(0x77),
        25..28 => Some(id),
        28..31 => Some(0x100 + rng.random_range(1..200u64)),
        _ if ids.is_empty() => None,
        _ => Some(ids[rng.random_range(0..ids.len())]),
    };
    ids.push(id);
    let start_unix_nano = start(rng);
    let durations = [0, 1, 500, 1_000_000, 10_000_000, 100_000_000, SECOND / 2, SECOND, SECOND + 1, 2 * SECOND, 90 * SECOND];
    let events = (0..rng.random_range(0..4usize).saturating_sub(1)).map(|_| event(rng, start_unix_nano)).collect();
    let links = (0..rng.random_range(0..4usize).saturating_sub(2)).map(|_| link(rng)).collect();
    Span {
        trace_id,
        span_id: SpanId(id.to_be_bytes()),
        parent_span_id: parent.map(|id: u64| SpanId(id.to_be_bytes())),
        name: pick(rng, &NAMES).to_owned(),
        kind: rng.random_range(0..6),
        start_unix_nano,
        end_unix_nano: start_unix_nano + pick(rng, &durations),
        attributes: attributes(rng, 4),
        events,
        links,
        status_code: rng.random_range(0..3),
        status_message: pick(rng, &["", "", "boom"]).to_owned(),
        ..Span::default()
    }
}

/// Often on an edge of a bucket, or at the time of another.
fn start(rng: &mut Random) -> u64 {
    let from = BASE - 5 * SECOND;
    match rng.random_range(0..10) {
        0 => BASE + rng.random_range(0..7) * 10 * SECOND,
        1..6 => from + rng.random_range(0..70) * SECOND,
        _ => from + rng.random_range(0..70 * SECOND),
    }
}

fn event(rng: &mut Random, start: u64) -> Event {
    let after = pick(rng, &[0, 1, 1_000_000, SECOND, 3 * SECOND]);
    let time_unix_nano = if chance(rng, 5) { start - 1_000_000 } else { start + after };
    Event { time_unix_nano, name: pick(rng, &EVENTS).to_owned(), attributes: attributes(rng, 3), ..Event::default() }
}

fn link(rng: &mut Random) -> Link {
    Link {
        trace_id: pick(rng, &[1u128, 2, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c]).to_be_bytes().to_vec(),
        span_id: (0x100 + rng.random_range(1..4u64)).to_be_bytes().to_vec(),
        attributes: attributes(rng, 2),
        ..Link::default()
    }
}

fn attributes(rng: &mut Random, most: usize) -> Vec<Attribute> {
    let mut attributes: Vec<Attribute> = Vec::new();
    for _ in 0..rng.random_range(most / 2..=most + 1) {
        let key = pick(rng, &KEYS);
        // Senders seldom repeat keys.
        if attributes.iter().all(|a| a.key != key) || chance(rng, 10) {
            attributes.push(Attribute { key: key.to_owned(), value: value(rng, key) });
        }
    }
    attributes
}

fn value(rng: &mut Random, key: &str) -> Value {
    let usual = match key {
        "n" => return number(rng),
        "ok" if chance(rng, 90) => return Value::Bool(chance(rng, 50)),
        "ok" => return opaque(rng),
        "b" => 1,
        "c" => 2,
        _ => rng.random_range(0..4),
    };
    if chance(rng, 8) {
        return opaque(rng);
    }
    let scalar = |rng: &mut Random| match usual {
        0 => Value::Bool(chance(rng, 50)),
        1 => Value::Int(pick(rng, &INTS)),
        2 => Value::Str(pick(rng, &TEXTS).to_owned()),
        _ => Value::Double(pick(rng, &FLOATS)),
    };
    if chance(rng, 20) { Value::Array((0..rng.random_range(1..4)).map(|_| scalar(rng)).collect()) } else { scalar(rng) }
}

fn number(rng: &mut Random) -> Value {
    if chance(rng, 70) { Value::Int(pick(rng, &INTS)) } else { Value::Double(pick(rng, &FLOATS)) }
}

/// What no query can compare.
fn opaque(rng: &mut Random) -> Value {
    match rng.random_range(0..6) {
        0 => Value::Empty,
        1 => Value::Bytes(vec![1, 2]),
        2 => Value::Map(vec![("k".to_owned(), Value::Int(1))]),
        3 => Value::Array(vec![]),
        4 => Value::Array(vec![Value::Int(1), Value::Str("x".to_owned())]),
        _ => Value::Array(vec![Value::Array(vec![Value::Int(1)])]),
    }
}

/// A grid over the minute from [`BASE`].
pub fn grid(rng: &mut Random) -> Grid {
    let (step, instant) = match rng.random_range(0..4) {
        0 => (MINUTE, true),
        1 => (20 * SECOND, false),
        _ => (10 * SECOND, false),
    };
    Grid { start: BASE, end: BASE + MINUTE, step, instant }
}

/// A valid query, of either kind.
pub fn query(rng: &mut Random) -> String {
    if chance(rng, 60) { search_query(rng) } else { metrics_query(rng) }
}

pub fn search_query(rng: &mut Random) -> String {
    valid(rng, |rng| {
        if !chance(rng, 10) {
            return pipeline(rng);
        }
        let (left, op, right) = (pipeline(rng), spanset_operator(rng), pipeline(rng));
        format!("({left}) {op} ({right})")
    })
}

pub fn metrics_query(rng: &mut Random) -> String {
    valid(rng, |rng| match rng.random_range(0..20) {
        scalar @ 0..2 => {
            let series = series(rng);
            // A difference would make an estimate's error large.
            let may_differ = series.contains("quantile");
            let op = if may_differ { pick(rng, &["*", "/"]) } else { pick(rng, &["+", "-", "*", "/"]) };
            let number = pick(rng, &["2", "0.5", "10"]);
            if scalar == 0 { format!("({series}) {op} {number}") } else { format!("{number} {op} ({series})") }
        }
        2..4 => {
            let by = pick(rng, &["", " by (name)", " by (resource.service.name)", " by (status)"]);
            let other = if chance(rng, 30) { "" } else { by };
            let op = pick(rng, &["+", "-", "*", "/"]);
            format!("({} | rate(){by}) {op} ({} | count_over_time(){other})", pipeline(rng), pipeline(rng))
        }
        4..7 => {
            let by = pick(rng, &["name", "resource.service.name"]);
            let stage = pick(rng, &["| topk(1)", "| topk(2)", "| bottomk(1)", "| bottomk(2)", "> 1", "<= 1", "!= 0"]);
            let next = pick(rng, &["", "", "| topk(2)", "> 0"]);
            format!("{} | count_over_time() by ({by}) {stage} {next}", pipeline(rng))
        }
        _ => series(rng),
    })
}

/// Tries until a query means something: the grammar below does not mind types.
fn valid(rng: &mut Random, make: impl Fn(&mut Random) -> String) -> String {
    loop {
        let query = make(rng);
        if traceql::parse_and_check(&query).is_ok() {
            return query;
        }
    }
}

fn series(rng: &mut Random) -> String {
    let attribute = |rng: &mut Random| {
        pick(
            rng,
            &["duration", "duration", "span.n", ".n", "resource.n", "traceDuration", "span:childCount", "name", "event.n"],
        )
    };
    let function = match rng.random_range(0..30) {
        0..5 => "rate()".to_owned(),
        5..11 => "count_over_time()".to_owned(),
        11..23 => {
            let name = pick(rng, &["min", "max", "sum", "avg", "histogram"]);
            format!("{name}_over_time({})", attribute(rng))
        }
        23..29 => format!("quantile_over_time({}, {})", attribute(rng), pick(rng, &["0", "0.5", "0.9, 0.99", "1"])),
        _ => return format!("{} | compare({{ {} }})", pipeline(rng), condition(rng, 1)),
    };
    let mut by: Vec<&str> = Vec::new();
    let labels = [
        ".a",
        "span.a",
        "resource.a",
        "span.b",
        ".c",
        "name",
        "status",
        "kind",
        "resource.service.name",
        "event:name",
        "span.n",
        "duration",
        "instrumentation:name",
        "rootName",
        "span:childCount",
        "span.\"odd key\"",
    ];
    for _ in 0..rng.random_range(0..4usize) {
        let label = pick(rng, &labels);
        if !by.contains(&label) {
            by.push(label);
        }
    }
    let by = if by.is_empty() { String::new() } else { format!(" by ({})", by.join(", ")) };
    format!("{} | {function}{by}", pipeline(rng))
}

fn pipeline(rng: &mut Random) -> String {
    let mut text = if chance(rng, 70) { spanset(rng, 1) } else { spanset(rng, 2) };
    for _ in 0..rng.random_range(0..5usize).saturating_sub(2) {
        text += &match rng.random_range(0..10) {
            0..2 => format!(" | {}", spanset(rng, 1)),
            2..5 => format!(" | by({})", group(rng)),
            5 => " | coalesce()".to_owned(),
            6 => format!(" | select({}, {})", attribute(rng), attribute(rng)),
            _ => format!(" | {}", scalar(rng)),
        };
    }
    text
}

fn group(rng: &mut Random) -> String {
    let expressions = [
        ".a",
        "span.a",
        "resource.a",
        "span.b",
        ".c",
        "name",
        "status",
        "kind",
        "resource.service.name",
        "event:name",
        "duration > 1s",
        "span:childCount",
        "rootName",
        ".n > 1",
        "span.ok",
    ];
    pick(rng, &expressions).to_owned()
}

fn scalar(rng: &mut Random) -> String {
    let op = pick(rng, &["=", "!=", "<", "<=", ">", ">="]);
    if chance(rng, 50) {
        return format!("count() {} {}", pick(rng, &[">", ">=", "<=", "!=", "="]), rng.random_range(0..4));
    }
    let operand =
        pick(rng, &["duration", "span.n", ".n", "span:childCount", "traceDuration", ".n * 2 + 1", "nestedSetLeft"]);
    let literal = pick(rng, &["0", "1", "2.5", "1s", "500ms", "200", "-1"]);
    format!("{}({operand}) {op} {literal}", pick(rng, &["min", "max", "sum", "avg"]))
}

fn spanset_operator(rng: &mut Random) -> &'static str {
    let operators = ["&&", "||", ">", "<", ">>", "<<", "~", "!>", "!<", "!>>", "!<<", "!~", "&>", "&<", "&>>", "&<<", "&~"];
    pick(rng, &operators)
}

fn spanset(rng: &mut Random, depth: u32) -> String {
    if depth == 0 || chance(rng, 60) {
        return match rng.random_range(0..10) {
            0..2 => "{ }".to_owned(),
            2..7 => format!("{{ {} }}", condition(rng, 1)),
            _ => format!("{{ {} }}", condition(rng, 2)),
        };
    }
    let text = format!("{} {} {}", spanset(rng, depth - 1), spanset_operator(rng), spanset(rng, depth - 1));
    if chance(rng, 30) { format!("({text})") } else { text }
}

/// Something that is true or false of a span.
fn condition(rng: &mut Random, depth: u32) -> String {
    if depth > 0 && chance(rng, 35) {
        let (left, right) = (condition(rng, depth - 1), condition(rng, depth - 1));
        return match rng.random_range(0..10) {
            0..3 => format!("{left} && {right}"),
            3..7 => format!("({left} || {right})"),
            7 => format!("{left} || {right}"),
            8 => format!("!({left})"),
            _ => format!("({left}) = {}", chance(rng, 30)),
        };
    }
    comparison(rng)
}

fn comparison(rng: &mut Random) -> String {
    let op = pick(rng, &["=", "=", "!=", "<", "<=", ">", ">="]);
    match rng.random_range(0..20) {
        0 => pick(rng, &[".ok", "span.ok", "!span.ok", "resource.ok", "true"]).to_owned(),
        1..3 => format!("{} {} nil", attribute(rng), pick(rng, &["=", "!="])),
        3 => format!("{} {op} {}", literal(rng), attribute(rng)),
        4 => format!("{} {op} {}", attribute(rng), attribute(rng)),
        5 => {
            let attribute = pick(rng, &["span.n", ".n", "span.a", "resource.b", "duration", "span:childCount", "-.n"]);
            let arithmetic = pick(rng, &["+", "-", "*", "/", "%", "^"]);
            format!(
                "{attribute} {arithmetic} {} {op} {}",
                pick(rng, &["1", "2", "0.5", "0"]),
                pick(rng, &["0", "1", "4", "2.5"])
            )
        }
        6..8 => {
            let pattern = pick(rng, &["x", "x|y", ".*", "GET.*", "[xy]", "", "1|true", "b.*"]);
            let of = pick(rng, &["name", "rootName", "resource.service.name", "event:name", "statusMessage"]);
            let of = if chance(rng, 50) { of.to_owned() } else { attribute(rng) };
            format!("{of} {} \"{pattern}\"", pick(rng, &["=~", "!~"]))
        }
        8..12 => intrinsic(rng, op),
        12..14 => {
            let event = pick(rng, &["event:name = \"exception\"", "event:name != \"log\"", "event:timeSinceStart > 1ms"]);
            if chance(rng, 60) { format!("{event} && event.{} {op} {}", key(rng), literal(rng)) } else { event.to_owned() }
        }
        14 => {
            let link = pick(rng, &["link:traceID = \"1\"", "link:spanID = \"0000000000000102\"", "link:traceID != \"zz\""]);
            if chance(rng, 40) { format!("{link} && link.{} {op} {}", key(rng), literal(rng)) } else { link.to_owned() }
        }
        _ => {
            let (attribute, literal) = (attribute(rng), literal(rng));
            if literal.starts_with('"') || literal.ends_with('e') {
                format!("{attribute} {} {literal}", pick(rng, &["=", "!=", "!="]))
            } else {
                format!("{attribute} {op} {literal}")
            }
        }
    }
}

fn intrinsic(rng: &mut Random, op: &str) -> String {
    let is = pick(rng, &["=", "!="]);
    match rng.random_range(0..14) {
        0..2 => format!("name {op} \"{}\"", pick(rng, &NAMES)),
        2..4 => format!("duration {op} {}", pick(rng, &["1ms", "1s", "500ms", "1000000", "0.5", "1m"])),
        4 => format!("status {is} {}", pick(rng, &["ok", "error", "unset"])),
        5 => format!("kind {is} {}", pick(rng, &["server", "client", "internal", "unspecified"])),
        6 => format!("resource.service.name {op} \"{}\"", pick(rng, &["shop", "cart", ""])),
        7 => format!("span:childCount {op} {}", rng.random_range(0..3)),
        8 => format!("rootServiceName {op} \"{}\"", pick(rng, &["shop", ""])),
        9 => format!("traceDuration {op} {}", pick(rng, &["1s", "1m", "90s"])),
        10 => format!("{} {op} {}", pick(rng, &["nestedSetLeft", "nestedSetRight"]), rng.random_range(0..6)),
        11 => pick(rng, &["nestedSetParent < 0", "nestedSetParent = 1", "nestedSetParent != -1"]).to_owned(),
        12 => format!("trace:id {is} \"{}\"", pick(rng, &["1", "0002", "zz", "FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFA"])),
        _ => {
            let operand = pick(rng, &["0000000000000101", "102", "0", "A000000000000001", "no"]);
            format!("{} {is} \"{operand}\"", pick(rng, &["span:id", "span:parentID"]))
        }
    }
}

fn key(rng: &mut Random) -> &'static str {
    pick(rng, &["a", "b", "c", "n", "ok", "\"odd key\""])
}

fn attribute(rng: &mut Random) -> String {
    let scope = pick(rng, &[".", ".", "span.", "span.", "span.", "resource.", "event.", "link.", "instrumentation."]);
    format!("{scope}{}", key(rng))
}

fn literal(rng: &mut Random) -> String {
    match rng.random_range(0..5) {
        0..2 => pick(rng, &INTS).to_string(),
        2 => format!("{:?}", pick(rng, &FLOATS)),
        3 => format!("\"{}\"", pick(rng, &TEXTS)),
        _ => chance(rng, 50).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;
    use crate::naive::{metrics, search};
    use crate::traceql::ast::Root;

    #[test]
    fn queries_find_something_and_not_everything() {
        let (mut found, mut all) = (0, 0);
        for seed in 0..500 {
            let rng = &mut StdRng::seed_from_u64(seed);
            let (spans, text) = (data(rng), query(rng));
            let query = traceql::parse_and_check(&text).unwrap();
            let hit = match query.root {
                Root::Spans(_) => search(&query, &spans, None, 100, 100).is_ok_and(|traces| !traces.is_empty()),
                Root::Metrics(_) => metrics(&query, &spans, grid(rng)).is_ok_and(|series| !series.is_empty()),
            };
            found += u32::from(hit);
            all += 1;
        }
        assert!(found * 4 > all && found < all, "{found} of {all}");
    }

    #[test]
    fn a_seed_gives_the_same() {
        let make = || {
            let rng = &mut StdRng::seed_from_u64(7);
            (data(rng), query(rng))
        };
        assert_eq!(make(), make());
    }
}
