//! A table of filters over real sources, and the bounds of what is read.

mod random;

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use spanhouse_proto::jaeger_expression::AttributeReference;

use super::*;
use crate::jaeger::tests::{queries, tenants};
use crate::jaeger::{TraceSearch, TraceSummary};
use crate::naive::cases::parse_spans;
use crate::naive::differential::{Spread, spread};

#[tokio::test]
async fn filters_find_what_the_table_says() {
    let (data, _) = include_str!("../../../cases/jaeger/search.txt").split_once("\n---\n").expect("data");
    let spans = parse_spans(data).unwrap();
    let mut rng = StdRng::seed_from_u64(11);
    let mut wrong = Vec::new();
    for how in [Spread::OneBlock, Spread::OneLive, Spread::Many, Spread::Many, Spread::Many] {
        let queries = queries(spread(&spans, how, &mut rng).await);
        let mut checked = 0;
        for line in include_str!("../../../cases/jaeger/filter.txt").lines() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (text, expected) = line.rsplit_once("->").unwrap_or_else(|| panic!("{line}"));
            let expected = expected.trim();
            checked += 1;
            match from_json(text).and_then(|call| condition(&call)) {
                Ok(filter) => {
                    let search =
                        TraceSearch { tenants: tenants(), filter: Some(filter), limit: 20, ..TraceSearch::default() };
                    let found = queries.find(&search).await.unwrap().found;
                    let id = |trace: &TraceSummary| format!("{:x}", u128::from_be_bytes(trace.trace_id.0));
                    let found = found.iter().map(id).collect::<Vec<_>>().join(" ");
                    if found != expected {
                        wrong.push(format!("{how:?}: {line}: {found}"));
                    }
                }
                Err(error) if !expected.is_empty() && error.to_string().contains(expected) => {}
                Err(error) => wrong.push(format!("{line}: {error}")),
            }
        }
        assert!(checked >= 120, "{checked}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn call(op: &str, args: Vec<Expression>) -> Call {
    Call { op: op.into(), args }
}

fn of(call: Call) -> Expression {
    Expression { term: Some(Term::Call(call)) }
}

fn exists_a() -> Call {
    let attribute = AttributeReference { key: "a".into(), level: String::new() };
    call("exists", vec![Expression { term: Some(Term::Attr(attribute)) }])
}

#[test]
fn depth_and_size_are_bounded() {
    let nested = |depth: usize| (1..depth).fold(exists_a(), |inner, _| call("not", vec![of(inner)]));
    assert!(condition(&nested(MAX_DEPTH)).is_ok());
    assert!(condition(&nested(MAX_DEPTH + 1)).is_err());
    let wide = |width: usize| call("or", vec![of(exists_a()); width]);
    assert!(condition(&wide(MAX_TERMS - 1)).is_ok());
    assert!(condition(&wide(MAX_TERMS)).is_err());
    let text = "{\"op\":\"not\",\"args\":[{\"call\":".repeat(100_000);
    assert!(from_json(&text).is_err(), "no stack of any size");
}
