//! Whether a query that parses means something: types, operators, limits.
//!
//! Owns the rules and the texts of what breaks them, which are Tempo's. Regexes are compiled to see whether they do; whoever
//! runs the query compiles them again. Does not change the tree.

use super::ast::{
    Aggregate, Attribute, BinaryOp, FieldExpr, Intrinsic, MetricsExpr, MetricsFunction, MetricsQuery, Pipeline,
    PipelineExpr, Query, Root, ScalarExpr, ScalarFilter, Scope, SecondStage, SpansetExpr, Stage, Static, UnaryOp,
};
use super::error::ValidationError;
use super::pattern::compile_regex;

type Checked = Result<(), ValidationError>;

/// Series are grouped by so many attributes at most; by one less if the function needs a label of its own.
const MAX_GROUP_BY: usize = 5;

/// Each is a series of every group.
const MAX_QUANTILES: usize = 100;

/// Stages of one pipeline: each may look at every span once more.
const MAX_STAGES: usize = 100;

/// Values `compare()` may name per attribute.
const MAX_COMPARED_VALUES: i64 = 1000;

/// Makes sure that a query means something, and says why if not.
pub fn check(query: &Query) -> Result<(), ValidationError> {
    match &query.root {
        Root::Spans(spans) => pipelines(spans),
        Root::Metrics(metrics) => self::metrics(metrics),
    }
}

/// Makes sure that an expression selects spans.
pub(super) fn check_filter(expr: &FieldExpr) -> Checked {
    if matches!(type_of(expr)?, Type::Bool | Type::Dynamic) {
        return Ok(());
    }
    fail(format!("span filter field expressions must resolve to a boolean: {{ {expr} }}"))
}

fn fail(message: impl Into<String>) -> Checked {
    Err(ValidationError(message.into()))
}

fn pipelines(expr: &PipelineExpr) -> Checked {
    match expr {
        PipelineExpr::Pipeline(inner) => pipeline(inner),
        PipelineExpr::Binary { left, right, .. } => {
            pipelines(left)?;
            pipelines(right)
        }
    }
}

fn pipeline(pipeline: &Pipeline) -> Checked {
    if pipeline.stages.len() > MAX_STAGES {
        return fail(format!("a pipeline may have {MAX_STAGES} stages, this one has {}", pipeline.stages.len()));
    }
    pipeline.stages.iter().try_for_each(|stage| match stage {
        Stage::Spanset(expr) => spanset(expr),
        Stage::Scalar(filter) => scalar_filter(filter),
        Stage::Group(expr) => {
            type_of(expr)?;
            if names_attribute(expr) {
                return Ok(());
            }
            fail(format!("grouping field expressions must reference the span: {stage}"))
        }
        Stage::Coalesce => Ok(()),
        Stage::Select(attributes) => attributes.iter().try_for_each(attribute),
    })
}

fn spanset(expr: &SpansetExpr) -> Checked {
    match expr {
        SpansetExpr::Filter(filter) => check_filter(filter),
        SpansetExpr::Binary { left, right, .. } => {
            spanset(left)?;
            spanset(right)
        }
    }
}

fn scalar_filter(filter: &ScalarFilter) -> Checked {
    scalar(&filter.left)?;
    scalar(&filter.right)?;
    if !matches!(filter.left, ScalarExpr::Aggregate(_)) {
        return fail(format!("scalar filter lhs of type ({}) not yet supported", filter.left));
    }
    if !matches!(filter.right, ScalarExpr::Static(_)) {
        return fail(format!("scalar filter rhs of type ({}) not yet supported", filter.right));
    }
    Ok(())
}

fn scalar(expr: &ScalarExpr) -> Checked {
    match expr {
        ScalarExpr::Aggregate(inner) => aggregate(inner),
        ScalarExpr::Static(_) => Ok(()),
        ScalarExpr::Binary { left, right, .. } => {
            scalar(left)?;
            scalar(right)
        }
        ScalarExpr::Pipeline(inner, last) => {
            pipeline(inner)?;
            aggregate(last)
        }
    }
}

fn aggregate(aggregate: &Aggregate) -> Checked {
    let Some(operand) = aggregate.operand() else { return Ok(()) };
    if !type_of(operand)?.is_number_or_dynamic() {
        return fail(format!("aggregate field expressions must resolve to a number type: {aggregate}"));
    }
    if !names_attribute(operand) {
        return fail(format!("aggregate field expressions must reference the span: {aggregate}"));
    }
    Ok(())
}

fn metrics(expr: &MetricsExpr) -> Checked {
    match expr {
        MetricsExpr::Query(query) => metrics_query(query),
        MetricsExpr::Stage { input, stage } => {
            metrics(input)?;
            alone(input)?;
            match stage {
                SecondStage::TopK(limit) | SecondStage::BottomK(limit) if *limit <= 0 => {
                    fail("limit must be greater than 0")
                }
                _ => Ok(()),
            }
        }
        MetricsExpr::Math { left, right, .. } => {
            metrics(left)?;
            metrics(right)?;
            alone(left)?;
            alone(right)
        }
        MetricsExpr::ScalarMath { input, .. } => {
            metrics(input)?;
            alone(input)
        }
    }
}

/// Refuses `compare()`, whose series are no numbers to go on with.
fn alone(expr: &MetricsExpr) -> Checked {
    match expr {
        MetricsExpr::Query(MetricsQuery { function: MetricsFunction::Compare { .. }, .. }) => {
            fail("`compare()` cannot be used with second stage functions")
        }
        _ => Ok(()),
    }
}

fn metrics_query(query: &MetricsQuery) -> Checked {
    pipelines(&query.spans)?;
    let mut own_labels = 0;
    match &query.function {
        MetricsFunction::Rate | MetricsFunction::CountOverTime => {}
        MetricsFunction::MinOverTime(operand)
        | MetricsFunction::MaxOverTime(operand)
        | MetricsFunction::SumOverTime(operand) => attribute(operand)?,
        MetricsFunction::AvgOverTime(operand) | MetricsFunction::HistogramOverTime(operand) => {
            own_labels = 1;
            attribute(operand)?;
        }
        MetricsFunction::QuantileOverTime(operand, quantiles) => {
            own_labels = 1;
            attribute(operand)?;
            if let Some(quantile) = quantiles.iter().find(|quantile| !(0.0..=1.0).contains(*quantile)) {
                return fail(format!("quantile must be between 0 and 1: {quantile}"));
            }
            if quantiles.len() > MAX_QUANTILES {
                return fail(format!("too many quantiles: {} (limit: {MAX_QUANTILES})", quantiles.len()));
            }
        }
        MetricsFunction::Compare { filter, top, window } => compare(filter, *top, *window)?,
    }
    query.by.iter().try_for_each(attribute)?;
    if query.by.len() + own_labels > MAX_GROUP_BY {
        return fail(format!("metrics group by {} values not yet supported", query.by.len()));
    }
    Ok(())
}

fn compare(filter: &FieldExpr, top: Option<i64>, window: Option<(i64, i64)>) -> Checked {
    check_filter(filter)?;
    if top.is_some_and(|top| !(1..=MAX_COMPARED_VALUES).contains(&top)) {
        return fail("compare() top number of values must be an integer between 1 and 1000");
    }
    match window {
        Some((start, end)) if start <= 0 || end <= 0 => {
            fail("compare() timestamps must be positive integer unix nanoseconds")
        }
        Some((start, end)) if end <= start => fail("compare() end timestamp must be greater than start timestamp"),
        _ => Ok(()),
    }
}

fn attribute(attribute: &Attribute) -> Checked {
    match attribute {
        Attribute::Intrinsic(Intrinsic::Parent) => fail("intrinsic (parent) not yet supported"),
        Attribute::Scoped { scope: Scope::Parent(_), .. } => fail("parent not yet supported"),
        _ => Ok(()),
    }
}

fn names_attribute(expr: &FieldExpr) -> bool {
    match expr {
        FieldExpr::Static(_) => false,
        FieldExpr::Attribute(_) => true,
        FieldExpr::Unary { inner, .. } | FieldExpr::Exists { inner, .. } | FieldExpr::OneOf { inner, .. } => {
            names_attribute(inner)
        }
        FieldExpr::Binary { left, right, .. } => names_attribute(left) || names_attribute(right),
    }
}

/// What is known of an expression's values before there are any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    Nil,
    Int,
    Float,
    Str,
    Bool,
    Duration,
    Status,
    Kind,
    /// Depends on the span.
    Dynamic,
}

impl Type {
    fn is_number(self) -> bool {
        matches!(self, Self::Int | Self::Float | Self::Duration)
    }

    fn is_number_or_dynamic(self) -> bool {
        self.is_number() || self == Self::Dynamic
    }

    fn fits(self, other: Self) -> bool {
        let open = |one| matches!(one, Self::Dynamic | Self::Nil);
        self == other || open(self) || open(other) || self.is_number() && other.is_number()
    }

    fn allows(self, op: BinaryOp) -> bool {
        use BinaryOp::{Equal, Greater, GreaterEqual, Less, LessEqual, Match, NotEqual, NotMatch};
        let equality = matches!(op, Equal | NotEqual);
        let logic = matches!(op, BinaryOp::And | BinaryOp::Or);
        let matching = matches!(op, Match | NotMatch);
        match self {
            Self::Dynamic => true,
            Self::Bool => equality || logic,
            Self::Int | Self::Float | Self::Duration => !logic && !matching,
            Self::Str => equality || matching || matches!(op, Less | LessEqual | Greater | GreaterEqual),
            Self::Nil | Self::Status | Self::Kind => equality,
        }
    }
}

/// The type of an expression whose parts fit together.
fn type_of(expr: &FieldExpr) -> Result<Type, ValidationError> {
    match expr {
        FieldExpr::Static(value) => Ok(type_of_value(value)),
        FieldExpr::Attribute(named) => {
            attribute(named)?;
            Ok(type_of_attribute(named))
        }
        FieldExpr::Unary { op, inner } => {
            let inner = type_of(inner)?;
            let legal = match op {
                UnaryOp::Negate => inner.is_number_or_dynamic(),
                UnaryOp::Not => matches!(inner, Type::Bool | Type::Dynamic),
            };
            if !legal {
                return Err(ValidationError(format!("illegal operation for the given type: {expr}")));
            }
            Ok(if *op == UnaryOp::Not { Type::Bool } else { inner })
        }
        FieldExpr::Binary { op, left, right } => {
            let (left_type, right_type) = (type_of(left)?, type_of(right)?);
            binary(expr, *op, left_type, right_type, right)
        }
        FieldExpr::Exists { inner, negated } => {
            type_of(inner)?;
            if *negated {
                can_be_nil(inner)?;
            }
            Ok(Type::Bool)
        }
        FieldExpr::OneOf { inner, .. } => type_of(inner).map(|_| Type::Bool),
    }
}

/// Apart from [`type_of`], which calls itself for each level of the tree: its texts would cost stack there.
#[inline(never)]
fn binary(expr: &FieldExpr, op: BinaryOp, left: Type, right: Type, operand: &FieldExpr) -> Result<Type, ValidationError> {
    if !left.fits(right) {
        return Err(ValidationError(format!("binary operations must operate on the same type: {expr}")));
    }
    if !left.allows(op) || !right.allows(op) {
        return Err(ValidationError(format!("illegal operation for the given types: {expr}")));
    }
    match op {
        BinaryOp::Match | BinaryOp::NotMatch => {
            let FieldExpr::Static(Static::Str(pattern)) = operand else {
                return Err(ValidationError(format!("invalid type for =~ or !~: {operand}")));
            };
            if let Err(error) = compile_regex(pattern) {
                return Err(ValidationError(format!("invalid regex: {operand}: {}", one_line(&error))));
            }
            Ok(Type::Bool)
        }
        BinaryOp::Add | BinaryOp::Sub | BinaryOp::Mul | BinaryOp::Div | BinaryOp::Mod | BinaryOp::Pow => {
            Ok(if left == Type::Dynamic { right } else { left })
        }
        _ => Ok(Type::Bool),
    }
}

/// The reason alone: the rest of the text points at places by lines and blanks.
fn one_line(error: &regex::Error) -> String {
    let text = error.to_string();
    let reason = text.lines().next_back().unwrap_or_default();
    reason.strip_prefix("error: ").unwrap_or(reason).to_owned()
}

fn can_be_nil(expr: &FieldExpr) -> Checked {
    match expr {
        FieldExpr::Attribute(Attribute::Intrinsic(intrinsic)) => {
            fail(format!("{}=nil is not valid because intrinsics cannot be nil", intrinsic.as_str()))
        }
        FieldExpr::Attribute(Attribute::Scoped { scope: Scope::Resource, name }) if &**name == "service.name" => {
            fail("resource.service.name=nil is not valid because resource.service.name cannot be nil")
        }
        _ => Ok(()),
    }
}

fn type_of_value(value: &Static) -> Type {
    match value {
        Static::Nil => Type::Nil,
        Static::Int(_) => Type::Int,
        Static::Float(_) => Type::Float,
        Static::Str(_) => Type::Str,
        Static::Bool(_) => Type::Bool,
        Static::Duration(_) => Type::Duration,
        Static::Status(_) => Type::Status,
        Static::Kind(_) => Type::Kind,
    }
}

fn type_of_attribute(attribute: &Attribute) -> Type {
    let Attribute::Intrinsic(intrinsic) = attribute else { return Type::Dynamic };
    match intrinsic {
        Intrinsic::Duration | Intrinsic::TraceDuration | Intrinsic::EventTimeSinceStart => Type::Duration,
        Intrinsic::Status => Type::Status,
        Intrinsic::Kind => Type::Kind,
        Intrinsic::ChildCount | Intrinsic::NestedSetLeft | Intrinsic::NestedSetRight | Intrinsic::NestedSetParent => {
            Type::Int
        }
        Intrinsic::Name
        | Intrinsic::StatusMessage
        | Intrinsic::SpanId
        | Intrinsic::ParentId
        | Intrinsic::TraceId
        | Intrinsic::RootName
        | Intrinsic::RootService
        | Intrinsic::EventName
        | Intrinsic::LinkTraceId
        | Intrinsic::LinkSpanId => Type::Str,
        Intrinsic::InstrumentationName | Intrinsic::InstrumentationVersion | Intrinsic::Parent => Type::Dynamic,
    }
}
