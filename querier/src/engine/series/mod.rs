//! Metrics: series measured on the spans of a query.
//!
//! Every slice adds its spans to an accumulator; accumulators are merged; series are made of the sum; stages and arithmetic come
//! last. Owns what functions measure and what series look like. Spans are selected as in a search.

mod accumulate;
pub(crate) mod cells;
mod compare;
mod exemplars;
mod finish;
mod plan;
pub(crate) mod sketch;
mod stages;
mod sums;
mod tally;

use std::sync::Arc;

use parking_lot::Mutex;

use super::answer::{QueryStats, Sample, Series, SeriesAnswer};
use super::budget::Budget;
use super::filter::PartView;
use super::pipeline::Evaluator;
use super::run::{Running, Slice};
use super::search::hits;
use super::shared::Shared;
use super::{EngineError, Grid, MetricsRequest, Progress};
use crate::traceql::ast::Root;
use accumulate::Accumulator;
use compare::{Comparison, Which};
use plan::{Function, Measurement, SeriesExpr, SeriesPlan};
use stages::RawSeries;

/// What is added up of a measurement.
enum Sums {
    Plain(Box<Accumulator>),
    Compare(Box<Comparison>),
}

impl Sums {
    fn new(measurement: &Measurement, grid: Grid, exemplars: usize) -> Self {
        match &measurement.function {
            Function::Compare(_) => Self::Compare(Box::new(Comparison::new(grid))),
            _ => Self::Plain(Box::new(Accumulator::new(measurement, grid, exemplars))),
        }
    }

    fn plain(self) -> Option<Accumulator> {
        if let Self::Plain(accumulator) = self { Some(*accumulator) } else { None }
    }

    fn compared(self) -> Option<Comparison> {
        if let Self::Compare(comparison) = self { Some(*comparison) } else { None }
    }
}

/// What every job of a measurement knows.
struct Measuring {
    measurement: Arc<Measurement>,
    grid: Grid,
    exemplars: usize,
    shared: Arc<Shared>,
    /// Whether shared traces must be joined, and not only looked at where a span may be there twice.
    joins: bool,
    /// Whether quantiles are of sliding windows.
    slides: bool,
    /// Whether joining matters only to what `compare()` counts of the trace around a span.
    splits: bool,
    budget: Budget,
    /// Accumulators that no job uses right now.
    idle: Mutex<Vec<Sums>>,
}

struct Added {
    hits: Vec<u32>,
    /// Shared traces of which all must be judged joined, where other spans of such were counted already.
    twice: Vec<u32>,
    traces: u32,
    spans: u64,
    bytes: u64,
}

pub(crate) async fn metrics(
    mut running: Running,
    request: &MetricsRequest,
    progress: &dyn Progress<SeriesAnswer>,
) -> Result<SeriesAnswer, EngineError> {
    let Root::Metrics(expr) = &request.query.root else {
        return Err(EngineError::Evaluation("not a metrics query".into()));
    };
    let plan = SeriesPlan::new(expr)?;
    let exemplars = match request.exemplars {
        0 => 0,
        all => (all / plan.measurements.len().max(1)).max(1),
    };
    let mut measured = Vec::with_capacity(plan.measurements.len());
    for (at, measurement) in plan.measurements.iter().enumerate() {
        let largest = plan.only_largest(at);
        let wanted = Wanted { grid: request.grid, exemplars, largest, window: request.window };
        measured.push(measure(&mut running, measurement, wanted, progress).await?);
    }
    let (grid, expr) = (request.grid, plan.expr);
    let counted = running.stats.clone();
    // Large answers take a while: not on a thread that serves sockets.
    let mut series = running
        .alone(move || {
            let mut uses: Vec<usize> = (0..measured.len()).map(|at| expr.uses(at).0).collect();
            Ok(answer(apply(&expr, &mut measured, &mut uses), grid))
        })
        .await?;
    let mut stats =
        QueryStats { completed_jobs: counted.completed_jobs, total_jobs: counted.total_jobs, ..running.stats.clone() };
    if request.max_series > 0 && series.len() > request.max_series {
        series.truncate(request.max_series);
        let text = format!(
            "Response exceeds maximum series limit of {}, a partial response is returned. Warning: the accuracy of each individual \
             value is not guaranteed.",
            request.max_series
        );
        stats.partial = Some(match stats.partial {
            Some(other) => format!("{text}; {other}"),
            None => text,
        });
    }
    Ok(SeriesAnswer { series, stats })
}

/// `uses` are those that are left of each measurement: the last one takes it.
fn apply(expr: &SeriesExpr, measured: &mut [Vec<RawSeries>], uses: &mut [usize]) -> Vec<RawSeries> {
    match expr {
        SeriesExpr::Measured(at) => {
            uses[*at] = uses[*at].saturating_sub(1);
            if uses[*at] == 0 { std::mem::take(&mut measured[*at]) } else { measured[*at].clone() }
        }
        SeriesExpr::Stage { input, stage } => {
            let mut input = apply(input, measured, uses);
            input.sort_by(stages::order);
            stages::stage(input, stage)
        }
        SeriesExpr::Math { op, left, right } => {
            let left = apply(left, measured, uses);
            stages::math(*op, left, apply(right, measured, uses))
        }
        SeriesExpr::ScalarMath { op, input, scalar, scalar_left } => {
            stages::scalar_math(apply(input, measured, uses), *op, *scalar, *scalar_left)
        }
    }
}

/// What is wanted of a measurement.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    grid: Grid,
    exemplars: usize,
    /// Only so many of the largest series at each moment, where a stage drops the others.
    largest: Option<usize>,
    /// Steps that quantiles look back over.
    window: Option<u32>,
}

async fn measure(
    running: &mut Running,
    measurement: &Arc<Measurement>,
    Wanted { grid, exemplars, largest, window }: Wanted,
    progress: &dyn Progress<SeriesAnswer>,
) -> Result<Vec<RawSeries>, EngineError> {
    let measuring = Arc::new(Measuring {
        measurement: Arc::clone(measurement),
        grid,
        exemplars,
        shared: Arc::clone(&running.shared),
        joins: measurement.needs_traces(),
        slides: window.is_some(),
        splits: measurement.needs_traces_only_for_compared(),
        budget: running.budget.clone(),
        idle: Mutex::default(),
    });
    let jobs: Vec<_> = running
        .slices()
        .into_iter()
        // Spans outside of the range count only through what they are to spans inside.
        .filter(|slice| (measuring.joins && !measuring.splits) || slice.only.is_none())
        .map(|slice| {
            let measuring = Arc::clone(&measuring);
            move || measuring.slice(&slice, Which::All)
        })
        .collect();
    let (mut joined, mut twice) = (Vec::new(), Vec::new());
    let report = |stats: &mut super::answer::QueryStats, added: &Added| {
        stats.inspected_traces = stats.inspected_traces.saturating_add(added.traces);
        stats.inspected_spans += added.spans;
        stats.inspected_bytes += added.bytes;
        progress.so_far(SeriesAnswer { series: Vec::new(), stats: stats.clone() });
    };
    running
        .jobs(jobs, |stats, added| {
            report(stats, &added);
            joined.extend(added.hits);
            twice.extend(added.twice);
            Ok(())
        })
        .await?;
    let which = if measuring.splits { Which::OfTraces } else { Which::All };
    for (traces, which) in [(joined, which), (twice, Which::All)] {
        let work = Arc::clone(&measuring);
        let jobs = running.merged(traces, move |slice| work.slice(&slice, which));
        running.jobs(jobs, |_, _| Ok(())).await?;
    }
    let measurement = Arc::clone(measurement);
    let partial = running.stats.clone();
    let finished = match &measurement.function {
        Function::Compare(compare) => compared(running, &measuring, compare.top).await,
        _ => {
            running
                .alone(move || {
                    let own = Accumulator::new(&measurement, grid, exemplars);
                    let all = measuring.take_idle().into_iter();
                    let sum = all.filter_map(Sums::plain).try_fold(own, |mut sum, other| {
                        sum.merge(other, &measuring.budget)?;
                        Ok::<_, EngineError>(sum)
                    })?;
                    finish::series(&measurement, sum, grid, largest, window, &measuring.budget)
                })
                .await
        }
    };
    // Putting together is no job to those who count.
    running.stats.total_jobs = partial.total_jobs;
    running.stats.completed_jobs = partial.completed_jobs;
    finished
}

/// Puts together what was compared, an attribute at a time.
async fn compared(running: &mut Running, measuring: &Arc<Measuring>, top: usize) -> Result<Vec<RawSeries>, EngineError> {
    let taken = Arc::clone(measuring);
    let found = running
        .alone(move || Ok(Comparison::by_attribute(taken.take_idle().into_iter().filter_map(Sums::compared).collect())))
        .await?;
    found.damage.into_iter().for_each(|why| running.stats.miss(why));
    let jobs: Vec<_> = found
        .tallies
        .into_iter()
        .map(|(attribute, tallies)| move || Ok(compare::series_of(&attribute, tallies, top)))
        .collect();
    let mut out = Vec::new();
    running
        .jobs(jobs, |_, series| {
            out.extend(series);
            Ok(())
        })
        .await?;
    Ok(out)
}

impl Measuring {
    fn take_idle(&self) -> Vec<Sums> {
        std::mem::take(&mut *self.idle.lock())
    }

    /// Adds what a slice has; of joined traces, what `which` says.
    fn slice(&self, slice: &Slice, which: Which) -> Result<Added, EngineError> {
        let plan = &self.measurement.spans;
        let view = PartView::new(&*slice.part, &plan.attributes, &self.budget)?;
        let (from, to) = slice.rows;
        let rows = u64::from(to - from);
        let mut added = Added {
            hits: Vec::new(),
            twice: Vec::new(),
            traces: (slice.traces.1 - slice.traces.0) as u32,
            spans: rows,
            bytes: slice.part.bytes() * rows / u64::from(slice.part.rows().max(1)),
        };
        let here = slice.number.map_or(&[][..], |number| self.shared.between(number, slice.traces.0, slice.traces.1));
        let table = Arc::clone(&view.traces.table);
        // Rows whose traces are judged elsewhere.
        let mut parted: Vec<(usize, usize)> = Vec::new();
        let selected = match plan.span_filter() {
            Some(filter) => {
                let mut rows = view.select_in(filter, &slice.wanted(&table), from)?;
                for (trace, shared) in here {
                    let range = table.rows(*trace as usize);
                    let (first, end) = ((range.start - from) as usize, (range.end - from) as usize);
                    if !rows.any_in(first, end) {
                        continue;
                    }
                    let is_twice = self.shared.may_be_twice(*shared);
                    match (self.splits, is_twice || self.joins) {
                        (true, _) if is_twice => added.twice.push(*shared),
                        (true, _) => {
                            added.hits.push(*shared);
                            parted.push((first, end));
                            continue;
                        }
                        (false, true) => added.hits.push(*shared),
                        (false, false) => continue,
                    }
                    rows.clear_range(first, end);
                }
                rows
            }
            None => {
                added.hits = hits(plan, &view, here)?;
                let evaluator = Evaluator { view: &view, from, to };
                let mut rows = slice.wanted(&table);
                Shared::clear(here, &table, from, &mut rows);
                evaluator.run(&plan.plan, &rows)?.rows(&evaluator)
            }
        };
        let idle = self.idle.lock().pop();
        let mut sums = idle.unwrap_or_else(|| Sums::new(&self.measurement, self.grid, self.exemplars));
        if let Sums::Plain(accumulator) = &mut sums {
            accumulator.counts_zero = self.slides;
        }
        let done = match (&mut sums, &self.measurement.function) {
            (Sums::Compare(comparison), Function::Compare(compare)) => {
                if parted.is_empty() {
                    comparison.add(compare, &view, &selected, from, which)
                } else {
                    let mut whole = selected.clone();
                    parted.into_iter().for_each(|(first, end)| whole.clear_range(first, end));
                    let spans = comparison.add(compare, &view, &selected, from, Which::OfSpans);
                    spans.and_then(|()| comparison.add(compare, &view, &whole, from, Which::OfTraces))
                }
            }
            (Sums::Plain(accumulator), _) => {
                accumulator.add(&self.measurement, &view, &slice.part, &selected, from, self.grid)
            }
            _ => Ok(()),
        };
        self.idle.lock().push(sums);
        done.map(|()| added)
    }
}

/// Series as answers have them: gaps left out, in order.
fn answer(mut series: Vec<RawSeries>, grid: Grid) -> Vec<Series> {
    series.sort_by(stages::order);
    let moment = |bucket: usize| {
        let at = grid.start.saturating_add(grid.step.saturating_mul(bucket as u64 + 1)).min(grid.end.max(grid.start));
        (at / 1_000_000) as i64
    };
    let mut out = Vec::new();
    for one in series {
        let samples: Vec<Sample> = (0..)
            .zip(&one.values)
            .filter(|(_, value)| !value.is_nan())
            .map(|(bucket, value)| Sample { timestamp_ms: moment(bucket), value: *value })
            .collect();
        if samples.is_empty() {
            continue;
        }
        let mut exemplars: Vec<_> = one
            .exemplars
            .into_iter()
            .filter_map(|(bucket, mut exemplar)| {
                let sample = one.values.get(bucket).copied().filter(|value| !value.is_nan())?;
                if exemplar.value.is_nan() {
                    exemplar.value = sample;
                }
                Some(exemplar)
            })
            .collect();
        exemplars.sort_by_key(|exemplar| exemplar.timestamp_ms);
        out.push(Series { labels: finish::labels(&one.labels), samples, exemplars });
    }
    out
}
