//! The query engine: TraceQL over the sources of a snapshot.
//!
//! Owns what queries mean and how they run: jobs, pruning, memory, deadlines. Does not own the language ([`crate::traceql`]), the
//! wire ([`crate::api`]) nor how columns lie in blocks or live data (`spanhouse_common`).

pub mod answer;
mod bits;
mod budget;
mod edges;
mod expr;
mod field;
mod filter;
pub(crate) mod form;
mod hidden;
mod key;
mod parts;
mod pipeline;
mod plan;
mod read;
mod run;
mod search;
mod series;
mod shared;
mod structure;
pub(crate) mod tag_search;
mod tags;
mod texts;
mod value;

use std::sync::Arc;

use async_trait::async_trait;
use spanhouse_common::id::TenantId;
use spanhouse_common::model::StoredSpan;
use spanhouse_common::source::SourceError;
use spanhouse_common::time::TimeRange;

use crate::traceql::ast;
pub use run::Engine;

use answer::{EdgesAnswer, OperationsAnswer, SearchAnswer, SeriesAnswer, TagNamesAnswer, TagValuesAnswer};

/// A search. The query is checked.
#[derive(Debug, Clone)]
pub struct SearchRequest {
    pub tenants: Vec<TenantId>,
    pub filter: SearchFilter,
    /// Traces that overlap it; `None` for all.
    pub range: Option<TimeRange>,
    /// Most traces to answer.
    pub limit: usize,
    /// Most spans of each span set.
    pub spans_per_set: usize,
}

/// What a search looks for.
#[derive(Debug, Clone)]
pub enum SearchFilter {
    /// The spans of a TraceQL query; of a metrics query, those it would measure.
    TraceQl(Arc<ast::Query>),
    Tags(TagSearch),
}

/// The legacy search by `tags=`, with bounds on the trace's duration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TagSearch {
    /// All must hold in one resource of the trace.
    pub tags: Vec<(String, String)>,
    /// 0 for none, as all bounds here.
    pub min_duration_ms: u32,
    pub max_duration_ms: u32,
}

/// A metrics query. The query is checked.
#[derive(Debug, Clone)]
pub struct MetricsRequest {
    pub tenants: Vec<TenantId>,
    pub query: Arc<ast::Query>,
    pub grid: Grid,
    /// Most exemplars; 0 for none. The query's hint is applied already.
    pub exemplars: usize,
    /// Most series; 0 for no limit.
    pub max_series: usize,
    /// For quantiles in sliding windows: how many steps each sample looks back over, its own included. A window without spans has
    /// no sample, and spans that took no time count.
    pub window: Option<u32>,
}

/// When samples are taken. Bucket `i` holds spans with `start + i * step < start time <= start + (i + 1) * step`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// Nanoseconds since 1970, as `end`.
    pub start: u64,
    pub end: u64,
    /// Nanoseconds; the whole range for an instant query.
    pub step: u64,
    pub instant: bool,
}

/// Which tag names are wanted.
#[derive(Debug, Clone)]
pub struct TagNamesRequest {
    pub tenants: Vec<TenantId>,
    /// One of [`answer::TagScope::name`]; `None` for all. Intrinsics are the API's to add.
    pub scope: Option<ast::Scope>,
    pub range: Option<TimeRange>,
    /// Most names of a scope; 0 for no limit.
    pub limit: usize,
    /// Most bytes of all names.
    pub max_bytes: usize,
    /// Only names on spans that this holds for. Parsed leniently, checked.
    pub filter: Option<Arc<ast::FieldExpr>>,
}

/// Which values of a tag are wanted.
#[derive(Debug, Clone)]
pub struct TagValuesRequest {
    pub tenants: Vec<TenantId>,
    pub attribute: ast::Attribute,
    pub range: Option<TimeRange>,
    /// Most values; 0 for no limit.
    pub limit: usize,
    /// Most bytes of all values.
    pub max_bytes: usize,
    pub filter: Option<Arc<ast::FieldExpr>>,
}

/// Which operations are wanted.
#[derive(Debug, Clone)]
pub struct OperationsRequest {
    pub tenants: Vec<TenantId>,
    /// `None` for those of all services.
    pub service: Option<String>,
    /// Data that overlaps it; `None` for all.
    pub range: Option<TimeRange>,
    /// Most bytes of all operations.
    pub max_bytes: usize,
}

/// Which calls between services are wanted.
#[derive(Debug, Clone)]
pub struct EdgesRequest {
    pub tenants: Vec<TenantId>,
    /// When the called spans start; both ends included.
    pub range: TimeRange,
    /// Of the called spans' durations, 0 to 1.
    pub quantiles: Vec<f64>,
}

/// Why a query has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EngineError {
    /// The query cannot be run on this data: told as a run-time error.
    #[error("{0}")]
    Evaluation(String),
    #[error("context deadline exceeded")]
    Deadline,
    #[error("too many outstanding requests")]
    Busy,
    /// Over the query's budget; the text says what to change.
    #[error("{0}")]
    OverBudget(String),
    #[error(transparent)]
    Source(#[from] SourceError),
}

/// Receives an answer so far, newest data first. Never called after the answer was returned.
pub trait Progress<A>: Send + Sync {
    fn so_far(&self, answer: A);
}

/// For callers that only want the end.
#[derive(Debug, Clone, Copy)]
pub struct Quiet;

impl<A> Progress<A> for Quiet {
    fn so_far(&self, _: A) {}
}

/// Whether a span is chosen.
pub type SpanPredicate = Box<dyn Fn(&StoredSpan) -> bool + Send + Sync>;

/// Runs queries. The API is tested over a fake of it.
#[async_trait]
pub trait QueryEngine: Send + Sync + std::fmt::Debug {
    async fn search(
        &self,
        request: SearchRequest,
        progress: &dyn Progress<SearchAnswer>,
    ) -> Result<SearchAnswer, EngineError>;
    async fn metrics(
        &self,
        request: MetricsRequest,
        progress: &dyn Progress<SeriesAnswer>,
    ) -> Result<SeriesAnswer, EngineError>;
    async fn tag_names(&self, request: TagNamesRequest) -> Result<TagNamesAnswer, EngineError>;
    async fn tag_values(&self, request: TagValuesRequest) -> Result<TagValuesAnswer, EngineError>;
    async fn operations(&self, request: OperationsRequest) -> Result<OperationsAnswer, EngineError>;
    async fn edges(&self, request: EdgesRequest) -> Result<EdgesAnswer, EngineError>;
    /// For trace by id: whether `filter` holds for a span. Names nothing that one span alone does not know.
    fn span_filter(&self, filter: &ast::FieldExpr) -> SpanPredicate;
}

#[cfg(test)]
mod tests;
