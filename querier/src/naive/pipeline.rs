//! Pipelines: the span sets of one trace, stage by stage.

use std::cmp::Ordering;
use std::sync::Arc;

use super::field::{constant_failure, evaluate, mentions};
use super::spanset::{combine, select};
use super::trace::Trace;
use super::value::{Value, compare};
use crate::traceql::ast::{
    Aggregate, Attribute, FieldExpr, Pipeline, PipelineExpr, ScalarExpr, ScalarFilter, SpansetExpr, SpansetOp, Stage,
};

/// Never without spans.
#[derive(Debug, Clone, Default)]
pub(super) struct SpanSet {
    pub(super) spans: Vec<usize>,
    /// Values of `by()` and aggregates, in the order of the stages.
    pub(super) attributes: Vec<(Arc<str>, Value)>,
}

const SEVERAL_SPANSETS: &str =
    "spanset operators are not supported for multiple spansets per trace. consider using coalesce()";

pub(super) fn run(expr: &PipelineExpr, trace: &Trace<'_>) -> Result<Vec<SpanSet>, String> {
    match expr {
        PipelineExpr::Pipeline(pipeline) => run_stages(pipeline, trace),
        PipelineExpr::Binary { op, left, right } => {
            let (left, right) = (run(left, trace)?, run(right, trace)?);
            let is_structural = matches!(op, SpansetOp::Structural { .. });
            if is_structural && !left.is_empty() && !right.is_empty() && (left.len() > 1 || right.len() > 1) {
                return Err(SEVERAL_SPANSETS.to_owned());
            }
            let flat = |sets: Vec<SpanSet>| -> Vec<usize> { sets.into_iter().flat_map(|set| set.spans).collect() };
            Ok(set_of(combine(*op, trace, &flat(left), &flat(right)), vec![]))
        }
    }
}

fn run_stages(pipeline: &Pipeline, trace: &Trace<'_>) -> Result<Vec<SpanSet>, String> {
    let mut sets = vec![SpanSet { spans: trace.all(), attributes: vec![] }];
    for stage in &pipeline.stages {
        sets = match stage {
            Stage::Spanset(expr) => {
                sets.into_iter().flat_map(|set| set_of(select(expr, trace, &set.spans), set.attributes)).collect()
            }
            Stage::Group(expr) => sets.into_iter().flat_map(|set| group(expr, trace, set)).collect(),
            Stage::Coalesce => {
                let mut spans: Vec<usize> = sets.into_iter().flat_map(|set| set.spans).collect();
                spans.sort_unstable();
                set_of(spans, vec![])
            }
            Stage::Select(_) => sets,
            Stage::Scalar(filter) => {
                let mut kept = Vec::new();
                for set in sets {
                    kept.extend(passing(filter, trace, set)?);
                }
                kept
            }
        };
    }
    // Groups of groups: by their first spans, whatever group they came from.
    sets.sort_by_key(|set| set.spans.first().copied());
    Ok(sets)
}

/// One set, or none of no spans.
fn set_of(spans: Vec<usize>, attributes: Vec<(Arc<str>, Value)>) -> Vec<SpanSet> {
    if spans.is_empty() { vec![] } else { vec![SpanSet { spans, attributes }] }
}

/// One set for each value, in the order of their first spans.
fn group(expr: &FieldExpr, trace: &Trace<'_>, set: SpanSet) -> Vec<SpanSet> {
    let key: Arc<str> = Arc::from(format!("by({expr})"));
    let mut groups: Vec<(Value, SpanSet)> = Vec::new();
    for at in set.spans {
        let value = evaluate(expr, trace, at);
        match groups.iter_mut().find(|(other, _)| other.is_same(&value)) {
            Some((_, group)) => group.spans.push(at),
            None => {
                let mut attributes = set.attributes.clone();
                attributes.push((Arc::clone(&key), value.clone()));
                groups.push((value, SpanSet { spans: vec![at], attributes }));
            }
        }
    }
    groups.into_iter().map(|(_, group)| group).collect()
}

fn passing(filter: &ScalarFilter, trace: &Trace<'_>, mut set: SpanSet) -> Result<Option<SpanSet>, String> {
    let (ScalarExpr::Aggregate(aggregate), ScalarExpr::Static(literal)) = (&filter.left, &filter.right) else {
        return Err("scalar filter not yet supported".to_owned());
    };
    let Some(value) = aggregate_value(aggregate, trace, &set.spans).filter(|value| value.number().is_some()) else {
        return Ok(None);
    };
    if !compare(filter.op, &value, &Value::of_static(literal)) {
        return Ok(None);
    }
    set.attributes.push((Arc::from(aggregate.to_string()), value));
    Ok(Some(set))
}

/// `None` where no span has a value.
fn aggregate_value(aggregate: &Aggregate, trace: &Trace<'_>, spans: &[usize]) -> Option<Value> {
    let values = |expr: &FieldExpr| -> Vec<Value> {
        spans.iter().map(|at| evaluate(expr, trace, *at)).filter(Value::is_there).collect()
    };
    match aggregate {
        Aggregate::Count => Some(Value::Int(spans.len() as i64)),
        Aggregate::Sum(expr) => sum(&values(expr)),
        Aggregate::Avg(expr) => {
            let values = values(expr);
            let count = values.len();
            Some(match sum(&values)? {
                Value::Int(sum) => Value::Float(sum as f64 / count as f64),
                Value::Float(sum) => Value::Float(sum / count as f64),
                Value::Duration(sum) => Value::Duration(sum / count as i64),
                other => other,
            })
        }
        Aggregate::Min(expr) => extreme(values(expr), Ordering::Less),
        Aggregate::Max(expr) => extreme(values(expr), Ordering::Greater),
    }
}

/// In the type of the first; values of other types are left out.
fn sum(values: &[Value]) -> Option<Value> {
    let first = values.first()?;
    let sum = values.iter().skip(1).fold(first.clone(), |sum, value| match (sum, value) {
        (Value::Int(a), Value::Int(b)) => Value::Int(a.wrapping_add(*b)),
        (Value::Float(a), Value::Float(b)) => Value::Float(a + b),
        (Value::Duration(a), Value::Duration(b)) => Value::Duration(a.wrapping_add(*b)),
        (sum, _) => sum,
    });
    Some(sum)
}

/// The smallest or largest; of equal ones the first. Numbers by value, else types apart in a fixed order.
fn extreme(values: Vec<Value>, wanted: Ordering) -> Option<Value> {
    values.into_iter().reduce(|best, value| if ranking(&value, &best) == wanted { value } else { best })
}

fn ranking(a: &Value, b: &Value) -> Ordering {
    if let (Value::Int(a), Value::Int(b)) | (Value::Duration(a), Value::Duration(b)) = (a, b) {
        return a.cmp(b);
    }
    if let Some((a, b)) = a.number().zip(b.number()) {
        // What is no number is below all.
        return a.partial_cmp(&b).unwrap_or_else(|| b.is_nan().cmp(&a.is_nan()));
    }
    let rank = |value: &Value| match value {
        Value::Nil | Value::Opaque => 0,
        Value::Int(_) => 1,
        Value::Float(_) => 2,
        Value::Str(_) => 3,
        Value::Bool(_) => 4,
        Value::Array(_) => 5,
        Value::Duration(_) => 6,
        Value::Status(_) => 7,
        Value::Kind(_) => 8,
    };
    match (a, b) {
        (Value::Str(a), Value::Str(b)) => a.as_bytes().cmp(b.as_bytes()),
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        _ => rank(a).cmp(&rank(b)),
    }
}

/// What the expressions of a query are, and what is asked of spans beside them.
pub(super) enum Part<'a> {
    Expression(&'a FieldExpr),
    Attribute(&'a Attribute),
}

/// All parts of a pipeline, in the order of the text.
pub(super) fn parts<'a>(expr: &'a PipelineExpr, found: &mut Vec<Part<'a>>) {
    match expr {
        PipelineExpr::Binary { left, right, .. } => {
            parts(left, found);
            parts(right, found);
        }
        PipelineExpr::Pipeline(pipeline) => {
            for stage in &pipeline.stages {
                match stage {
                    Stage::Spanset(expr) => spanset_parts(expr, found),
                    Stage::Group(expr) => found.push(Part::Expression(expr)),
                    Stage::Coalesce => {}
                    Stage::Select(attributes) => found.extend(attributes.iter().map(Part::Attribute)),
                    Stage::Scalar(filter) => {
                        if let ScalarExpr::Aggregate(
                            Aggregate::Sum(expr) | Aggregate::Avg(expr) | Aggregate::Min(expr) | Aggregate::Max(expr),
                        ) = &filter.left
                        {
                            found.push(Part::Expression(expr));
                        }
                    }
                }
            }
        }
    }
}

fn spanset_parts<'a>(expr: &'a SpansetExpr, found: &mut Vec<Part<'a>>) {
    match expr {
        SpansetExpr::Filter(filter) => found.push(Part::Expression(filter)),
        SpansetExpr::Binary { left, right, .. } => {
            spanset_parts(left, found);
            spanset_parts(right, found);
        }
    }
}

/// The attributes a pipeline mentions, each once.
pub(super) fn mentioned(expr: &PipelineExpr) -> Vec<&Attribute> {
    let (mut all, mut found) = (Vec::new(), Vec::new());
    parts(expr, &mut all);
    for part in all {
        match part {
            Part::Expression(expr) => mentions(expr, &mut found),
            Part::Attribute(attribute) => found.push(attribute),
        }
    }
    let mut once: Vec<&Attribute> = Vec::new();
    for attribute in found {
        if !once.contains(&attribute) {
            once.push(attribute);
        }
    }
    once
}

/// Refuses what fails on every span.
pub(super) fn check_constants(expr: &PipelineExpr) -> Result<(), String> {
    let mut all = Vec::new();
    parts(expr, &mut all);
    for part in all {
        if let Part::Expression(expr) = part
            && let Some(failure) = constant_failure(expr)
        {
            return Err(failure.to_owned());
        }
    }
    Ok(())
}
