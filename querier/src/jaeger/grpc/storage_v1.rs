//! `jaeger.storage.v1`: what a Jaeger up to 1.76 and 2.5 reads from the storage behind it, in Jaeger's model.
//!
//! Answers are what was written, nothing mended. The writers of the protocol are the ingester's.

use std::sync::Arc;

use spanhouse_common::id::TenantId;
use spanhouse_proto::jaeger_storage_v1::archive_span_reader_plugin_server::ArchiveSpanReaderPlugin;
use spanhouse_proto::jaeger_storage_v1::dependencies_reader_plugin_server::DependenciesReaderPlugin;
use spanhouse_proto::jaeger_storage_v1::plugin_capabilities_server::PluginCapabilities;
use spanhouse_proto::jaeger_storage_v1::span_reader_plugin_server::SpanReaderPlugin;
use spanhouse_proto::jaeger_storage_v1::{self as v1, SpansResponseChunk};
use tonic::{Request, Response, Status};

use super::call::{Messages, of_nobody, refused, streamed, unary};
use super::messages::{Cut, STORAGE_CHUNK, messages, one, spans};
use super::query_v2::{Names, distinct_names, links, operations};
use super::query_v3::found;
use super::values::{SearchFields, hint, not_found, trace_id, window};
use crate::jaeger::model::kind_word;
use crate::jaeger::{JaegerError, JaegerQueries, Operation, TraceSearch, TraceSummary};

const FETCHING: &str = "failed to fetch the trace";

#[derive(Debug)]
pub(super) struct Service(pub(super) JaegerQueries);

impl Service {
    async fn trace(
        &self,
        tenant: TenantId,
        request: v1::GetTraceRequest,
    ) -> Result<futures::stream::BoxStream<'static, Result<SpansResponseChunk, Status>>, Status> {
        let hint = hint(request.start_time, request.end_time);
        let found = self.0.trace(&[tenant], trace_id(&request.trace_id)?, hint).await;
        let trace = found.map_err(|error| refused(FETCHING, &error))?.ok_or_else(not_found)?;
        Ok(messages(one(trace), FETCHING, chunks()))
    }
}

fn chunks() -> Cut<SpansResponseChunk> {
    Arc::new(|trace, _| Box::new(spans(trace, STORAGE_CHUNK).map(|spans| SpansResponseChunk { spans })))
}

fn search(tenant: TenantId, query: Option<v1::TraceQueryParameters>) -> Result<TraceSearch, Status> {
    let query = query.ok_or_else(|| Status::invalid_argument("missing query"))?;
    let fields = SearchFields {
        service: query.service_name,
        operation: query.operation_name,
        tags: query.tags.into_iter().collect(),
        start_min: query.start_time_min,
        start_max: query.start_time_max,
        duration_min: query.duration_min,
        duration_max: query.duration_max,
        limit: query.num_traces,
        filter: None,
    };
    fields.search(tenant)
}

#[tonic::async_trait]
impl SpanReaderPlugin for Service {
    type GetTraceStream = Messages<SpansResponseChunk>;
    type FindTracesStream = Messages<SpansResponseChunk>;

    async fn get_trace(&self, request: Request<v1::GetTraceRequest>) -> Result<Response<Self::GetTraceStream>, Status> {
        streamed(&self.0, "/jaeger.storage.v1.SpanReaderPlugin/GetTrace", request, async |tenant, request| {
            self.trace(tenant, request).await
        })
        .await
    }

    async fn get_services(
        &self,
        request: Request<v1::GetServicesRequest>,
    ) -> Result<Response<v1::GetServicesResponse>, Status> {
        unary(&self.0, "/jaeger.storage.v1.SpanReaderPlugin/GetServices", request, async |tenant, _| {
            let services = self.0.services(&[tenant]).await.map_err(|error| refused("failed to fetch services", &error))?;
            Ok(services.map(|services| v1::GetServicesResponse { services }))
        })
        .await
    }

    async fn get_operations(
        &self,
        request: Request<v1::GetOperationsRequest>,
    ) -> Result<Response<v1::GetOperationsResponse>, Status> {
        unary(&self.0, "/jaeger.storage.v1.SpanReaderPlugin/GetOperations", request, async |tenant, request| {
            let operations = operations(&self.0, tenant, &request.service, &request.span_kind, Names::Stored).await?;
            let operation = |of: Operation| v1::Operation { name: of.name, span_kind: kind_word(of.kind).to_owned() };
            Ok(operations.map(|operations| v1::GetOperationsResponse {
                operation_names: distinct_names(&operations),
                operations: operations.into_iter().map(operation).collect(),
            }))
        })
        .await
    }

    async fn find_traces(
        &self,
        request: Request<v1::FindTracesRequest>,
    ) -> Result<Response<Self::FindTracesStream>, Status> {
        streamed(&self.0, "/jaeger.storage.v1.SpanReaderPlugin/FindTraces", request, async |tenant, request| {
            let traces = self.0.find_whole(search(tenant, request.query)?);
            Ok(messages(traces, "failed when searching for traces", chunks()))
        })
        .await
    }

    async fn find_trace_i_ds(
        &self,
        request: Request<v1::FindTraceIDsRequest>,
    ) -> Result<Response<v1::FindTraceIDsResponse>, Status> {
        unary(&self.0, "/jaeger.storage.v1.SpanReaderPlugin/FindTraceIDs", request, async |tenant, request| {
            let traces = found(&self.0, &search(tenant, request.query)?).await?;
            let ids = |traces: Vec<TraceSummary>| traces.into_iter().map(|of| of.trace_id.0.to_vec()).collect();
            Ok(traces.map(|traces| v1::FindTraceIDsResponse { trace_ids: ids(traces) }))
        })
        .await
    }
}

#[tonic::async_trait]
impl ArchiveSpanReaderPlugin for Service {
    type GetArchiveTraceStream = Messages<SpansResponseChunk>;

    async fn get_archive_trace(
        &self,
        request: Request<v1::GetTraceRequest>,
    ) -> Result<Response<Self::GetArchiveTraceStream>, Status> {
        const ROUTE: &str = "/jaeger.storage.v1.ArchiveSpanReaderPlugin/GetArchiveTrace";
        streamed(&self.0, ROUTE, request, async |tenant, request| match &self.0.deps().archive {
            Some(archive) => self.trace(archive.tenant_of(&tenant), request).await,
            None => Err(Status::unimplemented(JaegerError::NoArchive.to_string())),
        })
        .await
    }
}

#[tonic::async_trait]
impl DependenciesReaderPlugin for Service {
    async fn get_dependencies(
        &self,
        request: Request<v1::GetDependenciesRequest>,
    ) -> Result<Response<v1::GetDependenciesResponse>, Status> {
        unary(&self.0, "/jaeger.storage.v1.DependenciesReaderPlugin/GetDependencies", request, async |tenant, request| {
            let window = window(request.start_time, request.end_time)?;
            let links = links(&self.0, tenant, window).await?;
            Ok(links.map(|dependencies| v1::GetDependenciesResponse { dependencies }))
        })
        .await
    }
}

#[tonic::async_trait]
impl PluginCapabilities for Service {
    async fn capabilities(&self, _: Request<v1::CapabilitiesRequest>) -> Result<Response<v1::CapabilitiesResponse>, Status> {
        let archive = self.0.deps().archive.is_some();
        let can = v1::CapabilitiesResponse {
            archive_span_reader: archive,
            archive_span_writer: archive,
            // Jaeger keeps its streams for later spans, of any tenant, and one whose call is over loses the next span: collectors from 1.66
            // on end a call after each batch. A span alone is acknowledged, too.
            streaming_span_writer: false,
        };
        Ok(of_nobody(&self.0, "/jaeger.storage.v1.PluginCapabilities/Capabilities", can))
    }
}
