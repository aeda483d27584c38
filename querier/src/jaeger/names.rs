//! Services and what they do.

use std::collections::BTreeSet;

use spanhouse_common::id::TenantId;

use super::{Answer, JaegerError, JaegerQueries, Operation};
use crate::engine::OperationsRequest;

/// Of names in one answer. Clients read it whole.
const MAX_BYTES: usize = 32 << 20;

pub(super) async fn services(queries: &JaegerQueries, tenants: &[TenantId]) -> Result<Answer<Vec<String>>, JaegerError> {
    let request = OperationsRequest { tenants: tenants.to_vec(), service: None, range: None, max_bytes: MAX_BYTES };
    let answer = queries.deps().engine.operations(request).await?;
    let mut out: Vec<String> = Vec::new();
    for operation in answer.operations.iter().filter(|operation| !operation.service.is_empty()) {
        if out.last().is_none_or(|last| **last != *operation.service) {
            out.push(operation.service.to_string());
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
    let service = Some(service.to_owned());
    let request = OperationsRequest { tenants: tenants.to_vec(), service, range: None, max_bytes: MAX_BYTES };
    let answer = queries.deps().engine.operations(request).await?;
    let wanted = answer.operations.into_iter().filter(|operation| kind.is_none_or(|kind| kind == operation.kind));
    let sorted: BTreeSet<Operation> =
        wanted.map(|operation| Operation { name: operation.name.to_string(), kind: operation.kind }).collect();
    Ok(queries.answer(sorted.into_iter().collect(), answer.stats))
}
