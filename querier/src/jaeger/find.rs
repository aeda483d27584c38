//! Finding traces: a search translated, run by the engine, and told as summaries.
//!
//! Owns when a key that looks like a comparison is one: if no attribute of the data has that very name.

use std::collections::HashSet;
use std::sync::Arc;

use spanhouse_common::time::{TimeRange, UnixNanos};

use super::query::query;
use super::tags::{conditions, suspects};
use super::{Answer, JaegerError, JaegerQueries, ServiceSummary, TraceSearch, TraceSummary};
use crate::engine::answer::TraceResult;
use crate::engine::{Quiet, SearchFilter, SearchRequest, TagNamesRequest};

/// Of all names of attributes, where it must be known whether one of them looks like a comparison.
const MAX_NAME_BYTES: usize = 16 << 20;

/// Each is looked for in five places of every span.
const MAX_TAGS: usize = 100;

pub(super) async fn find(queries: &JaegerQueries, search: &TraceSearch) -> Result<Answer<Vec<TraceSummary>>, JaegerError> {
    let deps = queries.deps();
    if search.tags.len() > MAX_TAGS {
        return Err(JaegerError::Invalid(format!("more than {MAX_TAGS} tags: ask for fewer")));
    }
    let range = range_of(search);
    let limit = search.limit.min(deps.settings.max_limit);
    if limit == 0 || range.is_some_and(|range| range.min > range.max) {
        return Ok(Answer::default());
    }
    let literal = literal_keys(queries, search, range).await?;
    let query = Arc::new(query(search, &conditions(&search.tags, |key| literal.contains(key))));
    let filter = SearchFilter::TraceQl(query);
    let request = SearchRequest { tenants: search.tenants.clone(), filter, range, limit, spans_per_set: 1 };
    let answer = deps.engine.search(request, &Quiet).await?;
    Ok(queries.answer(answer.traces.into_iter().map(summary).collect(), answer.stats))
}

/// When spans that count start.
fn range_of(search: &TraceSearch) -> Option<TimeRange> {
    let bound = |bound: Option<u64>, other| UnixNanos(bound.unwrap_or(other));
    let is_bound = search.start_min.is_some() || search.start_max.is_some();
    is_bound.then(|| TimeRange { min: bound(search.start_min, 0), max: bound(search.start_max, u64::MAX) })
}

/// Of the keys that look like comparisons, those that attributes have.
async fn literal_keys(
    queries: &JaegerQueries,
    search: &TraceSearch,
    range: Option<TimeRange>,
) -> Result<HashSet<String>, JaegerError> {
    let suspects = suspects(&search.tags);
    if suspects.is_empty() {
        return Ok(HashSet::new());
    }
    let tenants = search.tenants.clone();
    let request = TagNamesRequest { tenants, scope: None, range, limit: 0, max_bytes: MAX_NAME_BYTES, filter: None };
    let names = queries.deps().engine.tag_names(request).await?;
    let known: HashSet<&str> = names.scopes.iter().flat_map(|scope| scope.tags.iter().map(String::as_str)).collect();
    Ok(suspects.into_iter().filter(|key| known.contains(key)).map(str::to_owned).collect())
}

fn summary(found: TraceResult) -> TraceSummary {
    let text = |text: Option<Arc<str>>| text.map_or_else(String::new, |text| text.to_string());
    TraceSummary {
        trace_id: found.trace_id,
        root_service: text(found.root_service),
        root_operation: text(found.root_name),
        min_start: found.start_unix_nano,
        max_end: found.start_unix_nano.saturating_add(found.duration_nanos),
        spans: found.services.iter().map(|service| service.spans).sum(),
        error_spans: found.services.iter().map(|service| service.errors).sum(),
        orphan_spans: found.orphans,
        services: found
            .services
            .iter()
            .map(|service| ServiceSummary {
                name: service.service.to_string(),
                spans: service.spans,
                error_spans: service.errors,
            })
            .collect(),
    }
}
