//! Whose data a request may read.

use axum::http::{HeaderMap, HeaderName};
use spanhouse_common::id::TenantId;

use super::ApiSettings;
use super::error::ApiError;

const ORG_ID: HeaderName = HeaderName::from_static("x-scope-orgid");

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
