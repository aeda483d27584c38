//! What is done with series after all data is added up: the best of each moment, comparisons, arithmetic.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use super::super::answer::Exemplar;
use super::super::key::Key;
use super::super::value::{Cell, holds, kind_word, status_word};
use crate::traceql::ast::{BinaryOp, SecondStage, Static};
use crate::traceql::format_duration;

/// A series on its way: a value for every moment, NaN for a gap.
#[derive(Debug, Clone)]
pub(crate) struct RawSeries {
    pub(crate) labels: Vec<(Arc<str>, Cell)>,
    pub(crate) values: Vec<f64>,
    /// Values of NaN are filled in at the end.
    pub(crate) exemplars: Vec<(usize, Exemplar)>,
}

/// The label that names a function.
pub(crate) const NAME: &str = "__name__";

/// The text a label is ordered by.
pub(crate) fn label_text(cell: &Cell) -> String {
    match cell {
        Cell::Nil | Cell::Opaque => "nil".into(),
        Cell::Int(v) => v.to_string(),
        Cell::Float(v) => v.to_string(),
        Cell::Str(v) => v.to_string(),
        Cell::Bool(v) => v.to_string(),
        Cell::Duration(v) => format_duration(*v),
        Cell::Status(v) => status_word(*v).into(),
        Cell::Kind(v) => kind_word(*v).into(),
        Cell::Array(_) => String::new(),
    }
}

/// The order of answers: fewer labels first, then by key, then by text.
pub(crate) fn order(a: &RawSeries, b: &RawSeries) -> Ordering {
    order_of_labels(&a.labels, &b.labels)
}

pub(crate) fn order_of_labels(a: &[(Arc<str>, Cell)], b: &[(Arc<str>, Cell)]) -> Ordering {
    a.len().cmp(&b.len()).then_with(|| {
        let by_label = |(a, b): (&(Arc<str>, Cell), &(Arc<str>, Cell))| {
            a.0.cmp(&b.0)
                .then_with(|| directly(&a.1, &b.1).unwrap_or_else(|| label_text(&a.1).cmp(&label_text(&b.1))))
                .then_with(|| {
                    // Of equal text: by type.
                    let rank = |cell: &Cell| match cell {
                        Cell::Str(_) => 0,
                        Cell::Int(_) => 1,
                        Cell::Float(_) => 2,
                        Cell::Bool(_) => 3,
                        _ => 4,
                    };
                    rank(&a.1).cmp(&rank(&b.1))
                })
        };
        a.iter().zip(b).map(by_label).find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
    })
}

/// The order of values that need not be written out for it: bounds and quantiles go by their size.
fn directly(a: &Cell, b: &Cell) -> Option<Ordering> {
    match (a, b) {
        (Cell::Str(a), Cell::Str(b)) => Some(a.cmp(b)),
        (Cell::Float(a), Cell::Float(b)) => a.partial_cmp(b),
        _ => None,
    }
}

pub(crate) fn stage(mut series: Vec<RawSeries>, stage: &SecondStage) -> Vec<RawSeries> {
    match stage {
        SecondStage::TopK(count) => best(&mut series, *count, true),
        SecondStage::BottomK(count) => best(&mut series, *count, false),
        SecondStage::Filter { op, value } => {
            let wanted = match value {
                Static::Int(value) => *value as f64,
                Static::Float(value) => *value,
                // Seconds, as values of durations are.
                Static::Duration(value) => *value as f64 / 1e9,
                _ => f64::NAN,
            };
            let keeps = |value: f64| match value.partial_cmp(&wanted) {
                Some(order) => holds(*op, order),
                None => false,
            };
            for one in &mut series {
                one.values.iter_mut().filter(|value| !keeps(**value)).for_each(|value| *value = f64::NAN);
                one.exemplars.retain(|(_, exemplar)| keeps(exemplar.value));
            }
        }
    }
    series.retain(|one| one.values.iter().any(|value| !value.is_nan()));
    series
}

/// Keeps the largest (or smallest) points of each moment.
fn best(series: &mut [RawSeries], count: i64, largest: bool) {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    if series.len() <= count {
        return;
    }
    // Series come in the order of their labels. Of equal points the first wins at the top, the last at the bottom.
    if count <= FEW {
        best_of_each(series, count, largest)
    } else {
        best_by_moment(series, count, largest)
    }
    for one in series {
        let values = &one.values;
        one.exemplars.retain(|(moment, _)| values.get(*moment).is_some_and(|value| !value.is_nan()));
    }
}

/// So many points of a moment are kept in order as they come; more are told apart all at once.
pub(crate) const FEW: usize = 64;

/// Series by series, because that is how values lie in memory.
fn best_of_each(series: &mut [RawSeries], count: usize, largest: bool) {
    let moments = series.first().map_or(0, |one| one.values.len());
    let wins = |new: f64, old: f64| if largest { new > old } else { new <= old };
    // By moment, the best first.
    let mut kept: Vec<Vec<(f64, usize)>> = vec![Vec::with_capacity(count + 1); moments];
    for (at, one) in series.iter().enumerate() {
        for (kept, value) in kept.iter_mut().zip(&one.values).filter(|(_, value)| !value.is_nan()) {
            if kept.len() == count && !kept.last().is_some_and(|(worst, _)| wins(*value, *worst)) {
                continue;
            }
            let place = kept.iter().position(|(old, _)| wins(*value, *old)).unwrap_or(kept.len());
            kept.insert(place, (*value, at));
            kept.truncate(count);
        }
    }
    series.iter_mut().for_each(|one| one.values.fill(f64::NAN));
    for (moment, kept) in kept.into_iter().enumerate() {
        for (value, at) in kept {
            series[at].values[moment] = value;
        }
    }
}

fn best_by_moment(series: &mut [RawSeries], count: usize, largest: bool) {
    let moments = series.first().map_or(0, |one| one.values.len());
    let mut points: Vec<(f64, usize)> = Vec::with_capacity(series.len());
    for moment in 0..moments {
        points.clear();
        let all = series.iter().enumerate().map(|(at, one)| (one.values[moment], at));
        points.extend(all.filter(|(value, _)| !value.is_nan()));
        if points.len() <= count {
            continue;
        }
        let better = |a: &(f64, usize), b: &(f64, usize)| {
            if largest { b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)) } else { a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)) }
        };
        points.select_nth_unstable_by(count, better);
        points[count..].iter().for_each(|(_, at)| series[*at].values[moment] = f64::NAN);
    }
}

fn calculate(op: BinaryOp, a: f64, b: f64) -> f64 {
    let out = match op {
        BinaryOp::Add => a + b,
        BinaryOp::Sub => a - b,
        BinaryOp::Mul => a * b,
        BinaryOp::Div if b == 0.0 => f64::NAN,
        BinaryOp::Div => a / b,
        _ => f64::NAN,
    };
    if out.is_finite() { out } else { f64::NAN }
}

fn symbol(op: BinaryOp) -> &'static str {
    match op {
        BinaryOp::Add => "+",
        BinaryOp::Sub => "-",
        BinaryOp::Mul => "*",
        _ => "/",
    }
}

pub(crate) fn scalar_math(mut series: Vec<RawSeries>, op: BinaryOp, scalar: f64, scalar_left: bool) -> Vec<RawSeries> {
    let apply = |value: f64| if scalar_left { calculate(op, scalar, value) } else { calculate(op, value, scalar) };
    for one in &mut series {
        one.values.iter_mut().for_each(|value| *value = apply(*value));
        one.exemplars.iter_mut().for_each(|(_, exemplar)| exemplar.value = apply(exemplar.value));
    }
    series.retain(|one| one.values.iter().any(|value| !value.is_nan()));
    series
}

/// What tells series apart: all labels but the function's name.
fn identity(series: &RawSeries) -> Vec<(Arc<str>, Key)> {
    let labels = series.labels.iter().filter(|(key, _)| &**key != NAME);
    let mut out: Vec<(Arc<str>, Key)> = labels.map(|(key, cell)| (Arc::clone(key), Key::of(cell.value()))).collect();
    out.sort_by(|a, b| a.0.cmp(&b.0));
    out
}

fn name_of(series: &RawSeries) -> Option<String> {
    let found = series.labels.iter().find(|(key, _)| &**key == NAME)?;
    Some(label_text(&found.1))
}

/// Point by point, of series with the same labels. One without labels goes with every series of the other side.
pub(crate) fn math(op: BinaryOp, left: Vec<RawSeries>, right: Vec<RawSeries>) -> Vec<RawSeries> {
    let single = |side: &[RawSeries]| match side {
        [only] if identity(only).is_empty() => Some(only.clone()),
        _ => None,
    };
    let mut out = Vec::new();
    match (single(&left), single(&right)) {
        (Some(a), Some(b)) => {
            let mut joined = join(op, &a, &b);
            let name = format!("({} {} {})", name_of(&a).unwrap_or_default(), symbol(op), name_of(&b).unwrap_or_default());
            joined.labels = vec![(Arc::from(NAME), Cell::Str(name.into()))];
            joined.exemplars = a.exemplars.into_iter().chain(b.exemplars).collect();
            out.push(joined);
        }
        (Some(a), None) => out.extend(right.iter().map(|b| RawSeries { exemplars: b.exemplars.clone(), ..join(op, &a, b) })),
        (None, Some(b)) => out.extend(left.iter().map(|a| RawSeries { exemplars: a.exemplars.clone(), ..join(op, a, &b) })),
        (None, None) => {
            let by_labels: HashMap<_, &RawSeries> = right.iter().map(|series| (identity(series), series)).collect();
            for a in &left {
                if let Some(b) = by_labels.get(&identity(a)) {
                    let exemplars = a.exemplars.iter().chain(&b.exemplars).cloned().collect();
                    out.push(RawSeries { exemplars, ..join(op, a, b) });
                }
            }
        }
    }
    out.retain(|one| one.values.iter().any(|value| !value.is_nan()));
    out
}

fn join(op: BinaryOp, a: &RawSeries, b: &RawSeries) -> RawSeries {
    let mut labels: Vec<(Arc<str>, Cell)> = a.labels.iter().filter(|(key, _)| &**key != NAME).cloned().collect();
    for (key, cell) in b.labels.iter().filter(|(key, _)| &**key != NAME) {
        if !labels.iter().any(|(known, _)| known == key) {
            labels.push((Arc::clone(key), cell.clone()));
        }
    }
    let values = a.values.iter().zip(&b.values).map(|(a, b)| calculate(op, *a, *b)).collect();
    RawSeries { labels, values, exemplars: Vec::new() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn both_ways_keep_the_same(
            rows in prop::collection::vec(prop::collection::vec(prop_oneof![Just(f64::NAN), (0..4).prop_map(f64::from)], 3), 1..12),
            count in 1usize..12,
            largest in any::<bool>(),
        ) {
            let series = |values: &Vec<f64>| RawSeries { labels: Vec::new(), values: values.clone(), exemplars: Vec::new() };
            let (mut a, mut b): (Vec<RawSeries>, Vec<RawSeries>) = (rows.iter().map(series).collect(), rows.iter().map(series).collect());
            best_of_each(&mut a, count, largest);
            best_by_moment(&mut b, count, largest);
            let bits = |all: &[RawSeries]| -> Vec<Vec<u64>> {
                all.iter().map(|one| one.values.iter().map(|v| if v.is_nan() { u64::MAX } else { v.to_bits() }).collect()).collect()
            };
            prop_assert_eq!(bits(&a), bits(&b));
        }
    }
}
