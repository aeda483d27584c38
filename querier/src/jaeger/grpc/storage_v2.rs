//! `jaeger.storage.v2`: what a Jaeger from 2.6 on reads from the storage behind it. Writes come as OTLP.
//!
//! Answers are what was written, nothing mended: the Jaeger in front does that.

use spanhouse_common::id::TenantId;
use spanhouse_common::time::TimeRange;
use spanhouse_proto::EncodedTraces;
use spanhouse_proto::jaeger_storage_v2::capabilities_server::Capabilities;
use spanhouse_proto::jaeger_storage_v2::dependency_reader_server::DependencyReader;
use spanhouse_proto::jaeger_storage_v2::trace_reader_server::TraceReader;
use spanhouse_proto::jaeger_storage_v2::{self as v2, FindTraceSummariesResponse};
use tonic::{Request, Response, Status};

use super::call::{Messages, of_nobody, refused, streamed, unary};
use super::messages::{messages, stored};
use super::query_v2::{Names, links, operations};
use super::query_v3::{count, found, packets};
use super::values::{SearchFields, hint, text, timestamp, trace_id, window};
use crate::jaeger::model::kind_word;
use crate::jaeger::{JaegerQueries, Operation, ServiceSummary, TraceSearch, TraceSummary, filter};

#[derive(Debug)]
pub(super) struct Service(pub(super) JaegerQueries);

fn search(tenant: TenantId, query: Option<v2::TraceQueryParameters>) -> Result<TraceSearch, Status> {
    let query = query.ok_or_else(|| Status::invalid_argument("missing query"))?;
    let fields = SearchFields {
        service: query.service_name,
        operation: query.operation_name,
        tags: query.attributes.into_iter().map(|pair| (pair.key, text(pair.value))).collect(),
        start_min: query.start_time_min,
        start_max: query.start_time_max,
        duration_min: query.duration_min,
        duration_max: query.duration_max,
        limit: query.search_depth,
        filter: query.filter,
    };
    fields.search(tenant)
}

/// Holds all hints; `None` if one trace may be anywhere.
fn common_hint(params: &[v2::GetTraceParams]) -> Option<TimeRange> {
    params.iter().try_fold(TimeRange::EMPTY, |mut all, one| {
        let range = hint(one.start_time, one.end_time)?;
        all.include(range.min);
        all.include(range.max);
        Some(all)
    })
}

#[tonic::async_trait]
impl TraceReader for Service {
    type GetTracesStream = Messages<EncodedTraces>;
    type FindTracesStream = Messages<EncodedTraces>;
    type FindTraceSummariesStream = Messages<FindTraceSummariesResponse>;

    /// Traces nobody has are left out.
    async fn get_traces(&self, request: Request<v2::GetTracesRequest>) -> Result<Response<Self::GetTracesStream>, Status> {
        streamed(&self.0, "/jaeger.storage.v2.TraceReader/GetTraces", request, async |tenant, request| {
            let hint = common_hint(&request.query);
            let ids = request.query.iter().map(|one| trace_id(&one.trace_id)).collect::<Result<Vec<_>, _>>()?;
            let traces = self.0.traces(vec![tenant], ids, hint);
            Ok(messages(traces, "failed to fetch traces", stored()))
        })
        .await
    }

    async fn get_services(
        &self,
        request: Request<v2::GetServicesRequest>,
    ) -> Result<Response<v2::GetServicesResponse>, Status> {
        unary(&self.0, "/jaeger.storage.v2.TraceReader/GetServices", request, async |tenant, _| {
            let services = self.0.services(&[tenant]).await.map_err(|error| refused("failed to fetch services", &error))?;
            Ok(services.map(|services| v2::GetServicesResponse { services }))
        })
        .await
    }

    async fn get_operations(
        &self,
        request: Request<v2::GetOperationsRequest>,
    ) -> Result<Response<v2::GetOperationsResponse>, Status> {
        unary(&self.0, "/jaeger.storage.v2.TraceReader/GetOperations", request, async |tenant, request| {
            let operations = operations(&self.0, tenant, &request.service, &request.span_kind, Names::Stored).await?;
            let operation = |of: Operation| v2::Operation { name: of.name, span_kind: kind_word(of.kind).to_owned() };
            let message =
                |all: Vec<Operation>| v2::GetOperationsResponse { operations: all.into_iter().map(operation).collect() };
            Ok(operations.map(message))
        })
        .await
    }

    async fn find_traces(
        &self,
        request: Request<v2::FindTracesRequest>,
    ) -> Result<Response<Self::FindTracesStream>, Status> {
        streamed(&self.0, "/jaeger.storage.v2.TraceReader/FindTraces", request, async |tenant, request| {
            let traces = self.0.find_whole(search(tenant, request.query)?);
            Ok(messages(traces, "failed when searching for traces", stored()))
        })
        .await
    }

    async fn find_trace_i_ds(
        &self,
        request: Request<v2::FindTraceIDsRequest>,
    ) -> Result<Response<v2::FindTraceIDsResponse>, Status> {
        unary(&self.0, "/jaeger.storage.v2.TraceReader/FindTraceIDs", request, async |tenant, request| {
            let traces = found(&self.0, &search(tenant, request.query)?).await?;
            let id = |of: TraceSummary| v2::FoundTraceId {
                trace_id: of.trace_id.0.to_vec(),
                start: Some(timestamp(of.min_start)),
                end: Some(timestamp(of.max_end)),
            };
            Ok(traces.map(|traces| v2::FindTraceIDsResponse { trace_ids: traces.into_iter().map(id).collect() }))
        })
        .await
    }

    async fn find_trace_summaries(
        &self,
        request: Request<v2::FindTraceSummariesRequest>,
    ) -> Result<Response<Self::FindTraceSummariesStream>, Status> {
        streamed(&self.0, "/jaeger.storage.v2.TraceReader/FindTraceSummaries", request, async |tenant, request| {
            let traces = found(&self.0, &search(tenant, request.query)?).await?;
            Ok(packets(traces, summary, |summaries| FindTraceSummariesResponse { summaries }))
        })
        .await
    }
}

#[tonic::async_trait]
impl DependencyReader for Service {
    async fn get_dependencies(
        &self,
        request: Request<v2::GetDependenciesRequest>,
    ) -> Result<Response<v2::GetDependenciesResponse>, Status> {
        unary(&self.0, "/jaeger.storage.v2.DependencyReader/GetDependencies", request, async |tenant, request| {
            let links = links(&self.0, tenant, window(request.start_time, request.end_time)?).await?;
            let dependency = |link: spanhouse_proto::jaeger_v2::DependencyLink| v2::Dependency {
                parent: link.parent,
                child: link.child,
                call_count: link.call_count,
                source: link.source,
            };
            Ok(links.map(|links| v2::GetDependenciesResponse { dependencies: links.into_iter().map(dependency).collect() }))
        })
        .await
    }
}

#[tonic::async_trait]
impl Capabilities for Service {
    async fn get_capabilities(
        &self,
        _: Request<v2::GetCapabilitiesRequest>,
    ) -> Result<Response<v2::GetCapabilitiesResponse>, Status> {
        let texts = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let filter = v2::FilterCapabilities { levels: texts(&filter::LEVELS), operators: texts(&filter::OPERATORS) };
        let search =
            v2::SearchCapabilities { without_service_name: true, same_span_conjunction: true, filter: Some(filter) };
        let can = v2::GetCapabilitiesResponse { search: Some(search) };
        Ok(of_nobody(&self.0, "/jaeger.storage.v2.Capabilities/GetCapabilities", can))
    }
}

fn summary(of: TraceSummary) -> v2::TraceSummary {
    v2::TraceSummary {
        trace_id: of.trace_id.0.to_vec(),
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

fn service_summary(of: ServiceSummary) -> v2::ServiceSummary {
    v2::ServiceSummary { name: of.name, span_count: count(of.spans), error_span_count: count(of.error_spans) }
}
