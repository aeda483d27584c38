//! What an operator chooses of the API. Defaults are Tempo's, but for the cutoff: our answers are fresh.

use std::time::Duration;

use crate::find_trace::QueryBounds;

#[derive(Debug, Clone, Copy)]
pub struct ApiSettings {
    /// Whether requests name their tenant in `X-Scope-OrgID`.
    pub multitenancy: bool,
    /// Whether one request may name several tenants, as `a|b`.
    pub multi_tenant_queries: bool,
    /// Largest trace answered whole, in bytes of protobuf. Larger means memory per request, smaller means partial traces.
    pub max_trace_bytes: usize,
    pub bounds: QueryBounds,
    /// Longest `q`.
    pub max_expression_bytes: usize,
    /// How far queries keep from the present, so that what is still arriving is not half seen.
    pub end_cutoff: Duration,
    /// What searches and tags look back without `start` and `end`.
    pub default_search_range: Duration,
    /// Longest range of searches and tags; zero for any.
    pub max_search_range: Duration,
    pub default_limit: u32,
    pub max_limit: u32,
    pub default_spans_per_set: u32,
    pub max_spans_per_set: u32,
    /// Longest range of a metrics query; zero for any.
    pub max_metrics_range: Duration,
    /// Most samples of a series.
    pub max_intervals: u64,
    pub max_exemplars: u32,
    /// Most series; zero for any number.
    pub max_series: u32,
    /// Bytes of all names or values of one answer about tags.
    pub max_tag_bytes: usize,
    /// Whether `/api/mcp` is served.
    pub mcp: bool,
}

impl Default for ApiSettings {
    fn default() -> Self {
        Self {
            multitenancy: false,
            multi_tenant_queries: true,
            max_trace_bytes: 100_000_000,
            bounds: QueryBounds::default(),
            max_expression_bytes: 128 * 1024,
            end_cutoff: Duration::ZERO,
            default_search_range: Duration::from_mins(15),
            max_search_range: Duration::from_hours(168),
            default_limit: 20,
            max_limit: 262_144,
            default_spans_per_set: 3,
            max_spans_per_set: 100,
            max_metrics_range: Duration::from_hours(24),
            max_intervals: 10_000,
            max_exemplars: 100,
            max_series: 0,
            max_tag_bytes: 1_000_000,
            mcp: false,
        }
    }
}
