//! `/api/v3`: what newer versions of Jaeger UI and Grafana ask. Traces are OTLP/JSON.
//!
//! Parameters have two spellings; the newer one is looked up first, and a refusal names the one that was used. Beyond what a stock Jaeger
//! serves there are dependencies and searches by POST, as its published description has them.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use futures::StreamExt as _;
use serde_json::Value as Json;
use spanhouse_common::time::{TimeRange, UnixNanos};

use super::answer::{Form, Traces, respond};
use super::dependencies::write_latency;
use super::error::{Refusal, V3};
use super::names::{list, operations_of_kind, write_operation};
use super::params::{DEFAULT_LIMIT, Pairs, Params, Segment, bound, hint, json_texts, trace_id_of};
use super::{HttpDeps, body};
use crate::api::go;
use crate::jaeger::{Answer, TraceSearch, TraceSummary, filter};
use crate::json::{Object, push_quoted_int, push_str};

const NO_TRACES: &str = "No traces found";

pub(super) async fn services(State(deps): State<HttpDeps>, headers: HeaderMap) -> Result<Response, V3> {
    let Answer { found, partial } = deps.queries.shown_services(&deps.tenants(&headers)?).await?;
    let services = list(&found, |name, out| push_str(name, out));
    Ok(respond(format!("{{\"services\":{services}}}"), false, partial).await?)
}

pub(super) async fn operations(State(deps): State<HttpDeps>, pairs: Pairs, headers: HeaderMap) -> Result<Response, V3> {
    let tenants = deps.tenants(&headers)?;
    let params = Params::new(pairs);
    let service = params.get("service").unwrap_or_default();
    let kind = params.any(&["spanKind", "span_kind"]).map(|(_, word)| word);
    let Answer { found, partial } = operations_of_kind(&deps, &tenants, service, kind).await?;
    let operations = list(&found, |operation, out| write_operation(operation, "internal", out));
    Ok(respond(format!("{{\"operations\":{operations}}}"), false, partial).await?)
}

pub(super) async fn trace(
    State(deps): State<HttpDeps>,
    id: Segment,
    pairs: Pairs,
    headers: HeaderMap,
) -> Result<Response, V3> {
    let tenants = deps.tenants(&headers)?;
    let params = Params::new(pairs);
    let id = trace_id_of(id).map_err(|why| Refusal::malformed("trace_id", why))?;
    let start = time(&params, &["startTime", "start_time"])?;
    let end = time(&params, &["endTime", "end_time"])?;
    let raw = flag(&params, &["rawTraces", "raw_traces"])?;
    let mut traces = Traces::new(&deps.queries, Form::Otlp);
    if let Some(whole) = deps.queries.trace(&tenants, id, hint(start, end)).await? {
        traces.add(&deps.queries, whole, raw).await?;
    }
    Ok(result(traces).await?)
}

pub(super) async fn traces(State(deps): State<HttpDeps>, pairs: Pairs, headers: HeaderMap) -> Result<Response, V3> {
    let tenants = deps.tenants(&headers)?;
    let params = Params::new(pairs);
    let search = read(&params)?;
    Ok(find_traces(&deps, TraceSearch { tenants, ..search }, flag(&params, &RAW_TRACES)?).await?)
}

pub(super) async fn post_traces(State(deps): State<HttpDeps>, headers: HeaderMap, body: Body) -> Result<Response, V3> {
    let tenants = deps.tenants(&headers)?;
    let params = posted(&deps, &headers, body).await?;
    let search = read(&params)?;
    Ok(find_traces(&deps, TraceSearch { tenants, ..search }, flag(&params, &RAW_TRACES)?).await?)
}

pub(super) async fn summaries(State(deps): State<HttpDeps>, pairs: Pairs, headers: HeaderMap) -> Result<Response, V3> {
    let tenants = deps.tenants(&headers)?;
    let search = read(&Params::new(pairs))?;
    Ok(find_summaries(&deps, TraceSearch { tenants, ..search }).await?)
}

pub(super) async fn post_summaries(State(deps): State<HttpDeps>, headers: HeaderMap, body: Body) -> Result<Response, V3> {
    let tenants = deps.tenants(&headers)?;
    let search = read(&posted(&deps, &headers, body).await?)?;
    Ok(find_summaries(&deps, TraceSearch { tenants, ..search }).await?)
}

async fn find_traces(deps: &HttpDeps, search: TraceSearch, raw: bool) -> Result<Response, Refusal> {
    let mut traces = Traces::new(&deps.queries, Form::Otlp);
    let mut found = deps.queries.find_whole(search);
    while let Some(whole) = found.next().await {
        traces.add(&deps.queries, whole?, raw).await?;
    }
    result(traces).await
}

async fn result(traces: Traces) -> Result<Response, Refusal> {
    let count = traces.count;
    let (body, partial) = traces.finish(&[]);
    if count == 0 {
        let why = partial.map(|why| format!("; {why}")).unwrap_or_default();
        return Err(Refusal::new(StatusCode::NOT_FOUND, format!("{NO_TRACES}{why}")));
    }
    respond(body, false, partial).await
}

async fn find_summaries(deps: &HttpDeps, search: TraceSearch) -> Result<Response, Refusal> {
    let Answer { found, partial } = deps.queries.find(&search).await?;
    let found: Vec<TraceSummary> = found.into_iter().map(TraceSummary::shown).collect();
    let summaries = list(&found, write_summary);
    respond(format!("{{\"summaries\":{summaries}}}"), false, partial).await
}

fn write_summary(summary: &TraceSummary, out: &mut String) {
    let mut object = Object::open(out);
    push_str(&summary.trace_id.to_string(), object.member("traceId"));
    object.text("rootServiceName", &summary.root_service);
    object.text("rootOperationName", &summary.root_operation);
    push_quoted_int(summary.min_start, object.member("minStartTimeUnixNano"));
    push_quoted_int(summary.max_end, object.member("maxEndTimeUnixNano"));
    object.count("spanCount", summary.spans);
    object.count("errorSpanCount", summary.error_spans);
    object.count("orphanSpanCount", summary.orphan_spans);
    object.list_or_empty("services", &summary.services, |service, out| {
        let mut object = Object::open(out);
        push_str(&service.name, object.member("name"));
        object.count("spanCount", service.spans);
        object.count("errorSpanCount", service.error_spans);
        object.close();
    });
    object.close();
}

pub(super) async fn dependencies(State(deps): State<HttpDeps>, pairs: Pairs, headers: HeaderMap) -> Result<Response, V3> {
    let tenants = deps.tenants(&headers)?;
    let params = Params::new(pairs);
    let start = time(&params, &["startTime", "start_time"])?;
    let end = time(&params, &["endTime", "end_time"])?;
    let (Some(start), Some(end)) = (start, end) else {
        return Err(Refusal::bad("startTime and endTime are required").into());
    };
    if end < start {
        return Err(Refusal::bad("startTime must not be after endTime").into());
    }
    let range = TimeRange { min: UnixNanos(start), max: UnixNanos(end) };
    let Answer { found, partial } = deps.queries.dependencies(&tenants, range).await?;
    let edges = list(&found, |edge, out| {
        let mut object = Object::open(out);
        push_str(&edge.parent, object.member("parent"));
        push_str(&edge.child, object.member("child"));
        push_quoted_int(edge.calls, object.member("callCount"));
        push_quoted_int(edge.errors, object.member("errorCount"));
        write_latency(edge, object.member("latency"));
        object.close();
    });
    Ok(respond(format!("{{\"dependencies\":{edges}}}"), false, partial).await?)
}

const RAW_TRACES: [&str; 2] = ["query.rawTraces", "query.raw_traces"];

/// A search without its tenants.
fn read(params: &Params) -> Result<TraceSearch, Refusal> {
    let text = |names: &[&str]| params.any(names).map(|(_, text)| text.to_owned());
    let start = time(params, &["query.startTimeMin", "query.start_time_min"])?;
    let end = time(params, &["query.startTimeMax", "query.start_time_max"])?;
    let (Some(start), Some(end)) = (start, end) else {
        return Err(Refusal::bad("query.startTimeMin and query.startTimeMax are required"));
    };
    if start >= end {
        return Err(Refusal::bad("query.startTimeMin must be before query.startTimeMax"));
    }
    let duration = |names: &[&str]| match params.any(names) {
        Some((name, text)) => go::parse_duration(text).map(bound).map_err(|why| Refusal::malformed(name, why)),
        None => Ok(None),
    };
    let limit = match params.any(&["query.searchDepth", "query.search_depth", "query.num_traces"]) {
        Some((name, text)) => go::parse_int::<i32>(text, "ParseInt").map_err(|why| Refusal::malformed(name, why))?,
        None => 0,
    };
    let tags = match params.get("query.attributes") {
        Some(text) => json_texts(text).map_err(|why| Refusal::malformed("query.attributes", why))?,
        None => Vec::new(),
    };
    let plain = TraceSearch {
        tenants: Vec::new(),
        service: text(&["query.serviceName", "query.service_name"]),
        operation: text(&["query.operationName", "query.operation_name"]),
        tags,
        start_min: Some(start),
        start_max: Some(end),
        duration_min: duration(&["query.durationMin", "query.duration_min"])?,
        duration_max: duration(&["query.durationMax", "query.duration_max"])?,
        filter: None,
        limit: usize::try_from(limit).ok().filter(|limit| *limit > 0).unwrap_or(DEFAULT_LIMIT),
    };
    let Some(text) = params.get("query.filter") else { return Ok(plain) };
    let bounds =
        TraceSearch { start_min: plain.start_min, start_max: plain.start_max, limit: plain.limit, ..TraceSearch::default() };
    if plain != bounds {
        return Err(Refusal::bad("query.filter stands in place of service name, operation name, attributes and durations"));
    }
    let filter = filter::from_json(text).and_then(|call| filter::condition(&call))?;
    Ok(TraceSearch { filter: Some(filter), ..bounds })
}

/// A moment as in RFC 3339, in nanoseconds since 1970. Grafana leaves the plus of an offset as it is, which then reads as a space.
fn time(params: &Params, names: &[&str]) -> Result<Option<u64>, Refusal> {
    let Some((name, text)) = params.any(names) else { return Ok(None) };
    let mended = match text.rfind(' ') {
        Some(at) if at + "+hh:mm".len() == text.len() => format!("{}+{}", &text[..at], &text[at + 1..]),
        _ => text.to_owned(),
    };
    let wrong = || Refusal::malformed(name, format!("{text:?} is not a time as in 2006-01-02T15:04:05.999999999Z"));
    go::parse_rfc3339(&mended).map(Some).ok_or_else(wrong)
}

fn flag(params: &Params, names: &[&str]) -> Result<bool, Refusal> {
    match params.any(names) {
        Some((name, text)) => go::parse_bool(text).map_err(|why| Refusal::malformed(name, why)),
        None => Ok(false),
    }
}

/// A posted query, as if its members had been parameters of a URL.
async fn posted(deps: &HttpDeps, headers: &HeaderMap, body: Body) -> Result<Params, Refusal> {
    let held = body::read(deps.queries.deps(), headers, body).await?;
    let wrong = |why: String| Refusal::bad(format!("malformed body: {why}"));
    let document: Json = serde_json::from_slice(&held.bytes).map_err(|error| wrong(error.to_string()))?;
    let members = document.get("query").and_then(Json::as_object).ok_or_else(|| wrong("no object `query`".into()))?;
    let text = |(name, value): (&String, &Json)| {
        let text = match value {
            Json::Null => String::new(),
            Json::String(text) => text.clone(),
            other => other.to_string(),
        };
        (format!("query.{name}"), text)
    };
    Ok(Params::new(axum::extract::Query(members.iter().map(text).collect())))
}

#[cfg(test)]
mod tests {
    use axum::extract::Query;

    use super::*;
    use crate::jaeger::ServiceSummary;
    use crate::test_util::trace_id;

    const START: u64 = 1_700_000_000_000_000_000;
    const TIMES: &str = "query.startTimeMin=2023-11-14T22:13:20Z&query.startTimeMax=2023-11-14T23:13:20Z";

    fn read_url(query: &str) -> Result<TraceSearch, String> {
        let uri = format!("/?{query}").parse().unwrap();
        read(&Params::new(Query::try_from_uri(&uri).unwrap())).map_err(|refusal| refusal.message)
    }

    #[test]
    fn both_spellings() {
        let plain = TraceSearch {
            start_min: Some(START),
            start_max: Some(START + 3_600_000_000_000),
            limit: 100,
            ..TraceSearch::default()
        };
        assert_eq!(read_url(TIMES).unwrap(), plain);
        assert_eq!(read_url(&format!("{TIMES}&query.serviceName=&query.searchDepth=-3&query.attributes=")).unwrap(), plain);
        let full = TraceSearch {
            service: Some("a".into()),
            operation: Some("b".into()),
            tags: vec![("k".into(), "v".into())],
            duration_min: Some(1_500_000_000),
            duration_max: Some(60_000_000_000),
            limit: 7,
            ..plain
        };
        let newer = format!(
            "{TIMES}&query.serviceName=a&query.operationName=b&query.durationMin=1.5s&query.durationMax=1m&query.searchDepth=7\
             &query.attributes=%7B%22k%22:%22v%22%7D"
        );
        assert_eq!(read_url(&newer).unwrap(), full);
        // Grafana's times: an offset whose plus is not escaped.
        let older = "query.start_time_min=2023-11-15T00:13:20+02:00&query.start_time_max=2023-11-15T01:13:20.000000000+02:00\
                     &query.service_name=a&query.operation_name=b&query.duration_min=1500ms&query.duration_max=60s\
                     &query.attributes=%7B%22k%22:%22v%22%7D";
        assert_eq!(read_url(&format!("{older}&query.search_depth=7")).unwrap(), full);
        assert_eq!(read_url(&format!("{older}&query.num_traces=7")).unwrap(), full);
        // The newer spelling wins.
        assert_eq!(read_url(&format!("{newer}&query.service_name=x&query.search_depth=x")).unwrap(), full);
    }

    #[test]
    fn what_cannot_be_read() {
        let required = "query.startTimeMin and query.startTimeMax are required";
        let cases = [
            (String::new(), required),
            ("query.startTimeMin=2023-11-14T22:13:20Z&query.startTimeMax=".into(), required),
            (
                "query.startTimeMin=2023-11-14T22:13:20Z&query.startTimeMax=2023-11-14T22:13:19Z".into(),
                "query.startTimeMin must be before query.startTimeMax",
            ),
            (
                "query.start_time_min=x".into(),
                r#"malformed parameter query.start_time_min: "x" is not a time as in 2006-01-02T15:04:05.999999999Z"#,
            ),
            (
                format!("{TIMES}&query.duration_min=5"),
                r#"malformed parameter query.duration_min: time: missing unit in duration "5""#,
            ),
            (
                format!("{TIMES}&query.num_traces=x"),
                r#"malformed parameter query.num_traces: strconv.ParseInt: parsing "x": invalid syntax"#,
            ),
            (
                format!("{TIMES}&query.attributes=%7B%22a%22:true%7D"),
                r#"malformed parameter query.attributes: the value of "a" is true, which is not a string"#,
            ),
            (
                format!("{TIMES}&query.serviceName=a&query.filter=%7B%7D"),
                "query.filter stands in place of service name, operation name, attributes and durations",
            ),
        ];
        for (query, message) in cases {
            assert_eq!(read_url(&query).unwrap_err(), message, "{query}");
        }
    }

    #[test]
    fn summaries_to_the_byte() {
        let service = |name: &str, spans, error_spans| ServiceSummary { name: name.into(), spans, error_spans };
        let summary = TraceSummary {
            trace_id: trace_id(),
            root_service: "a".into(),
            root_operation: "op".into(),
            min_start: START,
            max_end: START + 1,
            spans: 8,
            error_spans: 1,
            orphan_spans: 2,
            services: vec![service("a", 5, 1), service("b", 3, 0)],
        };
        let mut out = String::new();
        write_summary(&summary, &mut out);
        let expected = concat!(
            r#"{"traceId":"000102030405060708090a0b0c0d0e0f","rootServiceName":"a","rootOperationName":"op","#,
            r#""minStartTimeUnixNano":"1700000000000000000","maxEndTimeUnixNano":"1700000000000000001","#,
            r#""spanCount":8,"errorSpanCount":1,"orphanSpanCount":2,"#,
            r#""services":[{"name":"a","spanCount":5,"errorSpanCount":1},{"name":"b","spanCount":3}]}"#
        );
        assert_eq!(out, expected);
    }
}
