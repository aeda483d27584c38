//! `/api/quality-metrics`: how complete the traces of a service are.
//!
//! A stock Jaeger answers a made-up sample here. These figures are counted: of the newest traces with a span of the service, how many have
//! all their parents and how many have a root. Jaeger UI asks only if its configuration turns the page on.

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;

use super::HttpDeps;
use super::answer::respond;
use super::error::{Legacy, Refusal};
use super::params::{Pairs, Params};
use crate::jaeger::{TraceSearch, TraceSummary};
use crate::json::{Object, push_f64, push_int, push_str};

const DEFAULT_HOURS: i64 = 24;
const HOUR_NANOS: u64 = 3_600_000_000_000;

/// Traces looked at; the answer says how many there were.
const SAMPLE: usize = 500;

/// Traces named for each result.
const EXAMPLES: usize = 10;

const ABOUT: &str = "https://www.jaegertracing.io/docs/latest/architecture/";

struct Check {
    name: &'static str,
    description: &'static str,
    passes: fn(&TraceSummary) -> bool,
}

const CHECKS: [Check; 2] = [
    Check {
        name: "Parents present",
        description: "No span of the trace has a parent that is missing from it. Missing parents were not sent, not sampled, or are late.",
        passes: |trace| trace.orphan_spans == 0,
    },
    Check {
        name: "Root present",
        description: "The trace has a span without a parent, from which it began.",
        passes: |trace| !trace.root_service.is_empty() || !trace.root_operation.is_empty(),
    },
];

pub(super) async fn quality(State(deps): State<HttpDeps>, pairs: Pairs, headers: HeaderMap) -> Result<Response, Legacy> {
    let tenants = deps.tenants(&headers)?;
    let params = Params::new(pairs);
    let service = params.get("service").ok_or_else(|| Refusal::bad("parameter 'service' is required"))?;
    let hours = match params.int("hours")?.unwrap_or(DEFAULT_HOURS) {
        hours @ 1.. => hours as u64,
        hours => return Err(Refusal::parameter("hours", format!("{hours} is not positive")).into()),
    };
    let queries = deps.queries.deps();
    let now = queries.clock.now().0;
    let search = TraceSearch {
        tenants,
        service: Some(service.to_owned()),
        start_min: Some(now.saturating_sub(hours.saturating_mul(HOUR_NANOS))),
        start_max: Some(now),
        limit: SAMPLE.min(queries.settings.max_limit),
        ..TraceSearch::default()
    };
    let found = deps.queries.find(&search).await?;
    let banner =
        format!("Counted over the newest {} traces with a span of {service} in the last {hours} hours", found.found.len());
    Ok(respond(written(&found.found, &banner), params.pretty(), found.partial).await?)
}

fn written(traces: &[TraceSummary], banner: &str) -> String {
    let mut out = String::new();
    let mut document = Object::open(&mut out);
    push_str(ABOUT, document.member("traceQualityDocumentationLink"));
    let mut text = Object::open(document.member("bannerText"));
    push_str(banner, text.member("value"));
    text.member("styling").push_str("{}");
    text.close();
    document.list_or_empty("scores", &CHECKS, |check, out| {
        let passed = traces.iter().filter(|trace| (check.passes)(trace)).count();
        let mut score = Object::open(out);
        push_str(check.name, score.member("key"));
        push_str(check.name, score.member("label"));
        push_int(100, score.member("max"));
        let part = if traces.is_empty() { 1.0 } else { passed as f64 / traces.len() as f64 };
        push_f64((part * 1000.0).round() / 10.0, score.member("value"));
        score.close();
    });
    document.list_or_empty("metrics", &CHECKS, |check, out| {
        let (passed, failed): (Vec<_>, Vec<_>) = traces.iter().partition(|trace| (check.passes)(trace));
        let mut metric = Object::open(out);
        push_str(check.name, metric.member("name"));
        push_str("Trace completeness", metric.member("category"));
        push_str(check.description, metric.member("description"));
        push_str(ABOUT, metric.member("metricDocumentationLink"));
        push_int(1, metric.member("metricWeight"));
        for (count, examples, traces) in [
            ("passCount", "passExamples", passed),
            ("failureCount", "failureExamples", failed),
            ("exemptionCount", "exemptionExamples", Vec::new()),
        ] {
            push_int(traces.len(), metric.member(count));
            metric.list_or_empty(examples, &traces[..traces.len().min(EXAMPLES)], |trace, out| {
                let mut example = Object::open(out);
                example.member("spanIDs").push_str("[]");
                push_str(&trace.trace_id.to_string(), example.member("traceID"));
                example.close();
            });
        }
        metric.member("details").push_str("[]");
        metric.close();
    });
    document.member("clients").push_str("[]");
    document.close();
    out
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::test_util::trace_id;

    #[test]
    fn traces_are_counted() {
        let trace = |orphan_spans, root: &str| TraceSummary {
            trace_id: trace_id(),
            root_service: root.into(),
            root_operation: String::new(),
            min_start: 1,
            max_end: 2,
            spans: 3,
            error_spans: 0,
            orphan_spans,
            services: Vec::new(),
        };
        let document: Value = serde_json::from_str(&written(&[trace(0, "a"), trace(2, "a"), trace(1, "")], "<b>")).unwrap();
        assert_eq!(document["bannerText"], json!({"value": "<b>", "styling": {}}));
        assert_eq!(document["scores"][0]["value"], json!(33.3));
        assert_eq!(document["scores"][1]["value"], json!(66.7));
        let parents = &document["metrics"][0];
        assert_eq!(
            (&parents["passCount"], &parents["failureCount"], &parents["exemptionCount"]),
            (&json!(1), &json!(2), &json!(0))
        );
        assert_eq!(parents["failureExamples"][0], json!({"spanIDs": [], "traceID": trace_id().to_string()}));
        let empty: Value = serde_json::from_str(&written(&[], "")).unwrap();
        assert_eq!(empty["scores"][0]["value"], json!(100));
    }
}
