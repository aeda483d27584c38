//! What an engine asks of a tree: which attributes a query names, its hints, and the names of things.
//!
//! The tree itself is in [`ast`](super::ast), its text in [`print`](super::print).

use super::ast::{
    Aggregate, Attribute, FieldExpr, Intrinsic, Kind, MetricsExpr, MetricsFunction, Pipeline, PipelineExpr, Query, Root,
    ScalarExpr, SpansetExpr, Stage, Status,
};

impl Query {
    /// Whether the query makes series, not spans.
    pub fn is_metrics(&self) -> bool {
        matches!(self.root, Root::Metrics(_))
    }

    /// Every attribute the query names, in the order it names them, as often as it does.
    pub fn attributes(&self) -> Vec<&Attribute> {
        let mut found = Vec::new();
        match &self.root {
            Root::Spans(spans) => pipelines(spans, &mut found),
            Root::Metrics(metrics) => series(metrics, &mut found),
        }
        found
    }
}

impl FieldExpr {
    /// Every attribute the expression names, in order, as often as it does.
    pub fn attributes(&self) -> Vec<&Attribute> {
        let mut found = Vec::new();
        field(self, &mut found);
        found
    }
}

fn pipelines<'a>(expr: &'a PipelineExpr, found: &mut Vec<&'a Attribute>) {
    match expr {
        PipelineExpr::Pipeline(inner) => pipeline(inner, found),
        PipelineExpr::Binary { left, right, .. } => {
            pipelines(left, found);
            pipelines(right, found);
        }
    }
}

fn pipeline<'a>(pipeline: &'a Pipeline, found: &mut Vec<&'a Attribute>) {
    for stage in &pipeline.stages {
        match stage {
            Stage::Spanset(expr) => spanset(expr, found),
            Stage::Scalar(filter) => {
                scalar(&filter.left, found);
                scalar(&filter.right, found);
            }
            Stage::Group(expr) => field(expr, found),
            Stage::Coalesce => {}
            Stage::Select(attributes) => found.extend(attributes),
        }
    }
}

fn spanset<'a>(expr: &'a SpansetExpr, found: &mut Vec<&'a Attribute>) {
    match expr {
        SpansetExpr::Filter(expr) => field(expr, found),
        SpansetExpr::Binary { left, right, .. } => {
            spanset(left, found);
            spanset(right, found);
        }
    }
}

fn scalar<'a>(expr: &'a ScalarExpr, found: &mut Vec<&'a Attribute>) {
    match expr {
        ScalarExpr::Aggregate(inner) => aggregate(inner, found),
        ScalarExpr::Static(_) => {}
        ScalarExpr::Binary { left, right, .. } => {
            scalar(left, found);
            scalar(right, found);
        }
        ScalarExpr::Pipeline(inner, last) => {
            pipeline(inner, found);
            aggregate(last, found);
        }
    }
}

fn aggregate<'a>(aggregate: &'a Aggregate, found: &mut Vec<&'a Attribute>) {
    if let Some(operand) = aggregate.operand() {
        field(operand, found);
    }
}

fn field<'a>(expr: &'a FieldExpr, found: &mut Vec<&'a Attribute>) {
    match expr {
        FieldExpr::Static(_) => {}
        FieldExpr::Attribute(attribute) => found.push(attribute),
        FieldExpr::Unary { inner, .. } | FieldExpr::Exists { inner, .. } | FieldExpr::OneOf { inner, .. } => {
            field(inner, found);
        }
        FieldExpr::Binary { left, right, .. } => {
            field(left, found);
            field(right, found);
        }
    }
}

fn series<'a>(expr: &'a MetricsExpr, found: &mut Vec<&'a Attribute>) {
    match expr {
        MetricsExpr::Query(query) => {
            pipelines(&query.spans, found);
            match &query.function {
                MetricsFunction::Rate | MetricsFunction::CountOverTime => {}
                MetricsFunction::Compare { filter, .. } => field(filter, found),
                MetricsFunction::MinOverTime(attribute)
                | MetricsFunction::MaxOverTime(attribute)
                | MetricsFunction::SumOverTime(attribute)
                | MetricsFunction::AvgOverTime(attribute)
                | MetricsFunction::HistogramOverTime(attribute)
                | MetricsFunction::QuantileOverTime(attribute, _) => found.push(attribute),
            }
            found.extend(&query.by);
        }
        MetricsExpr::Stage { input, .. } | MetricsExpr::ScalarMath { input, .. } => series(input, found),
        MetricsExpr::Math { left, right, .. } => {
            series(left, found);
            series(right, found);
        }
    }
}

impl Aggregate {
    /// What it aggregates; spans themselves for `count()`.
    pub fn operand(&self) -> Option<&FieldExpr> {
        match self {
            Self::Count => None,
            Self::Sum(operand) | Self::Avg(operand) | Self::Min(operand) | Self::Max(operand) => Some(operand),
        }
    }
}

impl MetricsFunction {
    /// Its name in a query, which is the `__name__` of its series too.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::CountOverTime => "count_over_time",
            Self::MinOverTime(_) => "min_over_time",
            Self::MaxOverTime(_) => "max_over_time",
            Self::SumOverTime(_) => "sum_over_time",
            Self::AvgOverTime(_) => "avg_over_time",
            Self::HistogramOverTime(_) => "histogram_over_time",
            Self::QuantileOverTime(..) => "quantile_over_time",
            Self::Compare { .. } => "compare",
        }
    }
}

impl Attribute {
    /// The canonical text: label keys, and what an equal attribute is written as.
    pub fn text(&self) -> String {
        self.to_string()
    }

    /// The key in search results: without scope, intrinsics by their canonical text.
    pub fn bare_name(&self) -> &str {
        match self {
            Self::Intrinsic(intrinsic) => intrinsic.as_str(),
            Self::Scoped { name, .. } | Self::StringForm { name, .. } => name,
            Self::Start => "start",
            Self::End => "end",
            Self::EventTime => "event:time",
            Self::TraceState => "traceState",
            Self::LinkTraceState => "link:traceState",
            Self::ResourceSchema => "resource:schemaURL",
            Self::ScopeSchema => "instrumentation:schemaURL",
        }
    }
}

impl Intrinsic {
    /// The canonical text, which a query may write too.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Duration => "duration",
            Self::Status => "status",
            Self::StatusMessage => "statusMessage",
            Self::Kind => "kind",
            Self::ChildCount => "span:childCount",
            Self::SpanId => "span:id",
            Self::ParentId => "span:parentID",
            Self::TraceId => "trace:id",
            Self::TraceDuration => "traceDuration",
            Self::RootName => "rootName",
            Self::RootService => "rootServiceName",
            Self::EventName => "event:name",
            Self::EventTimeSinceStart => "event:timeSinceStart",
            Self::LinkTraceId => "link:traceID",
            Self::LinkSpanId => "link:spanID",
            Self::InstrumentationName => "instrumentation:name",
            Self::InstrumentationVersion => "instrumentation:version",
            Self::NestedSetLeft => "nestedSetLeft",
            Self::NestedSetRight => "nestedSetRight",
            Self::NestedSetParent => "nestedSetParent",
            Self::Parent => "parent",
        }
    }
}

impl Status {
    pub const ALL: [Self; 3] = [Self::Ok, Self::Error, Self::Unset];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unset => "unset",
            Self::Ok => "ok",
            Self::Error => "error",
        }
    }
}

impl Kind {
    pub const ALL: [Self; 6] =
        [Self::Client, Self::Server, Self::Producer, Self::Consumer, Self::Internal, Self::Unspecified];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::Internal => "internal",
            Self::Server => "server",
            Self::Client => "client",
            Self::Producer => "producer",
            Self::Consumer => "consumer",
        }
    }
}
