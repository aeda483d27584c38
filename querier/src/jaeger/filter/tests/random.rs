//! Random filters over random spans, against the rules told plainly.

use rand::RngExt as _;
use spanhouse_common::model::{Attribute as Stored, Event, Link, StoredSpan};
use spanhouse_proto::jaeger_expression::NestedReference;

use super::*;
use crate::engine::form::string_form;
use crate::naive::edges::without_copies;
use crate::naive::generate::{self, BASE, Random};

/// What an attribute or field may be.
#[derive(Debug, PartialEq, PartialOrd)]
enum Value {
    Text(String),
    Nanos(i64),
}

/// A span, with the event and the link that `some` binds around a call.
#[derive(Clone, Copy)]
struct Bound<'s> {
    stored: &'s StoredSpan,
    event: Option<&'s Event>,
    link: Option<&'s Link>,
}

impl<'s> Bound<'s> {
    fn events(&self) -> Vec<&'s Event> {
        self.event.map_or_else(|| self.stored.span.events.iter().collect(), |event| vec![event])
    }

    fn links(&self) -> Vec<&'s Link> {
        self.link.map_or_else(|| self.stored.span.links.iter().collect(), |link| vec![link])
    }

    /// All values of an operand; none if it is not there.
    fn values(&self, of: &Expression) -> Vec<Value> {
        let StoredSpan { span, resource, scope, .. } = self.stored;
        let form = |key: &str, all: &[Stored]| {
            all.iter().find(|attribute| attribute.key == key).map(|attribute| Value::Text(string_form(&attribute.value)))
        };
        let text = |text: &str| Some(Value::Text(text.to_owned()));
        let unless_empty = |found: &str| text(found).filter(|_| !found.is_empty());
        let one = |value: Option<Value>| value.into_iter().collect::<Vec<_>>();
        let since = |event: &Event| event.time_unix_nano.wrapping_sub(span.start_unix_nano) as i64;
        match of.term.as_ref().expect("a term") {
            Term::Attr(AttributeReference { key, level }) => match level.as_str() {
                "span" => one(form(key, &span.attributes)),
                "resource" => one(form(key, &resource.attributes)),
                "scope" => one(form(key, &scope.attributes)),
                "event" => self.events().iter().filter_map(|event| form(key, &event.attributes)).collect(),
                "link" => self.links().iter().filter_map(|link| form(key, &link.attributes)).collect(),
                _ => form(key, &span.attributes).into_iter().chain(form(key, &resource.attributes)).collect(),
            },
            Term::Field(FieldReference { name, level }) => match (level.as_str(), name.as_str()) {
                ("span", "name") => one(text(&span.name)),
                ("span", "statusMessage") => one(unless_empty(&span.status_message)),
                ("span", "startTime") => vec![Value::Nanos(span.start_unix_nano as i64)],
                ("span", "endTime") => vec![Value::Nanos(span.end_unix_nano as i64)],
                ("resource", "service") => one(unless_empty(resource.service_name().unwrap_or_default())),
                ("scope", "name") => one(unless_empty(&scope.name)),
                ("event", "name") => self.events().iter().filter_map(|event| text(&event.name)).collect(),
                ("event", "time") => self.events().iter().map(|event| Value::Nanos(event.time_unix_nano as i64)).collect(),
                ("event", "timeSinceStart") => self.events().iter().map(|event| Value::Nanos(since(event))).collect(),
                ("link", "spanID") => {
                    let hex = |id: &[u8]| id.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
                    self.links().iter().filter_map(|link| text(&hex(&link.span_id))).collect()
                }
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    /// A constant as what it is compared with.
    fn constant(of: &Expression, written: &str) -> Value {
        match &of.term {
            Some(Term::Field(field)) if field.name.ends_with("ime") => {
                Value::Nanos(parse_rfc3339(written).expect("a time") as i64)
            }
            Some(Term::Field(field)) if field.name == "timeSinceStart" => {
                Value::Nanos(parse_duration(written).expect("a duration"))
            }
            _ => Value::Text(written.to_owned()),
        }
    }

    fn holds(&self, call: &Call) -> bool {
        let inner = |arg: &Expression| match &arg.term {
            Some(Term::Call(call)) => self.holds(call),
            other => panic!("{other:?}"),
        };
        let any = |of: &Expression, constant: &str, fits: fn(&Value, &Value) -> bool| {
            let constant = Self::constant(of, constant);
            self.values(of).iter().any(|value| fits(value, &constant))
        };
        let is_there = |of: &Expression| !self.values(of).is_empty();
        let written = |of: &Expression| match &of.term {
            Some(Term::Scalar(scalar)) => vec![scalar.value.clone()],
            Some(Term::List(list)) => list.values.clone(),
            other => panic!("{other:?}"),
        };
        let args = &call.args;
        match call.op.as_str() {
            "and" => args.iter().all(inner),
            "or" => args.iter().any(inner),
            "not" => !inner(&args[0]),
            "exists" => is_there(&args[0]),
            "eq" | "in" => written(&args[1]).iter().any(|text| any(&args[0], text, PartialEq::eq)),
            "ne" | "not_in" => {
                is_there(&args[0]) && !written(&args[1]).iter().any(|text| any(&args[0], text, PartialEq::eq))
            }
            "gt" => any(&args[0], &written(&args[1])[0], |a, b| a > b),
            "lt" => any(&args[0], &written(&args[1])[0], |a, b| a < b),
            "gte" => any(&args[0], &written(&args[1])[0], |a, b| a >= b),
            "lte" => any(&args[0], &written(&args[1])[0], |a, b| a <= b),
            "some" => {
                let Some(Term::Call(inner)) = &args[1].term else { panic!("a call") };
                let span = &self.stored.span;
                match &args[0].term {
                    Some(Term::Nested(nested)) if nested.level == "event" => {
                        span.events.iter().any(|event| Self { event: Some(event), ..*self }.holds(inner))
                    }
                    _ => span.links.iter().any(|link| Self { link: Some(link), ..*self }.holds(inner)),
                }
            }
            other => panic!("{other}"),
        }
    }
}

fn pick<'a>(rng: &mut Random, of: &[&'a str]) -> &'a str {
    of[rng.random_range(0..of.len())]
}

fn expression(term: Term) -> Expression {
    Expression { term: Some(term) }
}

/// A time around those of the data, whose first is 2023-11-14T22:13:20Z.
fn moment(rng: &mut Random) -> String {
    let seconds = BASE / 1_000_000_000 + rng.random_range(0..70);
    format!("2023-11-14T22:{:02}:{:02}Z", seconds / 60 % 60, seconds % 60)
}

/// A condition inside of `some`s that bind `bound`: it names no items of any but the last.
fn random_call(rng: &mut Random, depth: usize, bound: &[&'static str]) -> Call {
    let join = |rng: &mut Random, op: &str, count: usize| {
        call(op, (0..count).map(|_| of(random_call(rng, depth - 1, bound))).collect())
    };
    if depth > 0 {
        match rng.random_range(0..8) {
            0 => return join(rng, "and", 2),
            1 => return join(rng, "or", 2),
            2 => return join(rng, "not", 1),
            3..6 => {
                let free: Vec<&'static str> = ["event", "link"].into_iter().filter(|level| !bound.contains(level)).collect();
                if let Some(level) = free.get(rng.random_range(0..2)) {
                    let inside: Vec<&'static str> = bound.iter().copied().chain([*level]).collect();
                    let nested = expression(Term::Nested(NestedReference { level: (*level).into() }));
                    return call("some", vec![nested, of(random_call(rng, depth - 1, &inside))]);
                }
            }
            _ => {}
        }
    }
    loop {
        let levels = ["", "span", "resource", "scope", "event", "event", "event", "link", "link"];
        let level = pick(rng, &levels);
        if bound.len() > 1 && bound[..bound.len() - 1].contains(&level) {
            continue;
        }
        let (of, is_attribute) = if rng.random_range(0..2) == 0 {
            let key = pick(rng, &["a", "b", "c", "n", "ok"]).into();
            (Term::Attr(AttributeReference { key, level: level.into() }), true)
        } else {
            let name = match level {
                "span" => pick(rng, &["name", "statusMessage", "startTime", "endTime"]),
                "resource" => "service",
                "scope" => "name",
                "event" => pick(rng, &["name", "time", "timeSinceStart"]),
                "link" => "spanID",
                _ => continue,
            };
            (Term::Field(FieldReference { name: name.into(), level: level.into() }), false)
        };
        let of = expression(of);
        let constant = |rng: &mut Random| match &of.term {
            Some(Term::Field(field)) if field.name.ends_with("ime") => moment(rng),
            Some(Term::Field(field)) if field.name == "timeSinceStart" => {
                pick(rng, &["0s", "1ns", "1ms", "1s", "-1ms"]).into()
            }
            Some(Term::Field(field)) if field.name == "spanID" => {
                pick(rng, &["0000000000000101", "0000000000000103"]).into()
            }
            _ => pick(rng, &["x", "y", "1", "true", "2", "GET /", "", "exception", "log", "shop", "lib", "boom"]).into(),
        };
        // How attributes are ordered is a question of its own.
        let ops: &[&str] = if is_attribute {
            &["exists", "eq", "ne", "in", "not_in"]
        } else {
            &["exists", "eq", "ne", "in", "not_in", "gt", "lt", "gte", "lte"]
        };
        return match pick(rng, ops) {
            "exists" => call("exists", vec![of]),
            op @ ("in" | "not_in") => {
                let values = vec![constant(rng), constant(rng)];
                call(op, vec![of, expression(Term::List(List { values, r#type: String::new() }))])
            }
            op => {
                let value = expression(Term::Scalar(Scalar { value: constant(rng), r#type: String::new() }));
                call(op, vec![of, value])
            }
        };
    }
}

#[tokio::test]
async fn filters_find_what_the_rules_say() {
    let mut rng = StdRng::seed_from_u64(5);
    let (mut some, mut found_some) = (0, 0);
    for _ in 0..500 {
        let rng: &mut Random = &mut rng;
        let spans = generate::data(rng);
        let how = [Spread::OneBlock, Spread::OneLive, Spread::Many, Spread::Many][rng.random_range(0..4)];
        let queries = queries(spread(&spans, how, rng).await);
        for _ in 0..4 {
            let call = random_call(rng, 3, &[]);
            let holds = |stored: &&StoredSpan| Bound { stored, event: None, link: None }.holds(&call);
            let mut expected: Vec<_> = without_copies(&spans)
                .iter()
                .filter(|trace| trace.iter().any(holds))
                .map(|trace| (std::cmp::Reverse(trace.iter().map(|s| s.span.start_unix_nano).min()), trace[0].span.trace_id))
                .collect();
            expected.sort();
            let filter = condition(&call).unwrap_or_else(|error| panic!("{error}: {call:?}"));
            let search = TraceSearch { tenants: tenants(), filter: Some(filter), limit: 20, ..TraceSearch::default() };
            let found: Vec<_> = queries.find(&search).await.unwrap().found.iter().map(|trace| trace.trace_id).collect();
            let expected: Vec<_> = expected.into_iter().map(|(_, id)| id).collect();
            assert_eq!(found, expected, "{how:?} {call:#?}\n{spans:#?}");
            some += usize::from(format!("{call:?}").contains("\"some\""));
            found_some += usize::from(!found.is_empty());
        }
    }
    assert!(some > 500 && found_some > 500, "{some} {found_some}");
}
