//! What a query answers, free of any wire form: the API writes JSON and protobuf of it.

use std::sync::Arc;

use spanhouse_common::id::{SpanId, TraceId};

/// A typed value of a label, a column of a result or a tag.
#[derive(Debug, Clone, PartialEq)]
pub enum AnswerValue {
    /// Also durations (in Go's form), status and kind (their words), and `nil`.
    Str(Arc<str>),
    Int(i64),
    Float(f64),
    Bool(bool),
    /// Of one type.
    Array(Vec<AnswerValue>),
}

/// A key with its value. Keys of search results have no scope, those of series do.
#[derive(Debug, Clone, PartialEq)]
pub struct AnswerAttribute {
    pub key: Arc<str>,
    pub value: AnswerValue,
}

/// What a query looked at, and whether that was all.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct QueryStats {
    pub inspected_traces: u32,
    pub inspected_bytes: u64,
    pub inspected_spans: u64,
    pub total_blocks: u32,
    pub total_block_bytes: u64,
    pub completed_jobs: u32,
    /// More than completed ones if the answer is cut.
    pub total_jobs: u32,
    /// Why the answer is not complete, for people.
    pub partial: Option<String>,
}

impl QueryStats {
    /// Says that something is missing; a reason that is known already is not said twice.
    pub(crate) fn miss(&mut self, why: String) {
        match &mut self.partial {
            Some(known) if known.contains(&why) => {}
            Some(known) => {
                known.push_str("; ");
                known.push_str(&why);
            }
            none => *none = Some(why),
        }
    }

    /// Searches and tags have no other place in their answer to say that something is missing, and what could not even be
    /// opened never was a job.
    pub(crate) fn leave_a_job_open(&mut self) {
        if self.completed_jobs >= self.total_jobs {
            self.total_jobs = self.completed_jobs.saturating_add(1);
        }
    }
}

/// Found traces, newest first by (start descending, trace id).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SearchAnswer {
    pub traces: Vec<TraceResult>,
    pub stats: QueryStats,
}

/// One trace of a search. Its facts are of the whole trace.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceResult {
    pub trace_id: TraceId,
    /// `None` if the root is not there, or its service has no name.
    pub root_service: Option<Arc<str>>,
    pub root_name: Option<Arc<str>>,
    pub start_unix_nano: u64,
    pub duration_nanos: u64,
    /// Empty only for a search by tags.
    pub span_sets: Vec<SpanSetResult>,
    /// By service name, sorted; empty for a search by tags.
    pub services: Vec<ServiceStats>,
    /// Spans that name a parent which is not in the trace.
    pub orphans: u32,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ServiceStats {
    pub service: Arc<str>,
    pub spans: u32,
    pub errors: u32,
}

#[derive(Debug, Clone, PartialEq)]
pub struct SpanSetResult {
    /// At most as many as were asked for; never empty.
    pub spans: Vec<SpanResult>,
    /// How many there are.
    pub matched: u32,
    /// Values of `by()` and aggregates.
    pub attributes: Vec<AnswerAttribute>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct SpanResult {
    pub span_id: SpanId,
    /// Only if the query names it.
    pub name: Option<Arc<str>>,
    pub start_unix_nano: u64,
    pub duration_nanos: u64,
    pub attributes: Vec<AnswerAttribute>,
}

/// Series of a metrics query, in their final order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SeriesAnswer {
    pub series: Vec<Series>,
    pub stats: QueryStats,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    pub labels: Vec<AnswerAttribute>,
    /// Ascending by time; gaps are left out, zeros are not. One sample for an instant query.
    pub samples: Vec<Sample>,
    pub exemplars: Vec<Exemplar>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    pub timestamp_ms: i64,
    pub value: f64,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Exemplar {
    pub labels: Vec<AnswerAttribute>,
    pub value: f64,
    pub timestamp_ms: i64,
}

/// Names of tags by scope.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TagNamesAnswer {
    pub scopes: Vec<TagScope>,
    pub stats: QueryStats,
}

/// A scope that has tags, and these, sorted.
#[derive(Debug, Clone, PartialEq)]
pub struct TagScope {
    /// `span`, `resource`, `event`, `link`, `instrumentation` or `intrinsic`.
    pub name: &'static str,
    pub tags: Vec<String>,
}

/// Distinct values of a tag, sorted by type and value.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TagValuesAnswer {
    pub values: Vec<TagValue>,
    pub stats: QueryStats,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TagValue {
    /// `string`, `int`, `float`, `bool`, `duration` or `keyword`.
    pub kind: &'static str,
    pub text: String,
}

/// What services do.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OperationsAnswer {
    /// Sorted, each once.
    pub operations: Vec<OperationStats>,
    pub stats: QueryStats,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct OperationStats {
    /// Empty for spans whose service has no name.
    pub service: Arc<str>,
    pub name: Arc<str>,
    /// OTLP's number.
    pub kind: i32,
    pub spans: u64,
}

/// Calls between services.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EdgesAnswer {
    /// Sorted by parent and child, each pair once.
    pub edges: Vec<EdgeStats>,
    pub stats: QueryStats,
}

/// Spans of one service whose parent is of another, or the same, one.
#[derive(Debug, Clone, PartialEq)]
pub struct EdgeStats {
    pub parent: Arc<str>,
    pub child: Arc<str>,
    pub calls: u64,
    /// Of these, those with status ERROR.
    pub errors: u64,
    /// Quantiles of durations in nanoseconds, in the order asked for, within 0.8 %.
    pub quantiles: Vec<f64>,
    /// Nanoseconds.
    pub total: f64,
}
