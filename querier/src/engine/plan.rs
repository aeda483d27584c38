//! Plans: a checked query made ready to run, with what the planner knows of it.
//!
//! Owns which parts of a query need whole traces and which attributes an answer shows. Pure: no data.

use std::sync::Arc;

use super::EngineError;
use super::expr::{AttrId, Attributes, Compiler, Expr};
use super::value::Cell;
use crate::traceql::ast::{
    self, Aggregate, Attribute, BinaryOp, FieldExpr, Intrinsic, PipelineExpr, ScalarExpr, SpansetExpr, SpansetOp, Stage,
};

/// A pipeline, or several put together.
#[derive(Debug)]
pub(crate) enum Plan {
    Pipeline(Vec<Step>),
    Binary { op: SpansetOp, left: Box<Plan>, right: Box<Plan> },
}

#[derive(Debug)]
pub(crate) enum Step {
    Spanset(SetExpr),
    Scalar(ScalarStep),
    /// The text names the group's attribute.
    Group {
        expr: Expr,
        name: Arc<str>,
    },
    Coalesce,
    Select,
}

#[derive(Debug)]
pub(crate) enum SetExpr {
    Filter(Expr),
    Binary { op: SpansetOp, left: Box<SetExpr>, right: Box<SetExpr> },
}

/// `aggregate op literal`.
#[derive(Debug)]
pub(crate) struct ScalarStep {
    pub(crate) function: AggregateFunction,
    /// `None` for a count.
    pub(crate) operand: Option<Expr>,
    pub(crate) op: BinaryOp,
    pub(crate) value: Cell,
    /// Names the attribute of the spansets that stay.
    pub(crate) name: Arc<str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AggregateFunction {
    Count,
    Sum,
    Avg,
    Min,
    Max,
}

/// The spans of a query.
#[derive(Debug)]
pub(crate) struct SpansPlan {
    pub(crate) plan: Plan,
    /// In order of first mention; the first `mentioned` are the query's own.
    pub(crate) attributes: Attributes,
    /// Which attributes of spans an answer shows.
    pub(crate) shown: Vec<AttrId>,
    /// Whether an answer names spans.
    pub(crate) shows_name: bool,
}

/// Compiles the spans of a query, and what `more` adds.
pub(crate) fn compile<T>(
    spans: &PipelineExpr,
    more: impl FnOnce(&mut Compiler) -> Result<T, EngineError>,
) -> Result<(SpansPlan, T), EngineError> {
    let mut compiler = Compiler::default();
    // Mentioned first in the text is shown first.
    let plan = pipeline_expr(spans, &mut compiler)?;
    let shown = compiler.attributes.iter().filter(|(_, attribute)| is_shown(attribute)).map(|(id, _)| id).collect();
    let shows_name = compiler.attributes.iter().any(|(_, a)| *a == Attribute::Intrinsic(Intrinsic::Name));
    let added = more(&mut compiler)?;
    Ok((SpansPlan { plan, attributes: compiler.attributes, shown, shows_name }, added))
}

/// These have places of their own in an answer.
fn is_shown(attribute: &Attribute) -> bool {
    match attribute {
        Attribute::Intrinsic(intrinsic) => !matches!(
            intrinsic,
            Intrinsic::Name
                | Intrinsic::Duration
                | Intrinsic::TraceDuration
                | Intrinsic::RootName
                | Intrinsic::RootService
                | Intrinsic::TraceId
                | Intrinsic::SpanId
        ),
        Attribute::Scoped { .. } => true,
        _ => false,
    }
}

fn pipeline_expr(expr: &PipelineExpr, compiler: &mut Compiler) -> Result<Plan, EngineError> {
    Ok(match expr {
        PipelineExpr::Pipeline(pipeline) => {
            Plan::Pipeline(pipeline.stages.iter().map(|stage| step(stage, compiler)).collect::<Result<_, _>>()?)
        }
        PipelineExpr::Binary { op, left, right } => Plan::Binary {
            op: *op,
            left: Box::new(pipeline_expr(left, compiler)?),
            right: Box::new(pipeline_expr(right, compiler)?),
        },
    })
}

fn step(stage: &Stage, compiler: &mut Compiler) -> Result<Step, EngineError> {
    Ok(match stage {
        Stage::Spanset(expr) => Step::Spanset(spanset(expr, compiler)?),
        Stage::Scalar(filter) => Step::Scalar(scalar(filter, compiler)?),
        Stage::Group(expr) => Step::Group { expr: compiler.value(expr)?, name: format!("by({expr})").into() },
        Stage::Coalesce => Step::Coalesce,
        Stage::Select(attributes) => {
            for attribute in attributes {
                compiler.attributes.id(attribute);
            }
            Step::Select
        }
    })
}

fn spanset(expr: &SpansetExpr, compiler: &mut Compiler) -> Result<SetExpr, EngineError> {
    Ok(match expr {
        SpansetExpr::Filter(filter) => SetExpr::Filter(compiler.filter(filter)?),
        SpansetExpr::Binary { op, left, right } => {
            SetExpr::Binary { op: *op, left: Box::new(spanset(left, compiler)?), right: Box::new(spanset(right, compiler)?) }
        }
    })
}

fn scalar(filter: &ast::ScalarFilter, compiler: &mut Compiler) -> Result<ScalarStep, EngineError> {
    let unsupported = || EngineError::Evaluation("only an aggregate compared with a literal is supported".into());
    let (ScalarExpr::Aggregate(aggregate), ScalarExpr::Static(value)) = (&filter.left, &filter.right) else {
        return Err(unsupported());
    };
    let mut operand = |expr: &FieldExpr| compiler.value(expr).map(Some);
    let (function, operand) = match aggregate {
        Aggregate::Count => (AggregateFunction::Count, None),
        Aggregate::Sum(expr) => (AggregateFunction::Sum, operand(expr)?),
        Aggregate::Avg(expr) => (AggregateFunction::Avg, operand(expr)?),
        Aggregate::Min(expr) => (AggregateFunction::Min, operand(expr)?),
        Aggregate::Max(expr) => (AggregateFunction::Max, operand(expr)?),
    };
    let name = aggregate.to_string().into();
    Ok(ScalarStep { function, operand, op: filter.op, value: Cell::of_static(value), name })
}

/// Whether an attribute's value depends on other spans of the trace.
fn needs_trace(attribute: &Attribute) -> bool {
    matches!(
        attribute,
        Attribute::Intrinsic(
            Intrinsic::TraceDuration
                | Intrinsic::RootName
                | Intrinsic::RootService
                | Intrinsic::ChildCount
                | Intrinsic::NestedSetLeft
                | Intrinsic::NestedSetRight
                | Intrinsic::NestedSetParent
        )
    )
}

impl SpansPlan {
    /// The one filter that decides about each span by itself, if that is all the query does.
    pub(crate) fn span_filter(&self) -> Option<&Expr> {
        let Plan::Pipeline(steps) = &self.plan else { return None };
        let [Step::Spanset(SetExpr::Filter(filter)), rest @ ..] = steps.as_slice() else { return None };
        let only_select = rest.iter().all(|step| matches!(step, Step::Select));
        (only_select && !self.reads_trace(filter)).then_some(filter)
    }

    /// Whether a filter reads something of the trace around the span.
    pub(crate) fn reads_trace(&self, filter: &Expr) -> bool {
        let mut found = false;
        filter.each_attr(&mut |id| found |= needs_trace(self.attributes.get(id)));
        found
    }

    /// Filters of which a trace must fulfil one at least, each on some span of its own: what tells early that a trace cannot
    /// match. `None` if any trace may.
    pub(crate) fn necessary(&self) -> Option<Vec<&Expr>> {
        let mut out = Vec::new();
        self.necessary_of(&self.plan, &mut out).then_some(out)
    }

    fn necessary_of<'p>(&'p self, plan: &'p Plan, out: &mut Vec<&'p Expr>) -> bool {
        match plan {
            Plan::Pipeline(steps) => match steps.first() {
                Some(Step::Spanset(expr)) => self.necessary_of_set(expr, out),
                _ => false,
            },
            Plan::Binary { op: SpansetOp::Or, left, right } => self.necessary_of(left, out) && self.necessary_of(right, out),
            // Nothing comes of an empty right side, whatever the operator.
            Plan::Binary { right, .. } => self.necessary_of(right, out),
        }
    }

    fn necessary_of_set<'p>(&'p self, expr: &'p SetExpr, out: &mut Vec<&'p Expr>) -> bool {
        match expr {
            SetExpr::Filter(filter) => {
                let is_true = matches!(filter, Expr::Const(_));
                if is_true || self.reads_trace(filter) {
                    return false;
                }
                out.push(filter);
                true
            }
            SetExpr::Binary { op: SpansetOp::Or, left, right } => {
                self.necessary_of_set(left, out) && self.necessary_of_set(right, out)
            }
            SetExpr::Binary { right, .. } => self.necessary_of_set(right, out),
        }
    }
}
