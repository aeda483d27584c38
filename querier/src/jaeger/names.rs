//! Services and what they do.
//!
//! Owns what spans without names are listed under where the query API lists them: the names that it shows on their spans.

use std::collections::BTreeSet;

use spanhouse_common::id::TenantId;

use super::adjust::{MISSING_SERVICE_NAME, shown_operation};
use super::{Answer, JaegerError, JaegerQueries, Operation};
use crate::engine::OperationsRequest;
use crate::engine::answer::OperationStats;

/// Of names in one answer. Clients read it whole.
const MAX_BYTES: usize = 32 << 20;

pub(super) async fn services(queries: &JaegerQueries, tenants: &[TenantId]) -> Result<Answer<Vec<String>>, JaegerError> {
    let all = of_all(queries, tenants).await?;
    Ok(all.map(|mut all| {
        all.remove("");
        all.into_iter().collect()
    }))
}

pub(super) async fn shown_services(
    queries: &JaegerQueries,
    tenants: &[TenantId],
) -> Result<Answer<Vec<String>>, JaegerError> {
    let all = of_all(queries, tenants).await?;
    Ok(all.map(|mut all| {
        if all.remove("") {
            all.insert(MISSING_SERVICE_NAME.to_owned());
        }
        all.into_iter().collect()
    }))
}

/// The empty name is that of spans without one.
async fn of_all(queries: &JaegerQueries, tenants: &[TenantId]) -> Result<Answer<BTreeSet<String>>, JaegerError> {
    let request = OperationsRequest { tenants: tenants.to_vec(), service: None, range: None, max_bytes: MAX_BYTES };
    let answer = queries.deps().engine.operations(request).await?;
    let mut out = BTreeSet::new();
    for operation in &answer.operations {
        if !out.contains(&*operation.service) {
            out.insert(operation.service.to_string());
        }
    }
    Ok(queries.answer(out, answer.stats))
}

pub(super) async fn operations(
    queries: &JaegerQueries,
    tenants: &[TenantId],
    service: &str,
    kind: Option<i32>,
) -> Result<Answer<Vec<Operation>>, JaegerError> {
    let sorted = of_service(queries, tenants, service, kind, |name| name).await?;
    Ok(sorted.map(|sorted| sorted.into_iter().collect()))
}

pub(super) async fn shown_operations(
    queries: &JaegerQueries,
    tenants: &[TenantId],
    service: &str,
    kind: Option<i32>,
) -> Result<Answer<Vec<Operation>>, JaegerError> {
    let mut sorted = of_service(queries, tenants, service, kind, shown_operation).await?;
    if service == MISSING_SERVICE_NAME {
        let mut nameless = of_service(queries, tenants, "", kind, shown_operation).await?;
        sorted.found.append(&mut nameless.found);
        sorted.partial = sorted.partial.or(nameless.partial);
    }
    Ok(sorted.map(|sorted| sorted.into_iter().collect()))
}

async fn of_service(
    queries: &JaegerQueries,
    tenants: &[TenantId],
    service: &str,
    kind: Option<i32>,
    name: impl Fn(&str) -> &str,
) -> Result<Answer<BTreeSet<Operation>>, JaegerError> {
    let service = Some(service.to_owned());
    let request = OperationsRequest { tenants: tenants.to_vec(), service, range: None, max_bytes: MAX_BYTES };
    let answer = queries.deps().engine.operations(request).await?;
    let wanted = answer.operations.into_iter().filter(|operation| kind.is_none_or(|kind| kind == operation.kind));
    let of = |operation: OperationStats| Operation { name: name(&operation.name).to_owned(), kind: operation.kind };
    let found = wanted.map(of).collect();
    Ok(queries.answer(found, answer.stats))
}
