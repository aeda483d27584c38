//! Whose data a request may read.

use axum::http::{HeaderMap, HeaderName};
use spanhouse_common::id::TenantId;

use super::ApiSettings;
use super::error::ApiError;

const ORG_ID: HeaderName = HeaderName::from_static("x-scope-orgid");

/// As [`tenants`], for gRPC: some clients send the tenant twice, which is fine while both say the same.
pub(crate) fn grpc_tenants(headers: &HeaderMap, settings: &ApiSettings) -> Result<Vec<TenantId>, ApiError> {
    let mut names = headers.get_all(ORG_ID).iter();
    let first = names.next();
    if settings.multitenancy && names.any(|name| Some(name) != first) {
        return Err(ApiError::ContradictoryTenants);
    }
    tenants(headers, settings)
}

/// The tenants of a request, sorted, each once.
pub(crate) fn tenants(headers: &HeaderMap, settings: &ApiSettings) -> Result<Vec<TenantId>, ApiError> {
    if !settings.multitenancy {
        return Ok(vec![TenantId::single()]);
    }
    let header = headers.get(ORG_ID).map(|value| String::from_utf8_lossy(value.as_bytes()));
    let names = header.filter(|names| !names.is_empty()).ok_or(ApiError::NoTenant)?;
    let mut tenants = names.split('|').map(str::parse).collect::<Result<Vec<TenantId>, _>>()?;
    tenants.sort_unstable();
    tenants.dedup();
    if tenants.len() > 1 && !settings.multi_tenant_queries {
        return Err(ApiError::ManyTenants);
    }
    Ok(tenants)
}
