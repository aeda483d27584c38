//! `GET /api/traces`: traces by one of their spans, or a list of traces by id.

use std::collections::HashSet;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use futures::StreamExt as _;
use spanhouse_common::id::{TenantId, TraceId};

use super::HttpDeps;
use super::answer::{Form, Problem, Traces, respond};
use super::error::{Legacy, Refusal};
use super::params::{DEFAULT_LIMIT, Pairs, Params, bound, json_texts, put_tag, trace_id};
use crate::api::go;
use crate::jaeger::TraceSearch;

/// What a search looks back without `start`.
const LOOK_BACK_NANOS: u64 = 48 * 3_600 * 1_000_000_000;

const WRONG_ORDER: &str = "'maxDuration' should be greater than 'minDuration'";

pub(super) async fn search(State(deps): State<HttpDeps>, pairs: Pairs, headers: HeaderMap) -> Result<Response, Legacy> {
    let tenants = deps.tenants(&headers)?;
    let params = Params::new(pairs);
    let raw = params.bool("raw")?;
    if params.all("traceID").next().is_some() {
        return Ok(by_ids(&deps, tenants, &params, raw).await?);
    }
    let search = read(&params, tenants, deps.queries.deps().clock.now().0)?;
    let mut traces = Traces::new(&deps.queries, Form::Legacy);
    let mut found = deps.queries.find_whole(search);
    while let Some(whole) = found.next().await {
        traces.add(&deps.queries, whole?, raw).await?;
    }
    let (body, partial) = traces.finish(&[]);
    Ok(respond(body, params.pretty(), partial).await?)
}

fn read(params: &Params, tenants: Vec<TenantId>, now: u64) -> Result<TraceSearch, Refusal> {
    let start = params.micros("start")?.unwrap_or(now.saturating_sub(LOOK_BACK_NANOS));
    let end = params.micros("end")?.unwrap_or(now);
    let tags = tags(params)?;
    let limit = match params.get("limit") {
        Some(text) => go::parse_int::<i32>(text, "ParseInt").map_err(|why| Refusal::parameter("limit", why))?,
        None => 0,
    };
    let duration = |name| match params.get(name) {
        Some(text) => go::parse_duration(text).map_err(|why| Refusal::parameter(name, why)),
        None => Ok(0),
    };
    let (shortest, longest) = (duration("minDuration")?, duration("maxDuration")?);
    if longest != 0 && longest < shortest.max(0) {
        return Err(Refusal::bad(WRONG_ORDER));
    }
    let service = params.get("service").ok_or_else(|| Refusal::bad("parameter 'service' is required"))?;
    Ok(TraceSearch {
        tenants,
        service: Some(service.to_owned()),
        operation: params.get("operation").map(str::to_owned),
        tags,
        start_min: Some(start),
        start_max: Some(end),
        duration_min: bound(shortest),
        duration_max: bound(longest),
        filter: None,
        limit: usize::try_from(limit).ok().filter(|limit| *limit > 0).unwrap_or(DEFAULT_LIMIT),
    })
}

fn tags(params: &Params) -> Result<Vec<(String, String)>, Refusal> {
    let mut tags = Vec::new();
    for text in params.all("tag") {
        let (key, value) = text
            .split_once(':')
            .ok_or_else(|| Refusal::bad(format!("malformed 'tag' parameter, expecting key:value, received: {text}")))?;
        put_tag(&mut tags, key.to_owned(), value.to_owned());
    }
    for text in params.all("tags") {
        let pairs = json_texts(text)
            .map_err(|why| Refusal::bad(format!("malformed 'tags' parameter, cannot unmarshal JSON: {why}")))?;
        pairs.into_iter().for_each(|(key, value)| put_tag(&mut tags, key, value));
    }
    Ok(tags)
}

async fn by_ids(deps: &HttpDeps, tenants: Vec<TenantId>, params: &Params, raw: bool) -> Result<Response, Refusal> {
    let hint = params.hint()?;
    let mut ids = Vec::new();
    let mut seen = HashSet::new();
    for text in params.all("traceID") {
        let id = trace_id(text).map_err(|why| Refusal::parameter("traceID", why))?;
        if seen.insert(id) {
            ids.push(id);
        }
    }
    let mut traces = Traces::new(&deps.queries, Form::Legacy);
    let mut missing: HashSet<TraceId> = seen;
    let mut found = deps.queries.traces(tenants, ids.clone(), hint);
    while let Some(whole) = found.next().await {
        let whole = whole?;
        missing.remove(&whole.trace_id);
        traces.add(&deps.queries, whole, raw).await?;
    }
    let problem = |trace_id| Problem { message: "trace not found", trace_id };
    let problems: Vec<Problem> = ids.into_iter().filter(|id| missing.contains(id)).map(problem).collect();
    let (body, partial) = traces.finish(&problems);
    respond(body, params.pretty(), partial).await
}

#[cfg(test)]
mod tests {
    use axum::extract::Query;

    use super::*;

    const NOW: u64 = 1_700_000_000_000_000_000;

    fn read_url(query: &str) -> Result<TraceSearch, String> {
        let uri = format!("/?{query}").parse().unwrap();
        read(&Params::new(Query::try_from_uri(&uri).unwrap()), Vec::new(), NOW).map_err(|refusal| refusal.message)
    }

    #[test]
    fn searches_and_their_defaults() {
        let plain = TraceSearch {
            service: Some("a b".into()),
            start_min: Some(NOW - LOOK_BACK_NANOS),
            start_max: Some(NOW),
            limit: 100,
            ..TraceSearch::default()
        };
        assert_eq!(read_url("service=a+b&lookback=custom&operation=&limit=0&minDuration=0&maxDuration=0s").unwrap(), plain);
        let full = TraceSearch {
            operation: Some("GET /".into()),
            tags: vec![("a".into(), "1:2".into()), ("error".into(), "false".into()), ("b".into(), String::new())],
            start_min: Some(1_000),
            start_max: Some(0),
            duration_min: Some(1_500_000_000),
            duration_max: Some(5_400_000_000_000),
            limit: 20,
            ..plain.clone()
        };
        let query = "service=a+b&operation=GET+/&start=1&end=-1&minDuration=1.5s&maxDuration=1h30m&limit=20&tag=a:1:2&tag=error:true\
                     &tags=%7B%22error%22:%22false%22,%22b%22:%22%22%7D";
        let mut read = read_url(query).unwrap();
        read.tags.sort();
        let mut expected = full;
        expected.tags.sort();
        assert_eq!(read, expected);
    }

    #[test]
    fn what_cannot_be_read() {
        let cases = [
            ("", "parameter 'service' is required"),
            ("service=", "parameter 'service' is required"),
            ("start=x", r#"unable to parse param 'start': strconv.ParseInt: parsing "x": invalid syntax"#),
            ("end=1.5", r#"unable to parse param 'end': strconv.ParseInt: parsing "1.5": invalid syntax"#),
            (
                "limit=2147483648",
                r#"unable to parse param 'limit': strconv.ParseInt: parsing "2147483648": value out of range"#,
            ),
            ("minDuration=5", r#"unable to parse param 'minDuration': time: missing unit in duration "5""#),
            ("maxDuration=x", r#"unable to parse param 'maxDuration': time: invalid duration "x""#),
            ("service=a&minDuration=2s&maxDuration=1s", WRONG_ORDER),
            ("service=a&maxDuration=-1s", WRONG_ORDER),
            ("tag=a", "malformed 'tag' parameter, expecting key:value, received: a"),
            (
                "tags=%7B%22a%22:1%7D",
                r#"malformed 'tags' parameter, cannot unmarshal JSON: the value of "a" is 1, which is not a string"#,
            ),
            (
                "tags=%5B%5D",
                "malformed 'tags' parameter, cannot unmarshal JSON: invalid type: sequence, expected a map at line 1 column 0",
            ),
        ];
        for (query, message) in cases {
            assert_eq!(read_url(query).unwrap_err(), message, "{query}");
        }
    }
}
