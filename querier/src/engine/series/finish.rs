//! From sums to series: labels, units, and what empty moments show.

use std::sync::Arc;

use super::super::answer::{AnswerAttribute, AnswerValue, Exemplar};
use super::super::budget::Budget;
use super::super::key::Key;
use super::super::search::answer_of;
use super::super::value::Cell;
use super::super::{EngineError, Grid};
use super::accumulate::{Accumulator, Log2, States};
use super::cells::{Cells, Merge as _};
use super::exemplars::{self, Picked};
use super::plan::{Function, Measurement, Unit};
use super::sketch::Sketch;
use super::stages::{self, NAME, RawSeries};

/// Labels as answers have them.
pub(crate) fn labels(labels: &[(Arc<str>, Cell)]) -> Vec<AnswerAttribute> {
    let nil = || AnswerValue::Str(Arc::from("nil"));
    labels
        .iter()
        .map(|(key, cell)| AnswerAttribute { key: Arc::clone(key), value: answer_of(cell).unwrap_or_else(nil) })
        .collect()
}

/// The labels of a group, whose attributes have these names. Missing values have none.
fn group_labels(measurement: &Measurement, names: &[Arc<str>], key: &[Key]) -> Vec<(Arc<str>, Cell)> {
    let is_spread = matches!(measurement.function, Function::Histogram | Function::Quantile(_));
    if measurement.by.is_empty() {
        let function = (Arc::from(NAME), Cell::Str(Arc::from(measurement.function.name())));
        return if is_spread { Vec::new() } else { vec![function] };
    }
    let known = key.iter().enumerate().filter(|(_, key)| **key != Key::Nil);
    known.map(|(at, key)| (Arc::clone(&names[at]), key.cell())).collect()
}

pub(crate) fn series(
    measurement: &Measurement,
    mut accumulator: Accumulator,
    grid: Grid,
    largest: Option<usize>,
    window: Option<u32>,
    budget: &Budget,
) -> Result<Vec<RawSeries>, EngineError> {
    let buckets = super::accumulate::Buckets::count(grid);
    // Without groups, nothing found is zero.
    if measurement.by.is_empty() && matches!(measurement.function, Function::Rate | Function::Count) {
        accumulator.series(Vec::new());
    }
    let picked = std::mem::replace(&mut accumulator.picker, exemplars::Picker::new(grid, 0)).finish();
    let names: Vec<Arc<str>> = measurement.by.iter().map(|id| measurement.spans.attributes.get(*id).text().into()).collect();
    let keys: Vec<Vec<(Arc<str>, Cell)>> =
        accumulator.keys.iter().map(|key| group_labels(measurement, &names, key)).collect();
    let seconds = grid.step as f64 / 1e9;
    let unit = match measurement.unit {
        Unit::SpanDuration => 1e9,
        Unit::Plain | Unit::OtherDuration => 1.0,
    };
    let spread_unit = if measurement.unit == Unit::Plain { 1.0 } else { 1e9 };
    // Which of the series below a group's exemplars go to.
    let mut out: Vec<RawSeries> = Vec::new();
    let mut first_of_group: Vec<usize> = Vec::with_capacity(keys.len());
    let plain =
        |labels: &[(Arc<str>, Cell)], values: Vec<f64>| RawSeries { labels: labels.to_vec(), values, exemplars: Vec::new() };
    let is_wanted = match (&accumulator.states, largest) {
        (States::Counts(all), Some(count)) if count < all.len() && count <= stages::FEW => {
            may_be_largest(&keys, all, count, buckets)
        }
        _ => vec![true; keys.len()],
    };
    let wanted = is_wanted.iter().filter(|wanted| **wanted).count();
    let series = match (&accumulator.states, &measurement.function) {
        (States::Log2(all), _) => all.iter().map(powers).sum(),
        (_, Function::Quantile(quantiles)) => wanted.saturating_mul(quantiles.len()),
        _ => wanted,
    };
    budget.charge(series.saturating_mul(buckets * 8 + 200).saturating_add(keys.len() * 200))?;
    match &accumulator.states {
        States::Counts(all) => {
            let per = if matches!(measurement.function, Function::Rate) { seconds } else { 1.0 };
            for ((labels, cells), is_wanted) in keys.iter().zip(all).zip(is_wanted) {
                if !is_wanted {
                    first_of_group.push(out.len());
                    continue;
                }
                let mut values = vec![0.0; buckets];
                cells.each(|bucket, count| values[bucket] = *count as f64 / per);
                first_of_group.push(out.len());
                out.push(plain(labels, values));
            }
        }
        States::Sums(all) => {
            let is_mean = matches!(measurement.function, Function::Avg);
            for (labels, cells) in keys.iter().zip(all) {
                let mut values = vec![f64::NAN; buckets];
                cells.each(|bucket, sum| {
                    if sum.count > 0 {
                        values[bucket] = sum.total() / unit / if is_mean { sum.count as f64 } else { 1.0 };
                    }
                });
                first_of_group.push(out.len());
                out.push(plain(labels, values));
            }
        }
        States::Extremes(all) => {
            let is_min = matches!(measurement.function, Function::Min);
            for (labels, cells) in keys.iter().zip(all) {
                let mut values = vec![f64::NAN; buckets];
                cells.each(|bucket, extremes| {
                    if !extremes.is_none() {
                        values[bucket] = if is_min { extremes.min } else { extremes.max } / unit;
                    }
                });
                first_of_group.push(out.len());
                out.push(plain(labels, values));
            }
        }
        States::Log2(all) => {
            for (labels, cells) in keys.iter().zip(all) {
                first_of_group.push(out.len());
                out.extend(histogram(labels, cells, buckets, spread_unit));
            }
        }
        States::Sketches(all) => {
            let Function::Quantile(quantiles) = &measurement.function else { return Ok(Vec::new()) };
            for (labels, cells) in keys.iter().zip(all) {
                first_of_group.push(out.len());
                let mut any = false;
                cells.each(|_, sketch| any |= sketch.quantile(1.0).is_some());
                if !any {
                    continue;
                }
                if let Some(window) = window {
                    let series = sliding(cells, buckets, window as usize, quantiles).into_iter().zip(quantiles);
                    out.extend(series.map(|(mut values, quantile)| {
                        values.iter_mut().for_each(|value| *value /= spread_unit);
                        let mut labels = labels.clone();
                        labels.push((Arc::from("p"), Cell::Float(*quantile)));
                        RawSeries { labels, values, exemplars: Vec::new() }
                    }));
                    continue;
                }
                for quantile in quantiles {
                    let mut values = vec![0.0; buckets];
                    cells.each(|bucket, sketch| {
                        if let Some(value) = sketch.quantile(*quantile) {
                            values[bucket] = value / spread_unit;
                        }
                    });
                    let mut labels = labels.clone();
                    labels.push((Arc::from("p"), Cell::Float(*quantile)));
                    out.push(RawSeries { labels, values, exemplars: Vec::new() });
                }
            }
        }
    }
    place_exemplars(measurement, &picked, &first_of_group, &mut out, (unit, spread_unit), budget)?;
    Ok(out)
}

/// Quantiles over windows of some buckets, each told at its last bucket; no number where a window has no spans.
fn sliding(cells: &Cells<Sketch>, buckets: usize, window: usize, quantiles: &[f64]) -> Vec<Vec<f64>> {
    let by_bucket = cells.by_bucket(buckets);
    let mut out = vec![vec![f64::NAN; buckets]; quantiles.len()];
    let mut sum = Sketch::default();
    for bucket in 0..buckets {
        if let Some(sketch) = by_bucket[bucket] {
            sum.merge(sketch);
        }
        if let Some(gone) = bucket.checked_sub(window).and_then(|gone| by_bucket[gone]) {
            sum.subtract(gone);
        }
        for (values, quantile) in out.iter_mut().zip(quantiles) {
            values[bucket] = sum.quantile(*quantile).unwrap_or(f64::NAN);
        }
    }
    out
}

/// Which groups may be among the `count` largest of a bucket: of equal ones those that come first by their labels. Groups that
/// never are need no series, of which each has a value for every bucket.
fn may_be_largest(keys: &[Vec<(Arc<str>, Cell)>], all: &[Cells<u64>], count: usize, buckets: usize) -> Vec<bool> {
    let mut out = vec![false; keys.len()];
    let by_labels = |a: &usize, b: &usize| stages::order_of_labels(&keys[*a], &keys[*b]);
    // Where fewer have any, those with none follow, and the first of all groups hold enough of these.
    let mut groups: Vec<usize> = (0..keys.len()).collect();
    groups.select_nth_unstable_by(count, by_labels);
    groups[..count].iter().for_each(|group| out[*group] = true);
    // By bucket, the largest; the last of them is the first to go.
    let mut kept: Vec<Vec<(u64, usize)>> = vec![Vec::new(); buckets];
    for (group, cells) in all.iter().enumerate() {
        cells.each(|bucket, value| {
            let kept = &mut kept[bucket];
            let comes_first =
                |other: &(u64, usize)| other.0 > *value || (other.0 == *value && by_labels(&other.1, &group).is_lt());
            if *value == 0 || (kept.len() == count && kept.last().is_none_or(comes_first)) {
                return;
            }
            let place = kept.partition_point(comes_first);
            kept.insert(place, (*value, group));
            kept.truncate(count);
        });
    }
    kept.iter().flatten().for_each(|(_, group)| out[*group] = true);
    out
}

/// How many powers of two occur.
fn powers(cells: &Cells<Log2>) -> usize {
    let mut met = 0u128;
    cells.each(|_, counts| counts.0.iter().for_each(|(power, _)| met |= 1 << power));
    met.count_ones() as usize
}

/// One series for each power of two that occurs.
fn histogram(labels: &[(Arc<str>, Cell)], cells: &Cells<Log2>, buckets: usize, unit: f64) -> Vec<RawSeries> {
    let mut by_power: std::collections::BTreeMap<u8, Vec<f64>> = std::collections::BTreeMap::new();
    cells.each(|bucket, counts| {
        for (power, count) in &counts.0 {
            by_power.entry(*power).or_insert_with(|| vec![0.0; buckets])[bucket] = *count as f64;
        }
    });
    let series = by_power.into_iter().map(|(power, values)| {
        let mut labels = labels.to_vec();
        labels.push((Arc::from("__bucket"), Cell::Float(2f64.powi(i32::from(power)) / unit)));
        RawSeries { labels, values, exemplars: Vec::new() }
    });
    series.collect()
}

fn place_exemplars(
    measurement: &Measurement,
    picked: &[(spanhouse_common::id::TraceId, Picked)],
    first_of_group: &[usize],
    out: &mut [RawSeries],
    (unit, spread_unit): (f64, f64),
    budget: &Budget,
) -> Result<(), EngineError> {
    if picked.is_empty() {
        return Ok(());
    }
    let labels = exemplars::labels(measurement, picked, budget)?;
    for ((_, picked), labels) in picked.iter().zip(labels) {
        let first = first_of_group[picked.series as usize];
        let end = first_of_group.get(picked.series as usize + 1).copied().unwrap_or(out.len());
        if first >= end {
            continue;
        }
        let (at, value) = match &measurement.function {
            Function::Histogram => {
                let value = picked.value / spread_unit;
                let bound = |series: &RawSeries| match series.labels.last() {
                    Some((_, Cell::Float(bound))) => *bound,
                    _ => f64::INFINITY,
                };
                let at = (first..end).find(|at| bound(&out[*at]) >= value).unwrap_or(end - 1);
                (at, f64::NAN)
            }
            Function::Quantile(_) => {
                let value = picked.value / spread_unit;
                let overall = |series: &RawSeries| series.values.iter().copied().fold(0.0, f64::max);
                let distance = |at: &usize| (overall(&out[*at]) - value).abs();
                let at = (first..end).min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap_or(first);
                (at, value)
            }
            _ => (first, picked.value / unit),
        };
        let exemplar = Exemplar { labels, value, timestamp_ms: (picked.start / 1_000_000) as i64 };
        out[at].exemplars.push((picked.bucket as usize, exemplar));
    }
    Ok(())
}
