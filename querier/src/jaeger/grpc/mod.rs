//! Jaeger over gRPC: its query services, and the services of a storage that stands behind a Jaeger.
//!
//! Owns how calls become questions to [`JaegerQueries`] and answers become messages, in chunks every client takes. Does not own what a
//! question means ([`super`]), nor the writers of the storage: those are the ingester's, and the binary puts both on one port.
//!
//! - Query port: `jaeger.api_v2.QueryService`, `jaeger.api_v3.QueryService`, `jaeger.api_v2.metrics.MetricsQueryService`.
//! - Storage port: the readers of `jaeger.storage.v1` and `jaeger.storage.v2`.
//! - Both: health by name, and reflection.
//!
//! The query services show traces as Jaeger's pages do, mended and with warnings; the storage answers what was written. Traces go
//! one after the other, each whole before the next, and a message never holds spans of two. A trace is read when the one before it
//! was taken, so that an answer of any size holds a few traces at most.

mod call;
mod messages;
mod metrics;
mod pieces;
mod query_v2;
mod query_v3;
mod standard;
mod storage_v1;
mod storage_v2;
#[cfg(test)]
mod tests;
mod values;

use axum::Router;
use axum::body::Body;
use axum::response::Response as HttpResponse;
use spanhouse_proto::{jaeger_metrics, jaeger_storage_v1, jaeger_storage_v2, jaeger_v2, jaeger_v3};
use tonic::Status;
use tonic::codec::CompressionEncoding::{Gzip, Zstd};

use super::JaegerQueries;

/// The schemas of the services cannot be told to clients: a defect of the build.
#[derive(Debug, thiserror::Error)]
#[error("the gRPC schemas cannot be served: {0}")]
pub struct SchemaError(String);

/// Puts generated servers on a router, each under its service's name.
macro_rules! serve {
    ($router:expr, $($module:path as $name:ident: $server:expr),+ $(,)?) => {{
        let mut router: Router = $router;
        $({
            use $module as $name;
            let server = $server.accept_compressed(Gzip).accept_compressed(Zstd);
            router = router.route_service(&format!("/{}/{{*method}}", $name::SERVICE_NAME), server);
        })+
        router
    }};
}

/// The services of the query port, which answers nothing else.
pub async fn query_router(queries: &JaegerQueries) -> Result<Router, SchemaError> {
    const NAMES: [&str; 3] = [
        jaeger_v2::query_service_server::SERVICE_NAME,
        jaeger_v3::query_service_server::SERVICE_NAME,
        jaeger_metrics::metrics_query_service_server::SERVICE_NAME,
    ];
    let q = || queries.clone();
    let router = serve!(
        standard::routes(&NAMES, &NAMES).await?,
        jaeger_v2::query_service_server as s: s::QueryServiceServer::new(query_v2::Service(q())),
        jaeger_v3::query_service_server as s: s::QueryServiceServer::new(query_v3::Service(q())),
        jaeger_metrics::metrics_query_service_server as s: s::MetricsQueryServiceServer::new(metrics::Service(q())),
    );
    Ok(router.fallback(unimplemented))
}

/// The readers of the storage port, to stand beside the writers. Health and reflection name the writers too.
pub async fn storage_routes(queries: &JaegerQueries) -> Result<Router, SchemaError> {
    const NAMES: [&str; 12] = [
        jaeger_storage_v1::span_reader_plugin_server::SERVICE_NAME,
        jaeger_storage_v1::span_writer_plugin_server::SERVICE_NAME,
        jaeger_storage_v1::streaming_span_writer_plugin_server::SERVICE_NAME,
        jaeger_storage_v1::archive_span_reader_plugin_server::SERVICE_NAME,
        jaeger_storage_v1::archive_span_writer_plugin_server::SERVICE_NAME,
        jaeger_storage_v1::dependencies_reader_plugin_server::SERVICE_NAME,
        jaeger_storage_v1::plugin_capabilities_server::SERVICE_NAME,
        jaeger_storage_v2::trace_reader_server::SERVICE_NAME,
        jaeger_storage_v2::dependency_reader_server::SERVICE_NAME,
        jaeger_storage_v2::capabilities_server::SERVICE_NAME,
        spanhouse_proto::otlp_service::trace_service_server::SERVICE_NAME,
        // Only a name that health knows: traces are written by OTLP's own service.
        "jaeger.storage.v2.TraceWriter",
    ];
    let q = || queries.clone();
    Ok(serve!(
        standard::routes(&NAMES, &NAMES[..11]).await?,
        jaeger_storage_v1::span_reader_plugin_server as s: s::SpanReaderPluginServer::new(storage_v1::Service(q())),
        jaeger_storage_v1::archive_span_reader_plugin_server as s:
            s::ArchiveSpanReaderPluginServer::new(storage_v1::Service(q())),
        jaeger_storage_v1::dependencies_reader_plugin_server as s:
            s::DependenciesReaderPluginServer::new(storage_v1::Service(q())),
        jaeger_storage_v1::plugin_capabilities_server as s: s::PluginCapabilitiesServer::new(storage_v1::Service(q())),
        jaeger_storage_v2::trace_reader_server as s: s::TraceReaderServer::new(storage_v2::Service(q())),
        jaeger_storage_v2::dependency_reader_server as s: s::DependencyReaderServer::new(storage_v2::Service(q())),
        jaeger_storage_v2::capabilities_server as s: s::CapabilitiesServer::new(storage_v2::Service(q())),
    ))
}

async fn unimplemented() -> HttpResponse {
    Status::unimplemented("unknown service or method").into_http::<Body>()
}
