//! Searches: a table of cases, and random ones held against the rules told plainly.

use super::*;
use crate::engine::form::string_form;

/// Reads a search as the table has it: words `service=`, `operation=`, `min=`, `max=`, `from=`, `to=`, `limit=` and `tag:key=value`.
pub(super) fn parse_search(text: &str) -> TraceSearch {
    let mut search = TraceSearch { tenants: tenants(), limit: 20, ..TraceSearch::default() };
    for word in text.split_whitespace() {
        let word = word.replace('~', " ");
        let (key, value) = word.split_once('=').unwrap_or_else(|| panic!("{text}"));
        let number = || value.parse::<u64>().unwrap_or_else(|_| panic!("{text}"));
        match key {
            "service" => search.service = Some(value.to_owned()),
            "operation" => search.operation = Some(value.to_owned()),
            "min" => search.duration_min = Some(number()),
            "max" => search.duration_max = Some(number()),
            "from" => search.start_min = Some(number()),
            "to" => search.start_max = Some(number()),
            "limit" => search.limit = number() as usize,
            _ => {
                let (key, value) = word.strip_prefix("tag:").and_then(|tag| tag.split_once("==")).expect("tag:key==value");
                search.tags.push((key.to_owned(), value.to_owned()));
            }
        }
    }
    search
}

#[tokio::test]
async fn searches_find_what_the_table_says() {
    let table = include_str!("../../../cases/jaeger/search.txt");
    let mut rng = StdRng::seed_from_u64(7);
    let (data, cases) = table.split_once("\n---\n").expect("data and cases");
    let spans = parse_spans(data).unwrap();
    for how in [Spread::OneBlock, Spread::OneLive, Spread::Many, Spread::Many, Spread::Many] {
        let queries = queries(spread(&spans, how, &mut rng).await);
        let mut checked = 0;
        for line in cases.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
            let (search, expected) = line.split_once("->").unwrap_or_else(|| panic!("{line}"));
            let found = queries.find(&parse_search(search)).await.unwrap();
            assert_eq!(found.partial, None);
            let ids: Vec<String> =
                found.found.iter().map(|trace| format!("{:x}", u128::from_be_bytes(trace.trace_id.0))).collect();
            assert_eq!(ids.join(" "), expected.trim(), "{how:?}: {line}");
            checked += 1;
        }
        assert!(checked >= 60, "{checked}");
    }
}

#[tokio::test]
async fn a_trace_state_is_a_tag() {
    let mut spans = parse_spans("trace=1 id=1 service=a\ntrace=2 id=2 service=a\ntrace=3 id=3 service=a").unwrap();
    spans[0].span.trace_state = "a=b".into();
    spans[1].span.trace_state = "c=d".into();
    let mut rng = StdRng::seed_from_u64(2);
    for how in [Spread::OneBlock, Spread::OneLive, Spread::Many] {
        let queries = queries(spread(&spans, how, &mut rng).await);
        for (text, expected) in [("a=b", vec![1u128]), ("c=d", vec![2]), ("", vec![]), ("a", vec![])] {
            let tags = vec![("w3c.tracestate".to_owned(), text.to_owned())];
            let search = TraceSearch { tenants: tenants(), tags, limit: 9, ..TraceSearch::default() };
            let found = queries.find(&search).await.unwrap();
            let ids: Vec<u128> = found.found.iter().map(|trace| u128::from_be_bytes(trace.trace_id.0)).collect();
            assert_eq!(ids, expected, "{how:?} {text}");
        }
    }
}

/// The rules, told plainly.
mod plain {
    use super::*;

    fn attributes(stored: &StoredSpan) -> Vec<&[Attribute]> {
        let span = &stored.span;
        let mut all: Vec<&[Attribute]> = vec![&span.attributes, &stored.resource.attributes, &stored.scope.attributes];
        all.extend(span.events.iter().map(|event| &event.attributes[..]));
        all.extend(span.links.iter().map(|link| &link.attributes[..]));
        all
    }

    /// The string forms of a key; where it repeats in one place, the first counts.
    fn forms(stored: &StoredSpan, key: &str) -> Vec<String> {
        let of = |attributes: &[Attribute]| attributes.iter().find(|a| a.key == key).map(|a| string_form(&a.value));
        attributes(stored).into_iter().filter_map(of).collect()
    }

    fn has(stored: &StoredSpan, key: &str, text: &str) -> bool {
        forms(stored, key).iter().any(|form| form == text)
    }

    fn tag(stored: &StoredSpan, key: &str, text: &str) -> bool {
        let span = &stored.span;
        let kinds = ["unspecified", "internal", "server", "client", "producer", "consumer"];
        let attribute = has(stored, key, text);
        match (key, text) {
            ("error", "true") => span.status_code == 2 || attribute,
            ("error", "false") => !tag(stored, key, "true"),
            ("span.kind", "") => span.kind == 0 || attribute,
            ("span.kind", word) => kinds.get(span.kind as usize) == Some(&word) || attribute,
            ("scope.name", name) => stored.scope.name == name || attribute,
            ("otel.status_description", message) => (!message.is_empty() && span.status_message == message) || attribute,
            _ => match key.strip_prefix("resource.") {
                Some(name) => {
                    let own = stored.resource.attributes.iter().find(|a| a.key == name);
                    own.is_some_and(|a| string_form(&a.value) == text) || attribute
                }
                None => attribute,
            },
        }
    }

    /// A comparison of numbers.
    fn compares(stored: &StoredSpan, key: &str, op: &str, number: i64) -> bool {
        let is = |value: f64| match op {
            ">" => value > number as f64,
            ">=" => value >= number as f64,
            "<" => value < number as f64,
            _ => value <= number as f64,
        };
        if op == "!=" {
            return !forms(stored, key).is_empty() && !has(stored, key, &number.to_string());
        }
        let value = |value: &Value| match value {
            Value::Int(value) => is(*value as f64),
            Value::Double(value) => is(*value),
            Value::Str(text) => text.parse().is_ok_and(is),
            _ => false,
        };
        let of = |attributes: &[Attribute]| attributes.iter().find(|a| a.key == key).is_some_and(|a| value(&a.value));
        attributes(stored).into_iter().any(of)
    }

    use spanhouse_common::model::Value;

    /// `compared` are key, operator and number.
    pub(super) fn holds(search: &TraceSearch, compared: &[(&str, &str, i64)], stored: &StoredSpan) -> bool {
        let span = &stored.span;
        let duration = span.end_unix_nano.saturating_sub(span.start_unix_nano);
        let service = stored.resource.service_name().unwrap_or_default();
        let start = span.start_unix_nano;
        search.service.as_ref().is_none_or(|wanted| wanted == service)
            && search.operation.as_ref().is_none_or(|wanted| *wanted == span.name)
            && search.start_min.is_none_or(|min| start >= min)
            && search.start_max.is_none_or(|max| start <= max)
            && search.duration_min.is_none_or(|min| duration >= min)
            && search.duration_max.is_none_or(|max| duration <= max)
            && search.tags.iter().filter(|(key, _)| !key.contains(['<', '>', '!'])).all(|(key, text)| tag(stored, key, text))
            && compared.iter().all(|(key, op, number)| compares(stored, key, op, *number))
    }

    pub(super) fn summary(trace: &[&StoredSpan]) -> TraceSummary {
        let ids: BTreeSet<_> = trace.iter().map(|stored| stored.span.span_id).collect();
        let parent = |stored: &StoredSpan| stored.span.parent_span_id.filter(|id| id.is_valid());
        let is_error = |stored: &StoredSpan| u32::from(stored.span.status_code == 2);
        let mut services: BTreeMap<String, (u32, u32)> = BTreeMap::new();
        for stored in trace {
            let counts = services.entry(stored.resource.service_name().unwrap_or_default().to_owned()).or_default();
            *counts = (counts.0 + 1, counts.1 + is_error(stored));
        }
        // A server that shares its id with a client hangs below that.
        let hangs = |stored: &StoredSpan| {
            stored.span.kind == 2
                && trace.iter().any(|other| other.span.kind == 3 && other.span.span_id == stored.span.span_id)
        };
        let orphans = trace.iter().filter(|s| !hangs(s) && parent(s).is_some_and(|id| !ids.contains(&id))).count();
        TraceSummary {
            trace_id: trace[0].span.trace_id,
            root_service: String::new(),
            root_operation: String::new(),
            min_start: trace.iter().map(|s| s.span.start_unix_nano).min().unwrap(),
            max_end: trace.iter().map(|s| s.span.end_unix_nano).max().unwrap(),
            spans: trace.len() as u32,
            error_spans: trace.iter().map(|s| is_error(s)).sum(),
            orphan_spans: orphans as u32,
            services: services
                .into_iter()
                .map(|(name, (spans, error_spans))| ServiceSummary { name, spans, error_spans })
                .collect(),
        }
    }
}

fn pick<'a, T: ?Sized>(rng: &mut Random, of: &[&'a T]) -> &'a T {
    of[rng.random_range(0..of.len())]
}

type Compared<'a> = Vec<(&'a str, &'a str, i64)>;

fn random_search(rng: &mut Random) -> (TraceSearch, Compared<'static>) {
    let mut search = TraceSearch { tenants: tenants(), limit: rng.random_range(1..5), ..TraceSearch::default() };
    let maybe = |rng: &mut Random, percent: u32| rng.random_range(0..100) < percent;
    search.service = maybe(rng, 30).then(|| pick(rng, &["shop", "cart", "x"]).to_owned());
    search.operation = maybe(rng, 20).then(|| pick(rng, &["GET /", "query", "x"]).to_owned());
    search.start_min = maybe(rng, 30).then(|| BASE + rng.random_range(0..40) * SECOND);
    search.start_max = maybe(rng, 30).then(|| BASE + rng.random_range(20..60) * SECOND);
    search.duration_min = maybe(rng, 20).then(|| pick(rng, &[&1u64, &500, &SECOND]).to_owned());
    search.duration_max = maybe(rng, 20).then(|| pick(rng, &[&500u64, &SECOND, &(90 * SECOND)]).to_owned());
    for _ in 0..rng.random_range(0..3) {
        let (key, texts): (&str, &[&str]) = match rng.random_range(0..10) {
            0 => ("error", &["true", "false"]),
            1 => ("span.kind", &["server", "client", "unspecified", "nothing", ""]),
            2 => ("scope.name", &["lib", "other"]),
            3 => ("otel.status_description", &["boom"]),
            4 => ("resource.a", &["x", "1", "true", "0.5"]),
            _ => (
                pick(rng, &["a", "b", "c", "n", "ok", "odd key", "none"]),
                &[
                    "x",
                    "1",
                    "true",
                    "2",
                    "0.5",
                    "",
                    "200",
                    "-1.5",
                    "AQI=",
                    "[]",
                    r#"{"k":1}"#,
                    r#"[1,"x"]"#,
                    "GET /",
                    "[[1]]",
                ],
            ),
        };
        search.tags.push((key.to_owned(), pick(rng, texts).to_owned()));
    }
    let mut compared = Vec::new();
    if maybe(rng, 25) {
        let (key, op, number) =
            (pick(rng, &["a", "n", "b"]), pick(rng, &[">", ">=", "<", "<=", "!="]), rng.random_range(-1..4));
        compared.push((key, op, number));
        search.tags.push(match op {
            ">" | "<" => (format!("{key}{op}{number}"), "true".to_owned()),
            _ => (format!("{key}{}", op.trim_end_matches('=')), number.to_string()),
        });
    }
    (search, compared)
}

#[tokio::test]
async fn searches_find_what_the_rules_say() {
    let mut rng = StdRng::seed_from_u64(20);
    let mut found_some = 0;
    for _ in 0..600 {
        let rng: &mut Random = &mut rng;
        let spans = generate::data(rng);
        let how = spreads(rng);
        let queries = queries(spread(&spans, how, rng).await);
        let (search, compared) = random_search(rng);
        let mut expected: Vec<TraceSummary> = without_copies(&spans)
            .iter()
            .filter(|trace| trace.iter().any(|stored| plain::holds(&search, &compared, stored)))
            .map(|trace| plain::summary(trace))
            .collect();
        expected.sort_by_key(|trace| (std::cmp::Reverse(trace.min_start), trace.trace_id));
        expected.truncate(search.limit);
        let mut found = queries.find(&search).await.unwrap();
        for trace in &mut found.found {
            // Which span is the root is the engine's to say, and tested there.
            (trace.root_service, trace.root_operation) = (String::new(), String::new());
        }
        assert_eq!(found.found, expected, "{how:?} {search:?}\n{spans:#?}");
        assert_eq!(found.partial, None);
        found_some += usize::from(!expected.is_empty());
        let whole: Vec<WholeTrace> = queries.find_whole(search).map(Result::unwrap).collect().await;
        let ids = |all: &[TraceSummary]| all.iter().map(|trace| trace.trace_id).collect::<Vec<_>>();
        assert_eq!(whole.iter().map(|trace| trace.trace_id).collect::<Vec<_>>(), ids(&expected));
        whole.iter().for_each(|whole| assert_eq!(texts(&whole.trace), texts_of(&spans, whole.trace_id)));
    }
    assert!(found_some > 150, "{found_some}");
}
