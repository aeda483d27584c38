//! Spanset expressions: which spans of one trace.

use super::field::holds;
use super::trace::Trace;
use crate::traceql::ast::{Relation, SpansetExpr, SpansetOp, StructuralForm};

/// The spans of `input` that an expression selects. All lists of spans are in storage order.
pub(super) fn select(expr: &SpansetExpr, trace: &Trace<'_>, input: &[usize]) -> Vec<usize> {
    match expr {
        SpansetExpr::Filter(filter) => input.iter().copied().filter(|at| holds(filter, trace, *at)).collect(),
        SpansetExpr::Binary { op, left, right } => {
            combine(*op, trace, &select(left, trace, input), &select(right, trace, input))
        }
    }
}

pub(super) fn combine(op: SpansetOp, trace: &Trace<'_>, left: &[usize], right: &[usize]) -> Vec<usize> {
    let in_storage_order =
        |wanted: &dyn Fn(usize) -> bool| -> Vec<usize> { trace.all().into_iter().filter(|at| wanted(*at)).collect() };
    let either = |at: usize| left.contains(&at) || right.contains(&at);
    match op {
        SpansetOp::And if left.is_empty() || right.is_empty() => vec![],
        SpansetOp::And | SpansetOp::Or => in_storage_order(&either),
        SpansetOp::Structural { relation, form } => {
            let relates =
                |at: usize| right.contains(&at) && left.iter().any(|other| is_related(relation, trace, *other, at));
            let is_related_to =
                |at: usize| left.contains(&at) && right.iter().any(|other| is_related(relation, trace, at, *other));
            match form {
                StructuralForm::Plain => in_storage_order(&relates),
                StructuralForm::Negated => in_storage_order(&|at| right.contains(&at) && !relates(at)),
                StructuralForm::Union => in_storage_order(&|at| relates(at) || is_related_to(at)),
            }
        }
    }
}

/// Whether `right` is to `left` what the operator says.
fn is_related(relation: Relation, trace: &Trace<'_>, left: usize, right: usize) -> bool {
    match relation {
        Relation::Child => trace.parents[right] == Some(left),
        Relation::Parent => trace.parents[left] == Some(right),
        Relation::Descendant => trace.is_ancestor(right, left),
        Relation::Ancestor => trace.is_ancestor(left, right),
        Relation::Sibling => trace.are_siblings(left, right),
    }
}
