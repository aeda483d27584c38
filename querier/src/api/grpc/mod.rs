//! `tempopb.StreamingQuerier`: the queries of HTTP as streams of messages.
//!
//! Owns how calls become requests and answers become messages. A request is put into the form of its URL, so that both
//! protocols have one set of rules. Progress is told by counts alone until the answer is whole: Grafana keeps the first it
//! hears of a trace, and draws what it hears of a series.

mod packets;
mod stream;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::response::Response as HttpResponse;
use futures::FutureExt as _;
use spanhouse_common::id::TenantId;
use spanhouse_proto::tempopb;
use spanhouse_proto::tempopb::streaming_querier_server::{StreamingQuerier, StreamingQuerierServer};
use tonic::codec::CompressionEncoding;
use tonic::{Request, Response, Status};

use self::stream::{Answered, Latest, Messages, messages};
use super::ask::PlainTag;
use super::error::ApiError;
use super::params::{MetricsAsked, Params};
use super::respond::{Counted, names_bytes, offload, search_bytes, series_bytes, text_bytes, values_bytes};
use super::tenants::grpc_tenants;
use super::{ApiDeps, ask, language};
use crate::engine::answer::{QueryStats, SeriesAnswer};
use crate::wire;

/// The paths of the service.
const METHODS: [&str; 7] = [
    "/tempopb.StreamingQuerier/Search",
    "/tempopb.StreamingQuerier/SearchTags",
    "/tempopb.StreamingQuerier/SearchTagsV2",
    "/tempopb.StreamingQuerier/SearchTagValues",
    "/tempopb.StreamingQuerier/SearchTagValuesV2",
    "/tempopb.StreamingQuerier/MetricsQueryRange",
    "/tempopb.StreamingQuerier/MetricsQueryInstant",
];

/// The service, to stand beside other routes of a port.
pub(super) fn routes<S: Clone + Send + Sync + 'static>(deps: &ApiDeps) -> Router<S> {
    let server = StreamingQuerierServer::new(Service { deps: deps.clone() }).accept_compressed(CompressionEncoding::Gzip);
    METHODS.into_iter().fold(Router::new(), |router, path| router.route_service(path, server.clone()))
}

/// The routes of the port that speaks gRPC alone.
pub fn grpc_router(deps: &ApiDeps) -> Router {
    routes(deps).fallback(unimplemented)
}

async fn unimplemented() -> HttpResponse {
    Status::unimplemented("unknown service or method").into_http::<Body>()
}

#[derive(Debug)]
struct Service {
    deps: ApiDeps,
}

/// A call being answered.
struct Call {
    counted: Counted,
    tenants: Result<Vec<TenantId>, ApiError>,
}

impl Call {
    fn begin<T>(deps: &ApiDeps, method: usize, request: &Request<T>) -> Self {
        let headers = request.metadata().clone().into_headers();
        let counted = Counted::new(deps, METHODS[method].to_owned());
        Self { counted, tenants: grpc_tenants(&headers, &deps.settings) }
    }

    /// Reads the request; a refusal ends the call.
    fn read<T>(self, read: impl FnOnce(Vec<TenantId>) -> Result<T, ApiError>) -> Result<(Counted, T), Status> {
        let mut counted = self.counted;
        self.tenants.and_then(read).map_err(|error| counted.refuse(&error)).map(|request| (counted, request))
    }
}

impl Counted {
    /// Counts the refusal of a call.
    fn refuse(&mut self, error: &ApiError) -> Status {
        error.log();
        self.status = error.status().as_u16();
        error.to_grpc()
    }
}

#[async_trait::async_trait]
impl StreamingQuerier for Service {
    type SearchStream = Messages<tempopb::SearchResponse>;
    type SearchTagsStream = Messages<tempopb::SearchTagsResponse>;
    type SearchTagsV2Stream = Messages<tempopb::SearchTagsV2Response>;
    type SearchTagValuesStream = Messages<tempopb::SearchTagValuesResponse>;
    type SearchTagValuesV2Stream = Messages<tempopb::SearchTagValuesV2Response>;
    type MetricsQueryRangeStream = Messages<tempopb::QueryRangeResponse>;
    type MetricsQueryInstantStream = Messages<tempopb::QueryInstantResponse>;

    async fn search(&self, request: Request<tempopb::SearchRequest>) -> Result<Response<Self::SearchStream>, Status> {
        let call = Call::begin(&self.deps, 0, &request);
        let params = search_params(request.into_inner());
        let (counted, request) = call.read(|tenants| params.search(self.deps.asker(tenants)))?;
        let (deps, latest) = (self.deps.clone(), Arc::new(Latest::default()));
        let progress = Arc::clone(&latest);
        let answer = async move {
            let answer = ask::search(&deps, request, &*progress).await?;
            let partial = answer.stats.partial.clone();
            let packets = offload(search_bytes(&answer), move || packets::search(answer)).await?;
            Ok(Answered { packets, partial })
        };
        let so_far =
            |stats: &QueryStats| tempopb::SearchResponse { traces: Vec::new(), metrics: Some(wire::search_metrics(stats)) };
        Ok(Response::new(messages(counted, answer.boxed(), Some((latest, so_far)))))
    }

    async fn search_tags(
        &self,
        request: Request<tempopb::SearchTagsRequest>,
    ) -> Result<Response<Self::SearchTagsStream>, Status> {
        let call = Call::begin(&self.deps, 1, &request);
        let params = names_params(request.into_inner());
        let (counted, asked) = call.read(|tenants| params.tag_names(false, self.deps.asker(tenants)))?;
        let deps = self.deps.clone();
        let answer = async move {
            let only_intrinsics = asked.only_intrinsics;
            let answer = ask::tag_names(&deps, asked).await?;
            let bytes = names_bytes(&answer);
            let partial = answer.stats.partial.clone();
            let split = move || {
                let names = ask::flat_names(&answer, only_intrinsics).into_iter().map(str::to_owned).collect();
                packets::tag_names_v1(names, &answer.stats)
            };
            Ok(Answered { packets: offload(bytes, split).await?, partial })
        };
        Ok(Response::new(messages(counted, answer.boxed(), None)))
    }

    async fn search_tags_v2(
        &self,
        request: Request<tempopb::SearchTagsRequest>,
    ) -> Result<Response<Self::SearchTagsV2Stream>, Status> {
        let call = Call::begin(&self.deps, 2, &request);
        let params = names_params(request.into_inner());
        let (counted, asked) = call.read(|tenants| params.tag_names(true, self.deps.asker(tenants)))?;
        let deps = self.deps.clone();
        let answer = async move {
            let answer = ask::tag_names(&deps, asked).await?;
            let partial = answer.stats.partial.clone();
            let packets = offload(names_bytes(&answer), move || packets::tag_names_v2(answer)).await?;
            Ok(Answered { packets, partial })
        };
        Ok(Response::new(messages(counted, answer.boxed(), None)))
    }

    async fn search_tag_values(
        &self,
        request: Request<tempopb::SearchTagValuesRequest>,
    ) -> Result<Response<Self::SearchTagValuesStream>, Status> {
        let call = Call::begin(&self.deps, 3, &request);
        let request = request.into_inner();
        let tag = PlainTag::of(&request.tag_name);
        let (counted, request) = call.read(|tenants| {
            if request.tag_name.is_empty() {
                return Err(ApiError::BadParameter("please provide a non-empty tagName".to_owned()));
            }
            values_params(request).tag_values(tag.attribute(), false, self.deps.asker(tenants))
        })?;
        let deps = self.deps.clone();
        let answer = async move {
            let (values, stats) = ask::plain_values(&deps, tag, request).await?;
            let (partial, bytes) = (stats.partial.clone(), text_bytes(values.iter().map(String::as_str)));
            Ok(Answered { packets: offload(bytes, move || packets::tag_values_v1(values, &stats)).await?, partial })
        };
        Ok(Response::new(messages(counted, answer.boxed(), None)))
    }

    async fn search_tag_values_v2(
        &self,
        request: Request<tempopb::SearchTagValuesRequest>,
    ) -> Result<Response<Self::SearchTagValuesV2Stream>, Status> {
        let call = Call::begin(&self.deps, 4, &request);
        let request = request.into_inner();
        let name = request.tag_name.clone();
        let (counted, request) = call.read(|tenants| {
            let attribute = language::tag(&request.tag_name)?;
            values_params(request).tag_values(attribute, true, self.deps.asker(tenants))
        })?;
        let deps = self.deps.clone();
        let answer = async move {
            let answer = ask::tag_values(&deps, &name, request).await?;
            let partial = answer.stats.partial.clone();
            let packets = offload(values_bytes(&answer), move || packets::tag_values_v2(answer)).await?;
            Ok(Answered { packets, partial })
        };
        Ok(Response::new(messages(counted, answer.boxed(), None)))
    }

    async fn metrics_query_range(
        &self,
        request: Request<tempopb::QueryRangeRequest>,
    ) -> Result<Response<Self::MetricsQueryRangeStream>, Status> {
        let call = Call::begin(&self.deps, 5, &request);
        let asked = request.into_inner();
        let (counted, request) = call.read(|tenants| {
            check_size(&asked.query, &self.deps)?;
            let asked = MetricsAsked {
                query: asked.query,
                start: asked.start,
                end: asked.end,
                step: Some(asked.step).filter(|step| *step != 0),
                exemplars: asked.exemplars,
                max_series: asked.max_series,
            };
            asked.range_request(self.deps.asker(tenants))
        })?;
        let (deps, latest) = (self.deps.clone(), Arc::new(Latest::default()));
        let progress = Arc::clone(&latest);
        let answer = async move {
            let answer = ask::metrics(&deps, request, &*progress).await?;
            answered(answer, packets::query_range).await
        };
        let so_far = |stats: &QueryStats| tempopb::QueryRangeResponse {
            metrics: Some(wire::search_metrics(stats)),
            ..Default::default()
        };
        Ok(Response::new(messages(counted, answer.boxed(), Some((latest, so_far)))))
    }

    /// Each message replaces what Grafana shows, so only the whole answer is sent.
    async fn metrics_query_instant(
        &self,
        request: Request<tempopb::QueryInstantRequest>,
    ) -> Result<Response<Self::MetricsQueryInstantStream>, Status> {
        let call = Call::begin(&self.deps, 6, &request);
        let asked = request.into_inner();
        let (counted, request) = call.read(|tenants| {
            check_size(&asked.query, &self.deps)?;
            let asked = MetricsAsked { query: asked.query, start: asked.start, end: asked.end, ..MetricsAsked::default() };
            asked.instant_request(self.deps.asker(tenants))
        })?;
        let deps = self.deps.clone();
        let answer = async move {
            let answer = ask::metrics(&deps, request, ask::QUIET).await?;
            answered(answer, packets::query_instant).await
        };
        Ok(Response::new(messages(counted, answer.boxed(), None)))
    }
}

async fn answered<M: Send + 'static>(
    answer: SeriesAnswer,
    split: fn(SeriesAnswer) -> Vec<M>,
) -> Result<Answered<M>, ApiError> {
    let partial = answer.stats.partial.clone();
    Ok(Answered { packets: offload(series_bytes(&answer), move || split(answer)).await?, partial })
}

/// Zero is absent, as in a URL the empty value is.
fn pair(name: &str, number: u32) -> (String, String) {
    (name.to_owned(), if number == 0 { String::new() } else { number.to_string() })
}

fn search_params(request: tempopb::SearchRequest) -> Params {
    let tags: Vec<String> =
        request.tags.iter().map(|(key, value)| format!("{key}={}", serde_json::Value::from(value.as_str()))).collect();
    let millis = |ms: u32| if ms == 0 { String::new() } else { format!("{ms}ms") };
    Params::new(vec![
        ("q".to_owned(), request.query),
        ("tags".to_owned(), tags.join(" ")),
        ("minDuration".to_owned(), millis(request.min_duration_ms)),
        ("maxDuration".to_owned(), millis(request.max_duration_ms)),
        pair("limit", request.limit),
        pair("start", request.start),
        pair("end", request.end),
        pair("spss", request.spans_per_span_set),
    ])
}

fn names_params(request: tempopb::SearchTagsRequest) -> Params {
    Params::new(vec![
        ("scope".to_owned(), request.scope),
        ("q".to_owned(), request.query),
        pair("start", request.start),
        pair("end", request.end),
        pair("limit", request.max_tags_per_scope),
    ])
}

fn values_params(request: tempopb::SearchTagValuesRequest) -> Params {
    Params::new(vec![
        ("q".to_owned(), request.query),
        pair("start", request.start),
        pair("end", request.end),
        pair("limit", request.max_tag_values),
    ])
}

fn check_size(query: &str, deps: &ApiDeps) -> Result<(), ApiError> {
    Params::new(vec![("q".to_owned(), query.to_owned())]).check_query_size(&deps.settings)
}

#[cfg(test)]
mod tests;
