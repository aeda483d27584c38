//! Routes and handlers.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use spanhouse_common::id::{TenantId, TraceId};
use spanhouse_common::time::{TimeRange, UnixNanos};

use super::query::{Params, TracesQuery, cases, of_services, scoped, spans_query, trace_id, trace_ids};
use super::{AutocompleteKeys, ZipkinDeps, ZipkinError, json, links, ui};
use crate::api::respond::say_partial;
use crate::api::text;
use crate::engine::answer::SearchAnswer;
use crate::engine::{Quiet, SearchFilter, SearchRequest, TagNamesRequest, TagValuesRequest};
use crate::jaeger::tenant::tenant;
use crate::jaeger::{Answer, JaegerError, WholeTrace};
use crate::traceql::ast::{Attribute, Scope};

/// Most names or values of one answer, and bytes of all.
const MAX_NAMES: usize = 10_000;
const MAX_NAME_BYTES: usize = 1_000_000;
/// Most keys the UI offers unless they are chosen.
const MAX_KEYS: usize = 100;
/// Traces of more spans are written on a thread that serves no socket.
const INLINE_SPANS: usize = 512;

type Pairs = Query<Vec<(String, String)>>;

/// Everything that is read on Zipkin's port.
pub fn router(deps: ZipkinDeps) -> Router {
    let api = Router::new()
        .route("/api/v2/services", get(services))
        .route("/api/v2/spans", get(span_names))
        .route("/api/v2/remoteServices", get(remote_services))
        .route("/api/v2/traces", get(traces))
        .route("/api/v2/trace/{trace_id}", get(trace))
        .route("/api/v2/traceMany", get(trace_many))
        .route("/api/v2/dependencies", get(dependencies))
        .route("/api/v2/autocompleteKeys", get(autocomplete_keys))
        .route("/api/v2/autocompleteValues", get(autocomplete_values))
        .route_layer(axum::middleware::from_fn_with_state(deps.clone(), counted));
    // The UI asks below its own path.
    let api = Router::new().merge(api.clone()).nest("/zipkin", api);
    Router::new()
        .merge(api)
        .route("/health", get(health))
        .route("/actuator/health", get(health))
        .route("/info", get(info))
        .route("/actuator/info", get(info))
        .merge(ui::routes())
        .fallback(async || text(StatusCode::NOT_FOUND, "404 page not found\n"))
        .with_state(deps)
}

/// Counts requests when they end.
async fn counted(State(deps): State<ZipkinDeps>, request: Request, next: Next) -> Response {
    let route = request.uri().path().rsplit("/api/v2/").next().unwrap_or_default();
    // From a closed set: a trace id is no part of it.
    let route = format!("zipkin/{}", route.split('/').next().unwrap_or_default());
    let deps = deps.queries.deps();
    let started = deps.clock.monotonic();
    let response = next.run(request).await;
    deps.metrics.request(&route, response.status().as_u16(), deps.clock.monotonic().saturating_sub(started));
    response
}

fn json_body(body: impl Into<Body>) -> Response {
    ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], body.into()).into_response()
}

/// Sorted, each once, none empty.
fn names(mut names: Vec<String>) -> Response {
    names.retain(|name| !name.is_empty());
    names.sort_unstable();
    names.dedup();
    json_body(json::names(&names))
}

impl ZipkinDeps {
    fn tenants(&self, headers: &HeaderMap) -> Result<Vec<TenantId>, ZipkinError> {
        Ok(vec![tenant(headers, self.queries.deps().settings.multitenancy)?])
    }

    fn now(&self) -> UnixNanos {
        self.queries.deps().clock.now()
    }

    /// What names are looked for in.
    fn recent(&self) -> Option<TimeRange> {
        Some(TimeRange { min: self.now().saturating_sub(self.settings.lookback), max: UnixNanos(u64::MAX) })
    }

    /// The service that is meant, in every case the data has its name in.
    async fn services_named(&self, tenants: &[TenantId], name: &str) -> Result<Answer<Vec<String>>, ZipkinError> {
        let known = self.queries.services(tenants).await?;
        Ok(known.map(|known| in_any_case(known, name)))
    }
}

/// The names that are `name` in some case, and `name` itself.
fn in_any_case(known: impl IntoIterator<Item = String>, name: &str) -> Vec<String> {
    let lower = name.to_lowercase();
    let mut all: Vec<String> =
        known.into_iter().filter(|known| known.to_lowercase() == lower).chain([name.to_owned()]).collect();
    all.sort_unstable();
    all.dedup();
    all
}

async fn services(State(deps): State<ZipkinDeps>, headers: HeaderMap) -> Result<Response, ZipkinError> {
    let tenants = deps.tenants(&headers)?;
    let Answer { found, partial } = deps.queries.services(&tenants).await?;
    Ok(said_partial(names(found), partial))
}

async fn span_names(
    State(deps): State<ZipkinDeps>,
    Query(pairs): Pairs,
    headers: HeaderMap,
) -> Result<Response, ZipkinError> {
    let params = Params(pairs);
    let (tenants, service) = (deps.tenants(&headers)?, params.required("serviceName")?);
    let services = deps.services_named(&tenants, service).await?;
    let Answer { found, partial } = operations(&deps, &tenants, &services.found).await?;
    Ok(said_partial(names(found), services.partial.or(partial)))
}

async fn operations(
    deps: &ZipkinDeps,
    tenants: &[TenantId],
    services: &[String],
) -> Result<Answer<Vec<String>>, ZipkinError> {
    let mut all = Answer::<Vec<String>>::default();
    for service in services {
        let Answer { found, partial } = deps.queries.operations(tenants, service, None).await?;
        all.found.extend(found.into_iter().map(|operation| operation.name));
        all.partial = all.partial.or(partial);
    }
    Ok(all)
}

async fn remote_services(
    State(deps): State<ZipkinDeps>,
    Query(pairs): Pairs,
    headers: HeaderMap,
) -> Result<Response, ZipkinError> {
    let params = Params(pairs);
    let (tenants, service) = (deps.tenants(&headers)?, params.required("serviceName")?);
    let services = deps.services_named(&tenants, service).await?;
    let filter = of_services(&services.found);
    let attribute = scoped(Scope::Span, "peer.service");
    let request =
        TagValuesRequest { tenants, attribute, range: deps.recent(), limit: MAX_NAMES, max_bytes: MAX_NAME_BYTES, filter };
    let answer = deps.queries.deps().engine.tag_values(request).await?;
    let found = names(answer.values.into_iter().map(|value| value.text).collect());
    Ok(said_partial(found, services.partial.or(answer.stats.partial)))
}

async fn autocomplete_keys(State(deps): State<ZipkinDeps>, headers: HeaderMap) -> Result<Response, ZipkinError> {
    let tenants = deps.tenants(&headers)?;
    if let AutocompleteKeys::These(keys) = &deps.settings.autocomplete_keys {
        return Ok(names(keys.clone()));
    }
    let request = TagNamesRequest {
        tenants,
        scope: Some(Scope::Span),
        range: deps.recent(),
        limit: MAX_KEYS,
        max_bytes: MAX_NAME_BYTES,
        filter: None,
    };
    let answer = deps.queries.deps().engine.tag_names(request).await?;
    Ok(said_partial(names(answer.scopes.into_iter().flat_map(|scope| scope.tags).collect()), answer.stats.partial))
}

async fn autocomplete_values(
    State(deps): State<ZipkinDeps>,
    Query(pairs): Pairs,
    headers: HeaderMap,
) -> Result<Response, ZipkinError> {
    let params = Params(pairs);
    let (tenants, key) = (deps.tenants(&headers)?, params.required("key")?);
    if matches!(&deps.settings.autocomplete_keys, AutocompleteKeys::These(keys) if !keys.iter().any(|known| known == key)) {
        return Ok(names(Vec::new()));
    }
    let attribute: Attribute = scoped(Scope::None, key);
    let request = TagValuesRequest {
        tenants,
        attribute,
        range: deps.recent(),
        limit: MAX_NAMES,
        max_bytes: MAX_NAME_BYTES,
        filter: None,
    };
    let answer = deps.queries.deps().engine.tag_values(request).await?;
    Ok(said_partial(names(answer.values.into_iter().map(|value| value.text).collect()), answer.stats.partial))
}

async fn traces(State(deps): State<ZipkinDeps>, Query(pairs): Pairs, headers: HeaderMap) -> Result<Response, ZipkinError> {
    let params = Params(pairs);
    let tenants = deps.tenants(&headers)?;
    let max_limit = deps.queries.deps().settings.max_limit;
    let query = TracesQuery::of(&params, deps.now(), deps.settings.lookback, max_limit)?;
    let services = match &query.service {
        Some(service) => deps.services_named(&tenants, service).await?,
        None => Answer::default(),
    };
    let span_names = match &query.span_name {
        Some(name) if services.found.is_empty() => Answer::whole(cases(name)),
        Some(name) => operations(&deps, &tenants, &services.found).await?.map(|known| in_any_case(known, name)),
        None => Answer::default(),
    };
    let request = SearchRequest {
        tenants: tenants.clone(),
        filter: SearchFilter::TraceQl(spans_query(&query, &services.found, &span_names.found)),
        range: Some(query.window),
        limit: query.limit,
        spans_per_set: 1,
    };
    let found = deps.queries.deps().engine.search(request, &Quiet).await?;
    let (ids, hint) = inside(&found, query.window);
    // A name that is not known in all its cases may hide traces.
    let partial = services.partial.or(span_names.partial).or(found.stats.partial);
    if ids.is_empty() {
        return Ok(said_partial(json_body("[]"), partial));
    }
    streamed(deps.queries.traces(tenants, ids, hint), partial).await
}

/// The traces that begin inside the window, and the time they lie in. Those that only reach into it are the last of the answer.
fn inside(found: &SearchAnswer, window: TimeRange) -> (Vec<TraceId>, Option<TimeRange>) {
    let mut hint = TimeRange::EMPTY;
    let mut ids = Vec::new();
    // Spans without a timestamp have none to be left out by.
    for trace in found.traces.iter().filter(|t| t.start_unix_nano == 0 || t.start_unix_nano >= window.min.0) {
        ids.push(trace.trace_id);
        hint.include(UnixNanos(trace.start_unix_nano));
        hint.include(UnixNanos(trace.start_unix_nano.saturating_add(trace.duration_nanos)));
    }
    (ids, Some(hint))
}

async fn trace_many(
    State(deps): State<ZipkinDeps>,
    Query(pairs): Pairs,
    headers: HeaderMap,
) -> Result<Response, ZipkinError> {
    let tenants = deps.tenants(&headers)?;
    let ids = trace_ids(&Params(pairs))?;
    streamed(deps.queries.traces(tenants, ids, None), None).await
}

type Traces = BoxStream<'static, Result<WholeTrace, JaegerError>>;

/// A list of traces, each written when it was read: an answer never holds them all. What fails before the first is told, what fails after
/// it ends the connection. `partial` says why traces may be missing.
async fn streamed(mut traces: Traces, partial: Option<String>) -> Result<Response, ZipkinError> {
    let Some(first) = traces.next().await.transpose()? else {
        return Ok(said_partial(json_body("[]"), partial));
    };
    let partial = partial.or_else(|| first.partial.clone());
    let first = written(first).await;
    let rest = traces.then(|trace| async {
        let mut chunk = String::from(",");
        chunk.push_str(&written(trace?).await);
        Ok::<_, JaegerError>(Bytes::from(chunk))
    });
    let rest = rest.inspect_err(|error| tracing::warn!(%error, "an answer to Zipkin's API ends early"));
    let head = futures::stream::iter([Ok(Bytes::from_static(b"[")), Ok(Bytes::from(first))]);
    let end = futures::stream::iter([Ok(Bytes::from_static(b"]"))]);
    Ok(said_partial(json_body(Body::from_stream(head.chain(rest).chain(end))), partial))
}

fn said_partial(mut response: Response, partial: Option<String>) -> Response {
    if let Some(why) = partial {
        say_partial(&mut response, &why);
    }
    response
}

/// A trace as text. Its memory is given back only then.
async fn written(whole: WholeTrace) -> String {
    let write = |whole: &WholeTrace| {
        let mut out = String::new();
        json::write_trace(&whole.trace, &mut out);
        out
    };
    if whole.trace.spans().nth(INLINE_SPANS).is_none() {
        return write(&whole);
    }
    // A task that is not cancelled ends only by panicking; then the list lacks a trace rather than being none.
    tokio::task::spawn_blocking(move || write(&whole)).await.unwrap_or_else(|_| "[]".to_owned())
}

async fn trace(State(deps): State<ZipkinDeps>, Path(id): Path<String>, headers: HeaderMap) -> Result<Response, ZipkinError> {
    let tenants = deps.tenants(&headers)?;
    let id = trace_id(&id)?;
    match deps.queries.trace(&tenants, id, None).await? {
        Some(whole) if !whole.trace.is_empty() => {
            let partial = whole.partial.clone();
            Ok(said_partial(json_body(written(whole).await), partial))
        }
        _ => {
            let mut text = String::new();
            crate::json::push_short_trace_id(id, &mut text);
            Err(ZipkinError::NoTrace(text))
        }
    }
}

async fn dependencies(
    State(deps): State<ZipkinDeps>,
    Query(pairs): Pairs,
    headers: HeaderMap,
) -> Result<Response, ZipkinError> {
    let tenants = deps.tenants(&headers)?;
    let range = Params(pairs).window(deps.now(), deps.settings.lookback, true)?;
    let Answer { found, partial } = links::links(&deps.queries, &tenants, range).await?;
    Ok(said_partial(json_body(json::links(&found)), partial))
}

async fn health(State(deps): State<ZipkinDeps>) -> Response {
    let (status, word, why) = match (deps.ready)() {
        Ok(()) => (StatusCode::OK, "UP", None),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, "DOWN", Some(why)),
    };
    let storage = match why {
        None => serde_json::json!({ "status": word }),
        Some(why) => serde_json::json!({ "status": word, "details": { "error": why } }),
    };
    let details = serde_json::json!({ "spanhouse": storage });
    let body = serde_json::json!({ "status": word, "zipkin": { "status": word, "details": details } });
    (status, json_body(body.to_string())).into_response()
}

async fn info(State(deps): State<ZipkinDeps>) -> Response {
    let version: Arc<str> = deps.version.as_str().into();
    json_body(serde_json::json!({ "zipkin": { "version": &*version, "commit": "" } }).to_string())
}
