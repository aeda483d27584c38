//! What every gRPC port has: health by service name, and reflection in both of its versions.

use axum::Router;
use spanhouse_proto::DESCRIPTORS;
use tonic_health::ServingStatus;
use tonic_health::pb::FILE_DESCRIPTOR_SET as HEALTH;
use tonic_health::pb::health_server::SERVICE_NAME as HEALTH_NAME;
use tonic_reflection::pb::{v1, v1alpha};
use tonic_reflection::server::Builder;

use super::SchemaError;

const REFLECTION: &str = v1::server_reflection_server::SERVICE_NAME;
const REFLECTION_ALPHA: &str = v1alpha::server_reflection_server::SERVICE_NAME;

/// Routes on which `healthy` services are told to be well and `shown` ones can be looked up. A port answers only when all of it is there.
pub(super) async fn routes(healthy: &[&str], shown: &[&str]) -> Result<Router, SchemaError> {
    let (reporter, health) = tonic_health::server::health_reporter();
    for name in healthy {
        reporter.set_service_status(name, ServingStatus::Serving).await;
    }
    let names = shown.iter().copied().chain([HEALTH_NAME, REFLECTION, REFLECTION_ALPHA]);
    let builder = || {
        let schemas = [DESCRIPTORS, HEALTH, v1::FILE_DESCRIPTOR_SET, v1alpha::FILE_DESCRIPTOR_SET];
        let builder = schemas.into_iter().fold(Builder::configure(), Builder::register_encoded_file_descriptor_set);
        names.clone().fold(builder.include_reflection_service(false), Builder::with_service_name)
    };
    let failed = |error: tonic_reflection::server::Error| SchemaError(error.to_string());
    Ok(Router::new()
        .route_service(&path(HEALTH_NAME), health)
        .route_service(&path(REFLECTION), builder().build_v1().map_err(failed)?)
        .route_service(&path(REFLECTION_ALPHA), builder().build_v1alpha().map_err(failed)?))
}

fn path(service: &str) -> String {
    format!("/{service}/{{*method}}")
}
