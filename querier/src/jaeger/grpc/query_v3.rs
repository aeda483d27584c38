//! `jaeger.api_v3.QueryService`: traces as OTLP, one to a message unless it is too large for one.

use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use spanhouse_common::id::TenantId;
use spanhouse_proto::EncodedTraces;
use spanhouse_proto::jaeger_v3::query_service_server::QueryService;
use spanhouse_proto::jaeger_v3::{self as v3, FindTraceSummariesResponse};
use tonic::{Request, Response, Status};

use super::call::{Messages, refused, streamed, unary};
use super::messages::{messages, one, shown};
use super::query_v2::{Names, links, operations};
use super::values::{SearchFields, hint, not_found, time, window};
use crate::api::respond::partial_trailer;
use crate::jaeger::model::kind_word;
use crate::jaeger::{Answer, JaegerQueries, Operation, ServiceSummary, TraceSearch, TraceSummary};

/// Summaries in a message: some hundred kilobytes unless traces have very many services.
pub(super) const SUMMARIES: usize = 500;

const SEARCHING: &str = "failed when searching for traces";

#[derive(Debug)]
pub(super) struct Service(pub(super) JaegerQueries);

/// The search of a request, and whether traces are wanted as they are stored.
fn search(tenant: TenantId, query: Option<v3::TraceQueryParameters>) -> Result<(TraceSearch, bool), Status> {
    let query = query.ok_or_else(|| Status::invalid_argument("missing query"))?;
    if time(query.start_time_min).is_none() || time(query.start_time_max).is_none() {
        return Err(Status::invalid_argument("start time min and max are required parameters"));
    }
    let raw = query.raw_traces;
    let fields = SearchFields {
        service: query.service_name,
        operation: query.operation_name,
        tags: query.attributes.into_iter().collect(),
        start_min: query.start_time_min,
        start_max: query.start_time_max,
        duration_min: query.duration_min,
        duration_max: query.duration_max,
        limit: query.search_depth,
        filter: query.filter,
    };
    Ok((fields.search(tenant)?, raw))
}

#[tonic::async_trait]
impl QueryService for Service {
    type GetTraceStream = Messages<EncodedTraces>;
    type FindTracesStream = Messages<EncodedTraces>;
    type FindTraceSummariesStream = Messages<FindTraceSummariesResponse>;

    async fn get_trace(&self, request: Request<v3::GetTraceRequest>) -> Result<Response<Self::GetTraceStream>, Status> {
        const WHAT: &str = "failed to fetch the trace";
        streamed(&self.0, "/jaeger.api_v3.QueryService/GetTrace", request, async |tenant, request| {
            let id = request.trace_id.parse();
            let id = id.map_err(|error| Status::invalid_argument(format!("malformed parameter trace_id: {error}")))?;
            let found = self.0.trace(&[tenant], id, hint(request.start_time, request.end_time)).await;
            let trace = found.map_err(|error| refused(WHAT, &error))?.ok_or_else(not_found)?;
            Ok(messages(one(trace), WHAT, shown(&self.0, request.raw_traces)))
        })
        .await
    }

    async fn find_traces(
        &self,
        request: Request<v3::FindTracesRequest>,
    ) -> Result<Response<Self::FindTracesStream>, Status> {
        streamed(&self.0, "/jaeger.api_v3.QueryService/FindTraces", request, async |tenant, request| {
            let (search, raw) = search(tenant, request.query)?;
            Ok(messages(self.0.find_whole(search), SEARCHING, shown(&self.0, raw)))
        })
        .await
    }

    async fn get_services(
        &self,
        request: Request<v3::GetServicesRequest>,
    ) -> Result<Response<v3::GetServicesResponse>, Status> {
        unary(&self.0, "/jaeger.api_v3.QueryService/GetServices", request, async |tenant, _| {
            let services =
                self.0.shown_services(&[tenant]).await.map_err(|error| refused("failed to fetch services", &error))?;
            Ok(services.map(|services| v3::GetServicesResponse { services }))
        })
        .await
    }

    async fn get_operations(
        &self,
        request: Request<v3::GetOperationsRequest>,
    ) -> Result<Response<v3::GetOperationsResponse>, Status> {
        unary(&self.0, "/jaeger.api_v3.QueryService/GetOperations", request, async |tenant, request| {
            let operations = operations(&self.0, tenant, &request.service, &request.span_kind, Names::Shown).await?;
            let operation = |of: Operation| v3::Operation { name: of.name, span_kind: kind_word(of.kind).to_owned() };
            let message =
                |all: Vec<Operation>| v3::GetOperationsResponse { operations: all.into_iter().map(operation).collect() };
            Ok(operations.map(message))
        })
        .await
    }

    async fn get_dependencies(
        &self,
        request: Request<v3::GetDependenciesRequest>,
    ) -> Result<Response<v3::DependenciesResponse>, Status> {
        unary(&self.0, "/jaeger.api_v3.QueryService/GetDependencies", request, async |tenant, request| {
            let links = links(&self.0, tenant, window(request.start_time, request.end_time)?).await?;
            let dependency = |link: spanhouse_proto::jaeger_v2::DependencyLink| v3::Dependency {
                parent: link.parent,
                child: link.child,
                call_count: link.call_count,
            };
            Ok(links.map(|links| v3::DependenciesResponse { dependencies: links.into_iter().map(dependency).collect() }))
        })
        .await
    }

    async fn find_trace_summaries(
        &self,
        request: Request<v3::FindTraceSummariesRequest>,
    ) -> Result<Response<Self::FindTraceSummariesStream>, Status> {
        streamed(&self.0, "/jaeger.api_v3.QueryService/FindTraceSummaries", request, async |tenant, request| {
            let (search, _) = search(tenant, request.query)?;
            let message = |summaries| FindTraceSummariesResponse { summaries };
            let found = found(&self.0, &search).await?;
            Ok(packets(found, |found| summary(found.shown()), message))
        })
        .await
    }
}

/// The summaries of a search.
pub(super) async fn found(queries: &JaegerQueries, search: &TraceSearch) -> Result<Answer<Vec<TraceSummary>>, Status> {
    queries.find(search).await.map_err(|error| refused(SEARCHING, &error))
}

/// A few messages of many items; then, in a trailer, why these are not all.
pub(super) fn packets<T, I, M>(
    Answer { found: all, partial }: Answer<Vec<T>>,
    item: impl Fn(T) -> I,
    message: impl Fn(Vec<I>) -> M,
) -> BoxStream<'static, Result<M, Status>>
where
    M: Send + 'static,
{
    let mut messages = Vec::new();
    let mut all = all.into_iter().map(item).peekable();
    while all.peek().is_some() {
        messages.push(Ok(message(all.by_ref().take(SUMMARIES).collect())));
    }
    messages.extend(partial.map(|why| Err(partial_trailer(&why))));
    stream::iter(messages).boxed()
}

fn summary(of: TraceSummary) -> v3::TraceSummary {
    v3::TraceSummary {
        trace_id: of.trace_id.to_string(),
        root_service_name: of.root_service,
        root_operation_name: of.root_operation,
        min_start_time_unix_nano: of.min_start,
        max_end_time_unix_nano: of.max_end,
        span_count: count(of.spans),
        error_span_count: count(of.error_spans),
        orphan_span_count: count(of.orphan_spans),
        services: of.services.into_iter().map(service_summary).collect(),
    }
}

fn service_summary(of: ServiceSummary) -> v3::ServiceSummary {
    v3::ServiceSummary { name: of.name, span_count: count(of.spans), error_span_count: count(of.error_spans) }
}

pub(super) fn count(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}
