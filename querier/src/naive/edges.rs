//! Calls between services, span by span.

use std::collections::BTreeMap;

use spanhouse_common::model::StoredSpan;
use spanhouse_common::time::TimeRange;

use super::field::status;
use super::trace::{service, traces};
use crate::traceql::ast::Status;

/// Calls of one service by another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Calls {
    pub errors: u64,
    /// Nanoseconds of each call, ascending.
    pub durations: Vec<u64>,
}

/// By parent and child: spans that start in the range, and whose parent is in the same trace. Services without a name are none.
pub fn edges(spans: &[StoredSpan], range: TimeRange) -> BTreeMap<(String, String), Calls> {
    let mut out: BTreeMap<(String, String), Calls> = BTreeMap::new();
    for trace in traces(spans) {
        for (at, stored) in trace.spans.iter().enumerate() {
            let start = stored.span.start_unix_nano;
            let Some(parent) = trace.parents[at].filter(|_| range.min.0 <= start && start <= range.max.0) else { continue };
            let name = |stored| service(stored).filter(|name| !name.is_empty()).map(str::to_owned);
            let (Some(parent), Some(child)) = (name(trace.spans[parent]), name(stored)) else { continue };
            let calls = out.entry((parent, child)).or_default();
            calls.errors += u64::from(status(stored.span.status_code) == Status::Error);
            calls.durations.push(stored.span.end_unix_nano.saturating_sub(start));
        }
    }
    out.values_mut().for_each(|calls| calls.durations.sort_unstable());
    out
}

/// The spans of each trace, copies left out.
pub fn without_copies(spans: &[StoredSpan]) -> Vec<Vec<&StoredSpan>> {
    traces(spans).into_iter().map(|trace| trace.spans).collect()
}
