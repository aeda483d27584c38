//! Figures of the Monitor tab: calls, errors and latency in windows that slide from point to point.
//!
//! The engine measures in fine steps, of which both the distance of points and the width of windows are whole numbers; windows
//! are sums of these. Owns the grid and the windows. Does not own how spans are measured.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::query::{equal, intrinsic, join, scoped, text};
use super::{Answer, JaegerError, JaegerQueries, MonitorFigure, MonitorRequest, MonitorSeries};
use crate::engine::answer::{AnswerValue, Series};
use crate::engine::{Grid, MetricsRequest, Quiet};
use crate::traceql::ast::{
    Attribute, BinaryOp, FieldExpr, Intrinsic, Kind, MetricsExpr, MetricsFunction, MetricsQuery, Pipeline, PipelineExpr,
    Query, Root, Scope, SpansetExpr, Stage, Static,
};

/// Most points of a series, as Prometheus has it.
const MAX_POINTS: i64 = 11_000;

/// Fine steps of a request. If windows and points share no larger part of time, they are put at the nearest step.
const MAX_BUCKETS: i64 = 12_000;

/// Services, and kinds, of one request.
const MAX_SERVICES: usize = 500;

const SERVER: i32 = 2;
const SERVICE: &str = "service.name";

/// When is measured: milliseconds and numbers of fine steps.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Steps {
    /// Where the first window begins.
    start_ms: i64,
    fine_ms: i64,
    buckets: i64,
    window: i64,
}

impl Steps {
    fn of(request: &MonitorRequest) -> Result<Self, JaegerError> {
        let invalid = |text: &str| Err(JaegerError::Invalid(text.to_owned()));
        let MonitorRequest { end_ms, lookback_ms, step_ms, rate_per_ms, .. } = *request;
        if step_ms <= 0 || rate_per_ms <= 0 {
            return invalid("step and ratePer must be positive");
        }
        if lookback_ms < 0 || end_ms < 0 {
            return invalid("endTs and lookback must not be negative");
        }
        if lookback_ms / step_ms >= MAX_POINTS {
            return invalid(
                "exceeded maximum resolution of 11000 points per series: ask for a larger step or a shorter lookback",
            );
        }
        let Some(span) = lookback_ms.checked_add(rate_per_ms).filter(|span| *span <= end_ms) else {
            return invalid("lookback and ratePer reach further back than 1970");
        };
        let shared = greatest_common(step_ms, rate_per_ms);
        let mut fine_ms = shared.max(ceiling(span, MAX_BUCKETS));
        // A window is whole, also where points are not quite where they should be.
        if fine_ms != shared {
            fine_ms = (rate_per_ms / (rate_per_ms / fine_ms).max(1)).max(fine_ms);
        }
        let window = ((rate_per_ms + fine_ms / 2) / fine_ms).max(1);
        Ok(Self { start_ms: end_ms - span, fine_ms, buckets: ceiling(span, fine_ms), window })
    }

    fn grid(&self) -> Result<Grid, JaegerError> {
        let nanos = |ms: i64| u64::try_from(ms).ok().and_then(|ms| ms.checked_mul(1_000_000));
        let end = self.buckets.checked_mul(self.fine_ms).and_then(|length| length.checked_add(self.start_ms));
        match (nanos(self.start_ms), end.and_then(nanos), nanos(self.fine_ms)) {
            (Some(start), Some(end), Some(step)) => Ok(Grid { start, end, step, instant: false }),
            _ => Err(JaegerError::Invalid("endTs is too late".into())),
        }
    }

    /// The last bucket of the window that ends at a point, and the point, ascending.
    fn points(&self, request: &MonitorRequest) -> impl Iterator<Item = (usize, i64)> {
        let (step, first) = (request.step_ms, request.end_ms - request.lookback_ms);
        let this = *self;
        (0..=request.lookback_ms / step).map(move |nth| first + nth * step).map(move |time| {
            let bucket = (time - this.start_ms + this.fine_ms / 2) / this.fine_ms - 1;
            (bucket.clamp(0, this.buckets - 1) as usize, time)
        })
    }

    /// The bucket whose sample has this time.
    fn bucket_of(&self, timestamp_ms: i64) -> Option<usize> {
        let bucket = (timestamp_ms - self.start_ms) / self.fine_ms - 1;
        usize::try_from(bucket).ok().filter(|bucket| *bucket < self.buckets as usize)
    }
}

/// Of two positive numbers.
fn ceiling(a: i64, b: i64) -> i64 {
    a / b + i64::from(a % b > 0)
}

fn greatest_common(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { greatest_common(b, a % b) }
}

/// Of a service, or an operation of it.
type Key = (String, Option<String>);

pub(super) async fn monitor(
    queries: &JaegerQueries,
    request: &MonitorRequest,
) -> Result<Answer<Vec<MonitorSeries>>, JaegerError> {
    if request.services.is_empty() {
        return Err(JaegerError::Invalid("please provide at least one service name".into()));
    }
    if request.services.len() > MAX_SERVICES || request.kinds.len() > MAX_SERVICES {
        return Err(JaegerError::Invalid(format!("more than {MAX_SERVICES} services or kinds: ask for fewer")));
    }
    let steps = Steps::of(request)?;
    match request.figure {
        MonitorFigure::Latency(quantile) => latency(queries, request, steps, quantile).await,
        MonitorFigure::Calls => {
            let seconds = (steps.window * steps.fine_ms) as f64 / 1e3;
            let calls = counts(queries, request, steps, false).await?;
            Ok(calls.map(|calls| series(request, steps, calls, |sums| sums.0 / seconds)))
        }
        MonitorFigure::Errors => {
            let calls = counts(queries, request, steps, true).await?;
            Ok(calls.map(|calls| series(request, steps, calls, |sums| sums.1 / sums.0)))
        }
    }
}

async fn latency(
    queries: &JaegerQueries,
    request: &MonitorRequest,
    steps: Steps,
    quantile: f64,
) -> Result<Answer<Vec<MonitorSeries>>, JaegerError> {
    if !(0.0..=1.0).contains(&quantile) {
        return Err(JaegerError::Invalid("quantile must be from 0 to 1".into()));
    }
    let function = MetricsFunction::QuantileOverTime(intrinsic(Intrinsic::Duration), vec![quantile]);
    let Answer { found, partial } = measure(queries, request, steps, function, false).await?;
    let mut out: Vec<MonitorSeries> = Vec::new();
    for one in found {
        let Some((service, operation)) = key_of(&one, request.by_operation) else { continue };
        // Seconds.
        let mut values: Vec<Option<f64>> = vec![None; steps.buckets as usize];
        for sample in &one.samples {
            if let Some(bucket) = steps.bucket_of(sample.timestamp_ms) {
                values[bucket] = Some(sample.value * 1e3);
            }
        }
        let points = steps.points(request).filter_map(|(bucket, time)| Some((time, values[bucket]?))).collect();
        out.push(MonitorSeries { service, operation, points });
    }
    out.retain(|series| !series.points.is_empty());
    out.sort_by(|a, b| (&a.service, &a.operation).cmp(&(&b.service, &b.operation)));
    Ok(Answer { found: out, partial })
}

/// Calls, and those of them that failed, by bucket.
async fn counts(
    queries: &JaegerQueries,
    request: &MonitorRequest,
    steps: Steps,
    with_errors: bool,
) -> Result<Answer<BTreeMap<Key, Vec<(f64, f64)>>>, JaegerError> {
    let Answer { found, partial } = measure(queries, request, steps, MetricsFunction::CountOverTime, with_errors).await?;
    let mut out: BTreeMap<Key, Vec<(f64, f64)>> = BTreeMap::new();
    for one in found {
        let Some(key) = key_of(&one, request.by_operation) else { continue };
        let is_error = with_errors && label(&one, "status") == Some("error");
        let counts = out.entry(key).or_insert_with(|| vec![(0.0, 0.0); steps.buckets as usize]);
        for sample in &one.samples {
            if let Some(bucket) = steps.bucket_of(sample.timestamp_ms) {
                counts[bucket].0 += sample.value;
                counts[bucket].1 += if is_error { sample.value } else { 0.0 };
            }
        }
    }
    Ok(Answer { found: out, partial })
}

/// A value of the sums over each point's window, where there are calls.
fn series(
    request: &MonitorRequest,
    steps: Steps,
    counts: BTreeMap<Key, Vec<(f64, f64)>>,
    value: impl Fn((f64, f64)) -> f64,
) -> Vec<MonitorSeries> {
    let mut out = Vec::new();
    for ((service, operation), counts) in counts {
        // What all buckets before one add up to: counts are whole, so differences are exact.
        let mut before = vec![(0.0, 0.0)];
        let mut sum = (0.0, 0.0);
        for count in counts {
            sum = (sum.0 + count.0, sum.1 + count.1);
            before.push(sum);
        }
        let points = steps.points(request).filter_map(|(bucket, time)| {
            let (from, to) = ((bucket + 1).saturating_sub(steps.window as usize), bucket + 1);
            let sums = (before[to].0 - before[from].0, before[to].1 - before[from].1);
            (sums.0 > 0.0).then(|| (time, value(sums)))
        });
        let points: Vec<(i64, f64)> = points.collect();
        if !points.is_empty() {
            out.push(MonitorSeries { service, operation, points });
        }
    }
    out
}

/// Measures the spans asked about by service, operation if wanted, and status if wanted.
async fn measure(
    queries: &JaegerQueries,
    request: &MonitorRequest,
    steps: Steps,
    function: MetricsFunction,
    by_status: bool,
) -> Result<Answer<Vec<Series>>, JaegerError> {
    let mut by = vec![scoped(Scope::Resource, SERVICE)];
    if request.by_operation {
        by.push(intrinsic(Intrinsic::Name));
    }
    if by_status {
        by.push(intrinsic(Intrinsic::Status));
    }
    let stages = vec![Stage::Spanset(SpansetExpr::Filter(filter(request)))];
    let spans = PipelineExpr::Pipeline(Pipeline { stages });
    let query = Query { root: Root::Metrics(MetricsExpr::Query(MetricsQuery { spans, function, by })), hints: Vec::new() };
    let request = MetricsRequest {
        tenants: request.tenants.clone(),
        query: Arc::new(query),
        grid: steps.grid()?,
        exemplars: 0,
        max_series: 0,
        window: u32::try_from(steps.window).ok(),
    };
    let answer = queries.deps().engine.metrics(request, &Quiet).await?;
    Ok(queries.answer(answer.series, answer.stats))
}

fn filter(request: &MonitorRequest) -> FieldExpr {
    let services = request.services.iter().map(|name| equal(scoped(Scope::Resource, SERVICE), text(name))).collect();
    let kinds = if request.kinds.is_empty() { &[SERVER][..] } else { &request.kinds };
    let kind = |number: &i32| Kind::ALL.into_iter().find(|kind| *kind as i32 == *number).unwrap_or(Kind::Unspecified);
    let kinds =
        kinds.iter().map(|number| equal(Attribute::Intrinsic(Intrinsic::Kind), Static::Kind(kind(number)))).collect();
    let all = [join(BinaryOp::Or, services), join(BinaryOp::Or, kinds)].into_iter().flatten().collect();
    join(BinaryOp::And, all).unwrap_or(FieldExpr::Static(Static::Bool(true)))
}

fn label<'s>(series: &'s Series, name: &str) -> Option<&'s str> {
    series.labels.iter().find_map(|label| match &label.value {
        AnswerValue::Str(text) if *label.key == *name => Some(&**text),
        _ => None,
    })
}

fn key_of(series: &Series, by_operation: bool) -> Option<Key> {
    let service = label(series, "resource.service.name")?.to_owned();
    let operation = by_operation.then(|| label(series, "name").unwrap_or_default().to_owned());
    Some((service, operation))
}
