//! Dependencies between services.

use spanhouse_common::id::TenantId;
use spanhouse_common::time::TimeRange;

use super::{Answer, Edge, JaegerError, JaegerQueries};
use crate::engine::EdgesRequest;

const QUANTILES: [f64; 3] = [0.5, 0.95, 0.99];

pub(super) async fn dependencies(
    queries: &JaegerQueries,
    tenants: &[TenantId],
    range: TimeRange,
) -> Result<Answer<Vec<Edge>>, JaegerError> {
    if range.min > range.max {
        return Ok(Answer::default());
    }
    let request = EdgesRequest { tenants: tenants.to_vec(), range, quantiles: QUANTILES.into() };
    let answer = queries.deps().engine.edges(request).await?;
    let edges = answer.edges.into_iter().map(|edge| {
        let quantile = |at: usize| edge.quantiles.get(at).copied().unwrap_or(f64::NAN);
        Edge {
            p50: quantile(0),
            p95: quantile(1),
            p99: quantile(2),
            parent: edge.parent.to_string(),
            child: edge.child.to_string(),
            calls: edge.calls,
            errors: edge.errors,
            total: edge.total,
        }
    });
    Ok(queries.answer(edges.collect(), answer.stats))
}
