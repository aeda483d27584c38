//! What Jaeger asks of a backend: services, operations, traces found and whole, dependencies and figures for the Monitor tab.
//!
//! [`JaegerQueries`] is the **API boundary** of this module: HTTP on 16686, gRPC on 16685 and 17271 and
//! Zipkin's query API stand on it. It translates to the same engine and plans as TraceQL.
//!
//! Owns what Jaeger's queries mean. Does not own their wire forms, nor how a query runs ([`crate::engine`]).

pub mod adjust;
mod edges;
pub mod figures;
pub mod filter;
mod find;
pub mod grpc;
pub mod http;
pub mod model;
mod monitor;
mod names;
pub mod otlp_json;
pub mod paths;
mod query;
mod tags;
pub mod tenant;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod whole;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use spanhouse_common::budget::{Lease, Share};
use spanhouse_common::id::{TenantId, TraceId};
use spanhouse_common::source::Snapshots;
use spanhouse_common::time::{Clock, TimeRange};

use crate::assemble::Trace;
use crate::engine::answer::QueryStats;
use crate::engine::{EngineError, QueryEngine};
use crate::find_trace::{FindError, QueryBounds};
use crate::metrics::QuerierMetrics;
use crate::traceql::ast::FieldExpr;

/// What the queries stand on.
#[derive(Debug, Clone)]
pub struct JaegerDeps {
    pub snapshots: Arc<dyn Snapshots>,
    pub engine: Arc<dyn QueryEngine>,
    pub clock: Arc<dyn Clock>,
    /// What all queries together may hold.
    pub memory: Share,
    pub metrics: QuerierMetrics,
    pub settings: JaegerSettings,
    /// Where archived traces go; `None` if archiving is off.
    pub archive: Option<Arc<dyn Archive>>,
}

/// What an operator chooses.
#[derive(Debug, Clone)]
pub struct JaegerSettings {
    /// Whether requests name their tenant, in `x-tenant` or `X-Scope-OrgID`.
    pub multitenancy: bool,
    pub bounds: QueryBounds,
    /// Largest trace answered whole, in bytes of protobuf; of a larger one the earliest spans, with a warning.
    pub max_trace_bytes: usize,
    /// Most traces a search may ask for.
    pub max_limit: usize,
    /// How far a span's times may be moved to mend clock skew. Zero: what would be moved is only said in a warning, as Jaeger does by default.
    pub max_clock_skew_adjust: Duration,
}

/// Keeps copies of traces past their retention: a place of its own that reads fall back to.
#[async_trait]
pub trait Archive: Send + Sync + fmt::Debug {
    /// The tenant whose data holds what `tenant` archived.
    fn tenant_of(&self, tenant: &TenantId) -> TenantId;
    /// Makes a copy durable. The text of an error is for people.
    async fn archive(&self, tenant: &TenantId, trace: &Trace) -> Result<(), String>;
}

/// Why there is no answer. Protocols map it to their codes.
#[derive(Debug, Clone, thiserror::Error)]
pub enum JaegerError {
    /// The request cannot be answered as it is; the text names the field.
    #[error("{0}")]
    Invalid(String),
    #[error("archive span storage was not configured")]
    NoArchive,
    /// The archive did not take a trace; the text is its own.
    #[error("the trace was not archived: {0}")]
    NotArchived(String),
    #[error(transparent)]
    Find(#[from] FindError),
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// An answer, and why it is not complete, for people.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answer<T> {
    pub found: T,
    pub partial: Option<String>,
}

impl<T> Answer<T> {
    /// A complete one.
    pub fn whole(found: T) -> Self {
        Self { found, partial: None }
    }

    /// The same of another form.
    pub fn map<U>(self, form: impl FnOnce(T) -> U) -> Answer<U> {
        Answer { found: form(self.found), partial: self.partial }
    }
}

/// A search by one span: all that is set must hold on a single span of a trace.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TraceSearch {
    pub tenants: Vec<TenantId>,
    pub service: Option<String>,
    pub operation: Option<String>,
    /// Key and the text form of the value, ANDed; keys may be comparisons written as people type them (`http.status_code>` with `500`, `duration>1s` with
    /// nothing), which hold unless the data has an attribute of that literal key.
    pub tags: Vec<(String, String)>,
    /// Nanoseconds since 1970, both inclusive, of the span's start; `None` for no bound.
    pub start_min: Option<u64>,
    pub start_max: Option<u64>,
    /// Nanoseconds, both inclusive; `None` for no bound.
    pub duration_min: Option<u64>,
    pub duration_max: Option<u64>,
    /// What must hold beside, as [`filter::condition`] makes it.
    pub filter: Option<FieldExpr>,
    /// Most traces to find.
    pub limit: usize,
}

/// A trace found by a search. Its facts are of the whole trace.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceSummary {
    pub trace_id: TraceId,
    /// Of the parentless span with the earliest start; empty if there is none.
    pub root_service: String,
    pub root_operation: String,
    /// Nanoseconds since 1970.
    pub min_start: u64,
    pub max_end: u64,
    pub spans: u32,
    pub error_spans: u32,
    /// Spans with a parent id that is not in the trace.
    pub orphan_spans: u32,
    /// Sorted by name.
    pub services: Vec<ServiceSummary>,
}

impl TraceSummary {
    /// The same as the query API tells it, under the names that the trace shows where spans have none.
    pub fn shown(mut self) -> Self {
        // A trace without a root has neither name.
        if self.root_service.is_empty() && !self.root_operation.is_empty() {
            adjust::MISSING_SERVICE_NAME.clone_into(&mut self.root_service);
        } else if self.root_operation.is_empty() && !self.root_service.is_empty() {
            adjust::EMPTY_SPAN_NAME.clone_into(&mut self.root_operation);
        }
        if let Some(at) = self.services.iter().position(|service| service.name.is_empty()) {
            let mut nameless = self.services.remove(at);
            adjust::MISSING_SERVICE_NAME.clone_into(&mut nameless.name);
            match self.services.binary_search_by(|service| service.name.cmp(&nameless.name)) {
                Ok(at) => {
                    self.services[at].spans += nameless.spans;
                    self.services[at].error_spans += nameless.error_spans;
                }
                Err(at) => self.services.insert(at, nameless),
            }
        }
        self
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceSummary {
    pub name: String,
    pub spans: u32,
    pub error_spans: u32,
}

/// All spans of a trace as they are stored, identical copies removed, nothing adjusted. Holds its memory until dropped.
#[derive(Debug)]
pub struct WholeTrace {
    pub trace_id: TraceId,
    pub trace: Trace,
    /// Why spans may be missing, for people.
    pub partial: Option<String>,
    pub lease: Lease,
}

/// What a service does.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Operation {
    pub name: String,
    /// OTLP's number; 0 for unspecified.
    pub kind: i32,
}

/// Calls from spans of one service to their children in another (or the same) one.
#[derive(Debug, Clone, PartialEq)]
pub struct Edge {
    pub parent: String,
    pub child: String,
    pub calls: u64,
    /// Children with status ERROR.
    pub errors: u64,
    /// Of the children's durations, in nanoseconds: 0.5, 0.95, 0.99, and the sum.
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
    pub total: f64,
}

/// What the Monitor tab asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct MonitorRequest {
    pub tenants: Vec<TenantId>,
    pub figure: MonitorFigure,
    /// One at least.
    pub services: Vec<String>,
    pub by_operation: bool,
    /// OTLP's numbers; empty for server only.
    pub kinds: Vec<i32>,
    /// Milliseconds since 1970.
    pub end_ms: i64,
    pub lookback_ms: i64,
    pub step_ms: i64,
    /// Width of the window each point looks back over.
    pub rate_per_ms: i64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MonitorFigure {
    /// Quantile of durations, in milliseconds.
    Latency(f64),
    /// Calls per second.
    Calls,
    /// Part of the calls that failed, 0 to 1.
    Errors,
}

/// One service, or one operation of it.
#[derive(Debug, Clone, PartialEq)]
pub struct MonitorSeries {
    pub service: String,
    pub operation: Option<String>,
    /// Milliseconds since 1970 and the value, ascending; only where there is data in the window.
    pub points: Vec<(i64, f64)>,
}

/// Answers Jaeger's questions. Cheap to clone.
#[derive(Debug, Clone)]
pub struct JaegerQueries(Arc<JaegerDeps>);

impl JaegerQueries {
    pub fn new(deps: JaegerDeps) -> Self {
        Self(Arc::new(deps))
    }

    pub fn deps(&self) -> &JaegerDeps {
        &self.0
    }

    /// An answer with what the engine says of it, counted if it is not complete.
    fn answer<T>(&self, found: T, stats: QueryStats) -> Answer<T> {
        if stats.partial.is_some() {
            self.0.metrics.partial("query");
        }
        Answer { found, partial: stats.partial }
    }

    /// Names of services that sent spans which are still kept, sorted. Spans without a service name have none.
    pub async fn services(&self, tenants: &[TenantId]) -> Result<Answer<Vec<String>>, JaegerError> {
        names::services(self, tenants).await
    }

    /// The same as the query API tells them: spans without a service name are of `missing-service-name`, as their traces say.
    pub async fn shown_services(&self, tenants: &[TenantId]) -> Result<Answer<Vec<String>>, JaegerError> {
        names::shown_services(self, tenants).await
    }

    /// Operations of a service, sorted by name and kind; of one kind if `kind` is set.
    pub async fn operations(
        &self,
        tenants: &[TenantId],
        service: &str,
        kind: Option<i32>,
    ) -> Result<Answer<Vec<Operation>>, JaegerError> {
        names::operations(self, tenants, service, kind).await
    }

    /// The same as the query API tells them, under the names that traces show where spans have none.
    pub async fn shown_operations(
        &self,
        tenants: &[TenantId],
        service: &str,
        kind: Option<i32>,
    ) -> Result<Answer<Vec<Operation>>, JaegerError> {
        names::shown_operations(self, tenants, service, kind).await
    }

    /// Finds traces and says what they are, newest first. A service or operation that is called what spans without one are shown as finds
    /// these, too.
    pub async fn find(&self, search: &TraceSearch) -> Result<Answer<Vec<TraceSummary>>, JaegerError> {
        find::find(self, search).await
    }

    /// Finds traces and reads them whole, newest first, one after the other (a few are read ahead). The first item's error is the search's.
    /// Where nothing was found and the search is not complete, one without spans says why.
    pub fn find_whole(&self, search: TraceSearch) -> BoxStream<'static, Result<WholeTrace, JaegerError>> {
        whole::found(self.clone(), search)
    }

    /// One trace; then the archive is asked, if there is one. `hint` leaves blocks out that do not overlap it, unless nothing
    /// is found then.
    pub async fn trace(
        &self,
        tenants: &[TenantId],
        id: TraceId,
        hint: Option<TimeRange>,
    ) -> Result<Option<WholeTrace>, JaegerError> {
        whole::trace(self, tenants, id, hint).await
    }

    /// Traces in the order asked for; unknown ones are left out.
    pub fn traces(
        &self,
        tenants: Vec<TenantId>,
        ids: Vec<TraceId>,
        hint: Option<TimeRange>,
    ) -> BoxStream<'static, Result<WholeTrace, JaegerError>> {
        whole::traces(self.clone(), tenants, ids, hint)
    }

    /// Copies a trace to the archive. `None` if there is no such trace.
    pub async fn archive(&self, tenant: &TenantId, id: TraceId, hint: Option<TimeRange>) -> Result<Option<()>, JaegerError> {
        whole::archive(self, tenant, id, hint).await
    }

    /// Edges of the service graph, by parent and child, of the called spans that start in a range. Those of services without a
    /// name are left out.
    pub async fn dependencies(&self, tenants: &[TenantId], range: TimeRange) -> Result<Answer<Vec<Edge>>, JaegerError> {
        edges::dependencies(self, tenants, range).await
    }

    /// Figures over time for the Monitor tab, by service and operation, sorted by these.
    pub async fn monitor(&self, request: &MonitorRequest) -> Result<Answer<Vec<MonitorSeries>>, JaegerError> {
        monitor::monitor(self, request).await
    }
}
