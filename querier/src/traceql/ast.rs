//! The syntax tree of a TraceQL query, as written: the parser makes it, the checker judges it, the engine compiles it.
//!
//! Expressions that name no attribute are folded while parsing, and `attribute = nil` becomes [`FieldExpr::Exists`]; beyond
//! that the tree says what the text says. Depth is bounded by the parser, so walking it recursively is safe.

use std::sync::Arc;

/// A whole query.
#[derive(Debug, Clone, PartialEq)]
pub struct Query {
    pub root: Root,
    /// Of the last `with (...)`, in order.
    pub hints: Vec<Hint>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Root {
    /// Selects spans: what search runs.
    Spans(PipelineExpr),
    /// Makes series of the spans it selects.
    Metrics(MetricsExpr),
}

/// `name = value` of `with (...)`. Unknown names are kept: they mean nothing, and are no error.
#[derive(Debug, Clone, PartialEq)]
pub struct Hint {
    pub name: String,
    pub value: Static,
}

/// A pipeline, or pipelines in parentheses put together by spanset operators.
#[derive(Debug, Clone, PartialEq)]
pub enum PipelineExpr {
    Pipeline(Pipeline),
    Binary { op: SpansetOp, left: Box<PipelineExpr>, right: Box<PipelineExpr> },
}

/// Stages from left to right. Never empty.
#[derive(Debug, Clone, PartialEq)]
pub struct Pipeline {
    pub stages: Vec<Stage>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Stage {
    Spanset(SpansetExpr),
    Scalar(ScalarFilter),
    /// `by(expression)`.
    Group(FieldExpr),
    Coalesce,
    /// `select(attribute, ...)`: never empty.
    Select(Vec<Attribute>),
}

#[derive(Debug, Clone, PartialEq)]
pub enum SpansetExpr {
    /// `{ expression }`; `{ }` is `{ true }`.
    Filter(FieldExpr),
    Binary {
        op: SpansetOp,
        left: Box<SpansetExpr>,
        right: Box<SpansetExpr>,
    },
}

/// An operator between spansets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SpansetOp {
    And,
    Or,
    Structural { relation: Relation, form: StructuralForm },
}

/// What the right side's spans are to those of the left side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Relation {
    /// `>`
    Child,
    /// `<`
    Parent,
    /// `>>`
    Descendant,
    /// `<<`
    Ancestor,
    /// `~`
    Sibling,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StructuralForm {
    /// Spans of the right side that relate.
    Plain,
    /// `!`: spans of the right side that do not.
    Negated,
    /// `&`: related spans of both sides.
    Union,
}

/// `aggregate op literal`, and what the grammar allows beyond it, which the checker refuses.
#[derive(Debug, Clone, PartialEq)]
pub struct ScalarFilter {
    pub op: BinaryOp,
    pub left: ScalarExpr,
    pub right: ScalarExpr,
}

#[derive(Debug, Clone, PartialEq)]
pub enum ScalarExpr {
    Aggregate(Aggregate),
    /// A number or duration, folded.
    Static(Static),
    Binary {
        op: BinaryOp,
        left: Box<ScalarExpr>,
        right: Box<ScalarExpr>,
    },
    /// A pipeline in parentheses that ends in an aggregate: parsed, never supported.
    Pipeline(Box<Pipeline>, Aggregate),
}

#[derive(Debug, Clone, PartialEq)]
pub enum Aggregate {
    Count,
    Sum(FieldExpr),
    Avg(FieldExpr),
    Min(FieldExpr),
    Max(FieldExpr),
}

/// An expression over one span.
#[derive(Debug, Clone, PartialEq)]
pub enum FieldExpr {
    Static(Static),
    Attribute(Attribute),
    Unary {
        op: UnaryOp,
        inner: Box<FieldExpr>,
    },
    Binary {
        op: BinaryOp,
        left: Box<FieldExpr>,
        right: Box<FieldExpr>,
    },
    /// `inner != nil`, or `inner = nil` where `negated`.
    Exists {
        inner: Box<FieldExpr>,
        negated: bool,
    },
    /// `inner` holds for one and the same event (or link). Has no text in the language, as some attributes.
    OneOf {
        items: Items,
        inner: Box<FieldExpr>,
    },
}

/// What a span has several of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Items {
    Events,
    Links,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UnaryOp {
    /// `-`
    Negate,
    /// `!`
    Not,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BinaryOp {
    Add,
    Sub,
    Mul,
    Div,
    Mod,
    Pow,
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    Match,
    NotMatch,
    And,
    Or,
}

/// A value written in a query.
#[derive(Debug, Clone, PartialEq)]
pub enum Static {
    Nil,
    Int(i64),
    Float(f64),
    Str(Arc<str>),
    Bool(bool),
    /// Nanoseconds.
    Duration(i64),
    Status(Status),
    Kind(Kind),
}

/// OTLP's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    Unset = 0,
    Ok = 1,
    Error = 2,
}

/// OTLP's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    Unspecified = 0,
    Internal = 1,
    Server = 2,
    Client = 3,
    Producer = 4,
    Consumer = 5,
}

/// What an expression reads of a span.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Attribute {
    Intrinsic(Intrinsic),
    Scoped {
        scope: Scope,
        /// The bare name, unquoted.
        name: Arc<str>,
    },
    /// An attribute in its string form, as Jaeger compares it. This and all below have no text in the language: what other
    /// APIs ask is put into a tree that names them.
    StringForm {
        /// One of span, resource, event, link and instrumentation.
        scope: Scope,
        name: Arc<str>,
    },
    /// When the span starts: nanoseconds since 1970, a whole number. Later than whole numbers reach is the latest.
    Start,
    /// When it ends, as sent: a number as [`Attribute::Start`].
    End,
    /// When an event was, likewise.
    EventTime,
    /// W3C trace state.
    TraceState,
    /// That of a link.
    LinkTraceState,
    /// The schema URL of the resource.
    ResourceSchema,
    /// That of the instrumentation scope.
    ScopeSchema,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// `.name`: of the span, else of its resource.
    None,
    Span,
    Resource,
    Event,
    Link,
    Instrumentation,
    /// `parent.name`, `parent.span.name`, `parent.resource.name`: parsed, not supported.
    Parent(ParentScope),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ParentScope {
    None,
    Span,
    Resource,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Intrinsic {
    Name,
    Duration,
    Status,
    StatusMessage,
    Kind,
    ChildCount,
    SpanId,
    ParentId,
    TraceId,
    TraceDuration,
    RootName,
    RootService,
    EventName,
    EventTimeSinceStart,
    LinkTraceId,
    LinkSpanId,
    InstrumentationName,
    InstrumentationVersion,
    NestedSetLeft,
    NestedSetRight,
    NestedSetParent,
    /// `parent`: parsed, not supported.
    Parent,
}

/// What a metrics query computes, from the inside out.
#[derive(Debug, Clone, PartialEq)]
pub enum MetricsExpr {
    Query(MetricsQuery),
    /// `input | topk(5)`, `input > 3`.
    Stage {
        input: Box<MetricsExpr>,
        stage: SecondStage,
    },
    /// `(left) op (right)`: `op` is one of `+ - * /`.
    Math {
        op: BinaryOp,
        left: Box<MetricsExpr>,
        right: Box<MetricsExpr>,
    },
    /// `(input) op scalar`, or `scalar op (input)` where `scalar_left`.
    ScalarMath {
        op: BinaryOp,
        input: Box<MetricsExpr>,
        scalar: f64,
        scalar_left: bool,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub struct MetricsQuery {
    pub spans: PipelineExpr,
    pub function: MetricsFunction,
    /// `by (...)`; empty without.
    pub by: Vec<Attribute>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum MetricsFunction {
    Rate,
    CountOverTime,
    MinOverTime(Attribute),
    MaxOverTime(Attribute),
    SumOverTime(Attribute),
    AvgOverTime(Attribute),
    HistogramOverTime(Attribute),
    QuantileOverTime(Attribute, Vec<f64>),
    Compare {
        /// Splits the spans into selection (true) and baseline.
        filter: FieldExpr,
        /// `None` if not written: 10.
        top: Option<i64>,
        /// Start (excluded) and end (included) of the selection, in nanoseconds since 1970.
        window: Option<(i64, i64)>,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub enum SecondStage {
    TopK(i64),
    BottomK(i64),
    /// A comparison with a number or duration.
    Filter {
        op: BinaryOp,
        value: Static,
    },
}
