//! Metrics: series of the spans a pipeline selects.

use std::cmp::Ordering;
use std::sync::Arc;

use spanhouse_common::model::{Attribute as ModelAttribute, StoredSpan};

use super::field::{constant_failure, holds, is_event, is_link, lookup};
use super::pipeline::{check_constants, run};
use super::trace::{Trace, traces};
use super::value::{Value, compare};
use crate::engine::Grid;
use crate::engine::answer::{AnswerAttribute, AnswerValue, Sample, Series};
use crate::traceql::ast::{
    Attribute, BinaryOp, FieldExpr, Intrinsic, MetricsExpr, MetricsFunction, MetricsQuery, Scope, SecondStage, Static,
};

/// One value for each bucket of the grid; `None` is a gap.
#[derive(Debug, Clone)]
struct Line {
    labels: Vec<AnswerAttribute>,
    points: Vec<Option<f64>>,
}

/// A span where it counts.
struct Observation<'a> {
    trace: &'a Trace<'a>,
    at: usize,
    bucket: usize,
}

impl Observation<'_> {
    fn value(&self, attribute: &Attribute) -> Value {
        lookup(attribute, self.trace, self.at)
    }
}

pub(super) fn series(expr: &MetricsExpr, spans: &[StoredSpan], grid: Grid) -> Result<Vec<Series>, String> {
    let mut lines = evaluate(expr, spans, grid)?;
    sort(&mut lines);
    let series = |line: Line| Series {
        samples: line.points.iter().enumerate().filter_map(|(i, point)| sample(grid, i, *point)).collect(),
        labels: line.labels,
        exemplars: vec![],
    };
    Ok(lines.into_iter().map(series).filter(|series| !series.samples.is_empty()).collect())
}

fn sample(grid: Grid, bucket: usize, point: Option<f64>) -> Option<Sample> {
    let edge = grid.start + (bucket as u64 + 1) * grid.step;
    Some(Sample { timestamp_ms: (edge / 1_000_000) as i64, value: point? })
}

fn buckets(grid: Grid) -> usize {
    ((grid.end - grid.start) / grid.step) as usize
}

fn bucket_of(grid: Grid, start: u64) -> Option<usize> {
    (0..buckets(grid)).find(|i| {
        let from = grid.start + *i as u64 * grid.step;
        from < start && start <= from + grid.step
    })
}

fn evaluate(expr: &MetricsExpr, spans: &[StoredSpan], grid: Grid) -> Result<Vec<Line>, String> {
    match expr {
        MetricsExpr::Query(query) => query_lines(query, spans, grid),
        MetricsExpr::Stage { input, stage } => {
            let lines = evaluate(input, spans, grid)?;
            Ok(without_empty(match stage {
                SecondStage::TopK(n) => keep_extremes(lines, *n as usize, true),
                SecondStage::BottomK(n) => keep_extremes(lines, *n as usize, false),
                SecondStage::Filter { op, value } => filter_points(lines, *op, value),
            }))
        }
        MetricsExpr::ScalarMath { op, input, scalar, scalar_left } => {
            let mut lines = evaluate(input, spans, grid)?;
            for point in lines.iter_mut().flat_map(|line| &mut line.points) {
                let (left, right) = if *scalar_left { (Some(*scalar), *point) } else { (*point, Some(*scalar)) };
                *point = calculate(*op, left, right);
            }
            Ok(without_empty(lines))
        }
        MetricsExpr::Math { op, left, right } => {
            Ok(without_empty(join(*op, &evaluate(left, spans, grid)?, &evaluate(right, spans, grid)?)))
        }
    }
}

fn without_empty(mut lines: Vec<Line>) -> Vec<Line> {
    lines.retain(|line| line.points.iter().any(Option::is_some));
    lines
}

fn query_lines(query: &MetricsQuery, spans: &[StoredSpan], grid: Grid) -> Result<Vec<Line>, String> {
    check_constants(&query.spans)?;
    if let MetricsFunction::Compare { filter, .. } = &query.function
        && let Some(failure) = constant_failure(filter)
    {
        return Err(failure.to_owned());
    }
    let traces = traces(spans);
    let mut observations = Vec::new();
    for trace in &traces {
        for at in run(&query.spans, trace)?.into_iter().flat_map(|set| set.spans) {
            if let Some(bucket) = bucket_of(grid, trace.spans[at].span.start_unix_nano) {
                observations.push(Observation { trace, at, bucket });
            }
        }
    }
    Ok(without_empty(match &query.function {
        MetricsFunction::Rate => {
            let seconds = grid.step as f64 / 1e9;
            let mut lines = counts(query, &observations, grid, "rate");
            lines.iter_mut().flat_map(|line| &mut line.points).flatten().for_each(|point| *point /= seconds);
            lines
        }
        MetricsFunction::CountOverTime => counts(query, &observations, grid, "count_over_time"),
        MetricsFunction::MinOverTime(a) => {
            folds(query, &observations, grid, "min_over_time", a, |v| v.iter().copied().reduce(f64::min))
        }
        MetricsFunction::MaxOverTime(a) => {
            folds(query, &observations, grid, "max_over_time", a, |v| v.iter().copied().reduce(f64::max))
        }
        MetricsFunction::SumOverTime(a) => {
            folds(query, &observations, grid, "sum_over_time", a, |v| v.iter().copied().reduce(|a, b| a + b))
        }
        MetricsFunction::AvgOverTime(a) => folds(query, &observations, grid, "avg_over_time", a, |v| {
            (!v.is_empty()).then(|| v.iter().sum::<f64>() / v.len() as f64)
        }),
        MetricsFunction::HistogramOverTime(a) => histogram(query, &observations, grid, a),
        MetricsFunction::QuantileOverTime(a, quantiles) => quantile(query, &observations, grid, a, quantiles),
        MetricsFunction::Compare { filter, top, window } => {
            comparison(&observations, grid, filter, top.unwrap_or(10) as usize, *window)
        }
    }))
}

fn label(key: impl Into<Arc<str>>, value: AnswerValue) -> AnswerAttribute {
    AnswerAttribute { key: key.into(), value }
}

fn text(value: &str) -> AnswerValue {
    AnswerValue::Str(Arc::from(value))
}

/// The labels of `by()` that have a value.
fn by_labels(query: &MetricsQuery, observation: &Observation<'_>) -> Vec<AnswerAttribute> {
    let labels = query.by.iter().filter_map(|attribute| {
        let is_list_intrinsic = matches!(attribute, Attribute::Intrinsic(_)) && (is_event(attribute) || is_link(attribute));
        let value = match observation.value(attribute) {
            Value::Nil if is_list_intrinsic => text(""),
            Value::Nil | Value::Opaque => return None,
            // Labels hold no lists.
            Value::Array(_) => text("nil"),
            value => value.answer(),
        };
        Some(label(attribute.to_string(), value))
    });
    labels.collect()
}

/// The labels of functions without one of their own.
fn labels(query: &MetricsQuery, function: &str, observation: &Observation<'_>) -> Vec<AnswerAttribute> {
    let Some(first) = query.by.first() else { return vec![label("__name__", text(function))] };
    let labels = by_labels(query, observation);
    if labels.is_empty() { vec![label(first.to_string(), text("nil"))] } else { labels }
}

/// Values of each series and bucket, by labels.
fn collect<T: Clone>(
    grid: Grid,
    observed: impl IntoIterator<Item = (Vec<AnswerAttribute>, usize, T)>,
) -> Vec<(Vec<AnswerAttribute>, Vec<Vec<T>>)> {
    let mut groups: Vec<(Vec<AnswerAttribute>, Vec<Vec<T>>)> = Vec::new();
    for (labels, bucket, value) in observed {
        let found = groups.iter().position(|(other, _)| *other == labels);
        let at = found.unwrap_or_else(|| {
            groups.push((labels, vec![vec![]; buckets(grid)]));
            groups.len() - 1
        });
        groups[at].1[bucket].push(value);
    }
    groups
}

fn counts(query: &MetricsQuery, observations: &[Observation<'_>], grid: Grid, function: &str) -> Vec<Line> {
    let groups = collect(grid, observations.iter().map(|o| (labels(query, function, o), o.bucket, ())));
    if groups.is_empty() && query.by.is_empty() {
        return vec![Line { labels: vec![label("__name__", text(function))], points: vec![Some(0.0); buckets(grid)] }];
    }
    groups.into_iter().map(count_line).collect()
}

fn count_line<T>((labels, buckets): (Vec<AnswerAttribute>, Vec<Vec<T>>)) -> Line {
    Line { labels, points: buckets.iter().map(|values| Some(values.len() as f64)).collect() }
}

/// The span's own duration counts in seconds, other durations in nanoseconds.
fn measured(observation: &Observation<'_>, attribute: &Attribute) -> Option<f64> {
    let number = observation.value(attribute).number()?;
    Some(if *attribute == Attribute::Intrinsic(Intrinsic::Duration) { number / 1e9 } else { number })
}

fn folds(
    query: &MetricsQuery,
    observations: &[Observation<'_>],
    grid: Grid,
    function: &str,
    attribute: &Attribute,
    fold: fn(&[f64]) -> Option<f64>,
) -> Vec<Line> {
    let observed = observations.iter().filter_map(|o| Some((labels(query, function, o), o.bucket, measured(o, attribute)?)));
    let line = |(labels, buckets): (_, Vec<Vec<f64>>)| Line { labels, points: buckets.iter().map(|v| fold(v)).collect() };
    collect(grid, observed).into_iter().map(line).collect()
}

/// Whole numbers and durations, with what makes them seconds.
fn countable(observation: &Observation<'_>, attribute: &Attribute) -> Option<(i64, f64)> {
    match observation.value(attribute) {
        Value::Int(value) => Some((value, 1.0)),
        Value::Duration(value) => Some((value, 1e9)),
        _ => None,
    }
}

fn histogram(query: &MetricsQuery, observations: &[Observation<'_>], grid: Grid, attribute: &Attribute) -> Vec<Line> {
    let observed = observations.iter().filter_map(|o| {
        let (value, unit) = countable(o, attribute).filter(|(value, _)| *value >= 2)?;
        let bound = (value as u64).next_power_of_two() as f64 / unit;
        let mut labels = by_labels(query, o);
        labels.push(label("__bucket", AnswerValue::Float(bound)));
        Some((labels, o.bucket, ()))
    });
    collect(grid, observed).into_iter().map(count_line).collect()
}

fn quantile(
    query: &MetricsQuery,
    observations: &[Observation<'_>],
    grid: Grid,
    attribute: &Attribute,
    quantiles: &[f64],
) -> Vec<Line> {
    let observed = observations.iter().filter_map(|o| {
        let (value, unit) = countable(o, attribute).filter(|(value, _)| *value > 0)?;
        Some((by_labels(query, o), o.bucket, value as f64 / unit))
    });
    let mut lines = Vec::new();
    for (labels, mut buckets) in collect(grid, observed) {
        buckets.iter_mut().for_each(|values| values.sort_by(f64::total_cmp));
        for q in quantiles {
            let mut labels = labels.clone();
            labels.push(label("p", AnswerValue::Float(*q)));
            lines.push(Line { labels, points: buckets.iter().map(|values| Some(nearest_rank(values, *q))).collect() });
        }
    }
    lines
}

/// Of sorted values; 0 of none.
fn nearest_rank(values: &[f64], q: f64) -> f64 {
    let rank = ((q * values.len() as f64).ceil() as usize).max(1);
    values.get(rank - 1).or(values.last()).copied().unwrap_or(0.0)
}

fn comparison(
    observations: &[Observation<'_>],
    grid: Grid,
    filter: &FieldExpr,
    top: usize,
    window: Option<(i64, i64)>,
) -> Vec<Line> {
    let mut lines = Vec::new();
    for selected in [false, true] {
        let side = if selected { "selection" } else { "baseline" };
        let own: Vec<_> = observations.iter().filter(|o| is_selected(o, filter, window) == selected).collect();
        let mut values: Vec<(Vec<AnswerAttribute>, usize, ())> = Vec::new();
        for observation in own {
            for attribute in compared_attributes(observation) {
                let value = match observation.value(&attribute) {
                    Value::Nil | Value::Opaque | Value::Duration(_) => continue,
                    Value::Array(_) => text("nil"),
                    value => value.answer(),
                };
                values.push((vec![label(attribute.to_string(), value)], observation.bucket, ()));
            }
        }
        let totals = values.iter().map(|(labels, bucket, ())| {
            let total = label(Arc::clone(&labels[0].key), text("nil"));
            (vec![label("__meta_type", text(&format!("{side}_total"))), total], *bucket, ())
        });
        lines.extend(collect(grid, totals).into_iter().map(count_line));
        let mut counted: Vec<Line> = collect(grid, values).into_iter().map(count_line).collect();
        sort(&mut counted);
        let sum = |line: &Line| line.points.iter().flatten().sum::<f64>();
        counted.sort_by(|a, b| sum(b).total_cmp(&sum(a)));
        let mut taken: Vec<Line> = Vec::new();
        for mut line in counted {
            let key = &line.labels[0].key;
            if taken.iter().filter(|other| other.labels[1].key == *key).count() < top {
                line.labels.insert(0, label("__meta_type", text(side)));
                taken.push(line);
            }
        }
        lines.extend(taken);
    }
    lines
}

fn is_selected(observation: &Observation<'_>, filter: &FieldExpr, window: Option<(i64, i64)>) -> bool {
    let start = i128::from(observation.trace.spans[observation.at].span.start_unix_nano);
    let in_window = match window {
        None | Some((0, 0)) => true,
        Some((from, to)) => i128::from(from) < start && start <= i128::from(to),
    };
    in_window && holds(filter, observation.trace, observation.at)
}

/// Everything a span says, but for ids, times and its place in the tree.
fn compared_attributes(observation: &Observation<'_>) -> Vec<Attribute> {
    use Intrinsic::{
        ChildCount, InstrumentationName, InstrumentationVersion, Kind, Name, RootName, RootService, Status, StatusMessage,
    };
    let StoredSpan { span, resource, scope, .. } = observation.trace.spans[observation.at];
    let intrinsics =
        [Name, Kind, Status, StatusMessage, RootName, RootService, ChildCount, InstrumentationName, InstrumentationVersion];
    let mut found: Vec<Attribute> = intrinsics.map(Attribute::Intrinsic).to_vec();
    let mut add = |scope: Scope, attributes: &[ModelAttribute]| {
        for attribute in attributes {
            let attribute = Attribute::Scoped { scope, name: Arc::from(attribute.key.as_str()) };
            if !found.contains(&attribute) {
                found.push(attribute);
            }
        }
    };
    add(Scope::Span, &span.attributes);
    add(Scope::Resource, &resource.attributes);
    add(Scope::Instrumentation, &scope.attributes);
    span.events.iter().for_each(|event| add(Scope::Event, &event.attributes));
    span.links.iter().for_each(|link| add(Scope::Link, &link.attributes));
    found
}

/// Keeps the n largest or smallest points of each bucket. Of equal ones, `topk` keeps the first in order, `bottomk` the last.
fn keep_extremes(mut lines: Vec<Line>, n: usize, largest: bool) -> Vec<Line> {
    if lines.len() <= n {
        return lines;
    }
    sort(&mut lines);
    for bucket in 0..lines[0].points.len() {
        let mut ranked: Vec<(f64, usize)> =
            lines.iter().enumerate().filter_map(|(at, line)| Some((line.points[bucket]?, at))).collect();
        if largest {
            ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        } else {
            ranked.sort_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
        }
        for (_, at) in ranked.into_iter().skip(n) {
            lines[at].points[bucket] = None;
        }
    }
    lines
}

fn filter_points(mut lines: Vec<Line>, op: BinaryOp, literal: &Static) -> Vec<Line> {
    let literal = match literal {
        Static::Duration(nanos) => Value::Float(*nanos as f64 / 1e9),
        other => Value::of_static(other),
    };
    for point in lines.iter_mut().flat_map(|line| &mut line.points) {
        *point = point.filter(|value| compare(op, &Value::Float(*value), &literal));
    }
    lines
}

fn calculate(op: BinaryOp, left: Option<f64>, right: Option<f64>) -> Option<f64> {
    let (left, right) = (left?, right?);
    let result = match op {
        BinaryOp::Add => left + right,
        BinaryOp::Sub => left - right,
        BinaryOp::Mul => left * right,
        BinaryOp::Div if right != 0.0 => left / right,
        _ => return None,
    };
    (!result.is_nan()).then_some(result)
}

/// Without the name of the function.
fn identity(line: &Line) -> Vec<AnswerAttribute> {
    line.labels.iter().filter(|label| &*label.key != "__name__").cloned().collect()
}

fn name(line: &Line) -> Option<&str> {
    line.labels.iter().find(|label| &*label.key == "__name__").and_then(|label| match &label.value {
        AnswerValue::Str(name) => Some(&**name),
        _ => None,
    })
}

fn join(op: BinaryOp, left: &[Line], right: &[Line]) -> Vec<Line> {
    let mut joined = Vec::new();
    for a in left {
        for b in right {
            let (of_a, of_b) = (identity(a), identity(b));
            let same = of_a.len() == of_b.len() && of_a.iter().all(|label| of_b.contains(label));
            if !same && !of_a.is_empty() && !of_b.is_empty() {
                continue;
            }
            let mut labels = of_a.clone();
            labels.extend(of_b.into_iter().filter(|label| of_a.iter().all(|other| other.key != label.key)));
            if labels.is_empty() {
                let names = (name(a).unwrap_or_default(), sign(op), name(b).unwrap_or_default());
                labels.push(label("__name__", text(&format!("({} {} {})", names.0, names.1, names.2))));
            }
            let points = a.points.iter().zip(&b.points).map(|(a, b)| calculate(op, *a, *b)).collect();
            joined.push(Line { labels, points });
        }
    }
    joined
}

fn sign(op: BinaryOp) -> &'static str {
    match op {
        BinaryOp::Add => "+",
        BinaryOp::Sub => "-",
        BinaryOp::Mul => "*",
        _ => "/",
    }
}

/// Fewer labels first, then by key and text of the value.
fn sort(lines: &mut [Line]) {
    lines.sort_by(|a, b| compare_labels(&a.labels, &b.labels));
}

fn compare_labels(a: &[AnswerAttribute], b: &[AnswerAttribute]) -> Ordering {
    let key = |labels: &[AnswerAttribute]| -> Vec<(Arc<str>, String, u8)> {
        labels.iter().map(|label| (Arc::clone(&label.key), value_text(&label.value), type_rank(&label.value))).collect()
    };
    a.len().cmp(&b.len()).then_with(|| key(a).cmp(&key(b)))
}

fn value_text(value: &AnswerValue) -> String {
    match value {
        AnswerValue::Str(v) => v.to_string(),
        AnswerValue::Int(v) => v.to_string(),
        AnswerValue::Float(v) => v.to_string(),
        AnswerValue::Bool(v) => v.to_string(),
        AnswerValue::Array(v) => v.iter().map(value_text).collect::<Vec<_>>().join(","),
    }
}

fn type_rank(value: &AnswerValue) -> u8 {
    match value {
        AnswerValue::Str(_) => 0,
        AnswerValue::Int(_) => 1,
        AnswerValue::Float(_) => 2,
        AnswerValue::Bool(_) => 3,
        AnswerValue::Array(_) => 4,
    }
}
