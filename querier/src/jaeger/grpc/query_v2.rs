//! `jaeger.api_v2.QueryService`: spans in Jaeger's model, ten to a message.

use std::collections::BTreeSet;

use spanhouse_common::id::TenantId;
use spanhouse_proto::jaeger_v2::query_service_server::QueryService;
use spanhouse_proto::jaeger_v2::{self as v2, SpansResponseChunk};
use tonic::{Request, Response, Status};

use super::call::{Messages, refused, streamed, unary};
use super::messages::{Cut, QUERY_CHUNK, mended, messages, one, spans};
use super::values::{Kind, SearchFields, hint, kind, not_found, trace_id, window};
use crate::jaeger::model::kind_word;
use crate::jaeger::{Answer, JaegerQueries, Operation};

#[derive(Debug)]
pub(super) struct Service(pub(super) JaegerQueries);

impl Service {
    fn chunks(&self, raw: bool) -> Cut<SpansResponseChunk> {
        mended(&self.0, raw, |trace| Box::new(spans(trace, QUERY_CHUNK).map(|spans| SpansResponseChunk { spans })))
    }
}

#[tonic::async_trait]
impl QueryService for Service {
    type GetTraceStream = Messages<SpansResponseChunk>;
    type FindTracesStream = Messages<SpansResponseChunk>;

    async fn get_trace(&self, request: Request<v2::GetTraceRequest>) -> Result<Response<Self::GetTraceStream>, Status> {
        const WHAT: &str = "failed to fetch spans from the backend";
        streamed(&self.0, "/jaeger.api_v2.QueryService/GetTrace", request, async |tenant, request| {
            let hint = hint(request.start_time, request.end_time);
            let found = self.0.trace(&[tenant], trace_id(&request.trace_id)?, hint).await;
            let trace = found.map_err(|error| refused(WHAT, &error))?.ok_or_else(not_found)?;
            Ok(messages(one(trace), WHAT, self.chunks(request.raw_traces)))
        })
        .await
    }

    async fn archive_trace(
        &self,
        request: Request<v2::ArchiveTraceRequest>,
    ) -> Result<Response<v2::ArchiveTraceResponse>, Status> {
        unary(&self.0, "/jaeger.api_v2.QueryService/ArchiveTrace", request, async |tenant, request| {
            let hint = hint(request.start_time, request.end_time);
            let archived = self.0.archive(&tenant, trace_id(&request.trace_id)?, hint).await;
            archived.map_err(|error| refused("failed to archive trace", &error))?.ok_or_else(not_found)?;
            Ok(Answer::whole(v2::ArchiveTraceResponse {}))
        })
        .await
    }

    async fn find_traces(
        &self,
        request: Request<v2::FindTracesRequest>,
    ) -> Result<Response<Self::FindTracesStream>, Status> {
        streamed(&self.0, "/jaeger.api_v2.QueryService/FindTraces", request, async |tenant, request| {
            let query = request.query.ok_or_else(|| Status::invalid_argument("missing query"))?;
            let raw = query.raw_traces;
            let fields = SearchFields {
                service: query.service_name,
                operation: query.operation_name,
                tags: query.tags.into_iter().collect(),
                start_min: query.start_time_min,
                start_max: query.start_time_max,
                duration_min: query.duration_min,
                duration_max: query.duration_max,
                limit: query.search_depth,
                filter: None,
            };
            let traces = self.0.find_whole(fields.search(tenant)?);
            Ok(messages(traces, "failed when searching for traces", self.chunks(raw)))
        })
        .await
    }

    async fn get_services(
        &self,
        request: Request<v2::GetServicesRequest>,
    ) -> Result<Response<v2::GetServicesResponse>, Status> {
        unary(&self.0, "/jaeger.api_v2.QueryService/GetServices", request, async |tenant, _| {
            let services =
                self.0.shown_services(&[tenant]).await.map_err(|error| refused("failed to fetch services", &error))?;
            Ok(services.map(|services| v2::GetServicesResponse { services }))
        })
        .await
    }

    async fn get_operations(
        &self,
        request: Request<v2::GetOperationsRequest>,
    ) -> Result<Response<v2::GetOperationsResponse>, Status> {
        unary(&self.0, "/jaeger.api_v2.QueryService/GetOperations", request, async |tenant, request| {
            let operations = operations(&self.0, tenant, &request.service, &request.span_kind, Names::Shown).await?;
            let operation = |of: Operation| v2::Operation { name: of.name, span_kind: kind_word(of.kind).to_owned() };
            Ok(operations.map(|operations| v2::GetOperationsResponse {
                operation_names: distinct_names(&operations),
                operations: operations.into_iter().map(operation).collect(),
            }))
        })
        .await
    }

    async fn get_dependencies(
        &self,
        request: Request<v2::GetDependenciesRequest>,
    ) -> Result<Response<v2::GetDependenciesResponse>, Status> {
        unary(&self.0, "/jaeger.api_v2.QueryService/GetDependencies", request, async |tenant, request| {
            let window = window(request.start_time, request.end_time)?;
            let links = links(&self.0, tenant, window).await?;
            Ok(links.map(|dependencies| v2::GetDependenciesResponse { dependencies }))
        })
        .await
    }
}

/// Which names operations have that spans say none for.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Names {
    /// None, for storage.
    Stored,
    /// Those that the query API shows.
    Shown,
}

/// Operations of a service, of the kind that a word names.
pub(super) async fn operations(
    queries: &JaegerQueries,
    tenant: TenantId,
    service: &str,
    word: &str,
    names: Names,
) -> Result<Answer<Vec<Operation>>, Status> {
    let kind = match kind(word) {
        Kind::Any => None,
        Kind::Only(kind) => Some(kind),
        Kind::Nothing => return Ok(Answer::default()),
    };
    let operations = match names {
        Names::Stored => queries.operations(&[tenant], service, kind).await,
        Names::Shown => queries.shown_operations(&[tenant], service, kind).await,
    };
    operations.map_err(|error| refused("failed to fetch operations", &error))
}

/// Names without kinds, for older clients.
pub(super) fn distinct_names(operations: &[Operation]) -> Vec<String> {
    let names: BTreeSet<&str> = operations.iter().map(|operation| operation.name.as_str()).collect();
    names.into_iter().map(str::to_owned).collect()
}

/// Edges of the service graph as messages.
pub(super) async fn links(
    queries: &JaegerQueries,
    tenant: TenantId,
    window: spanhouse_common::time::TimeRange,
) -> Result<Answer<Vec<v2::DependencyLink>>, Status> {
    let edges = queries.dependencies(&[tenant], window).await;
    let edges = edges.map_err(|error| refused("failed to fetch dependencies", &error))?;
    let link = |edge: crate::jaeger::Edge| v2::DependencyLink {
        parent: edge.parent,
        child: edge.child,
        call_count: edge.calls,
        source: String::new(),
    };
    Ok(edges.map(|edges| edges.into_iter().map(link).collect()))
}
