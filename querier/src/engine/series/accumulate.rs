//! Accumulators: what the spans of some slices add up to, by group and time.
//!
//! A few accumulators serve all jobs of a measurement, one job at a time each, and are merged at the end. Adding and merging
//! commute, so answers do not depend on which job ran where.

use std::collections::HashMap;
use std::sync::Arc;

use spanhouse_common::columns::{Fixed, Part, Rows, Texts, Values};

use super::super::bits::Bits;
use super::super::budget::Budget;
use super::super::expr::{AttrId, list_of};
use super::super::field::Field;
use super::super::filter::{Frame, PartView};
use super::super::key::Key;
use super::super::value::Value;
use super::super::{EngineError, Grid};
use super::cells::{Cells, Merge};
use super::exemplars::{Picked, Picker};
use super::plan::{Function, Measurement};
use super::sketch::Sketch;
use super::sums::{Extremes, Number, Sum};
use crate::traceql::ast::Attribute;

/// Counts by power of two.
#[derive(Debug, Clone, Default)]
pub(crate) struct Log2(pub(crate) Vec<(u8, u64)>);

impl Log2 {
    fn add(&mut self, power: u8, count: u64) {
        match self.0.iter_mut().find(|(known, _)| *known == power) {
            Some((_, sum)) => *sum += count,
            None => self.0.push((power, count)),
        }
    }
}

impl Merge for Log2 {
    fn merge(&mut self, other: &Self) {
        other.0.iter().for_each(|(power, count)| self.add(*power, *count));
    }

    fn heap_bytes(&self) -> usize {
        self.0.capacity() * 16
    }
}

/// By series.
#[derive(Debug)]
pub(crate) enum States {
    Counts(Vec<Cells<u64>>),
    Sums(Vec<Cells<Sum>>),
    Extremes(Vec<Cells<Extremes>>),
    Log2(Vec<Cells<Log2>>),
    Sketches(Vec<Cells<Sketch>>),
}

/// What a measurement has added up so far.
#[derive(Debug)]
pub(crate) struct Accumulator {
    buckets: usize,
    groups: HashMap<Vec<Key>, u32, foldhash::fast::RandomState>,
    /// Values of the `by` attributes, by series.
    pub(crate) keys: Vec<Vec<Key>>,
    pub(crate) states: States,
    pub(crate) picker: Picker,
    /// Series of the codes of the dictionary used last.
    known: Option<(Texts, Vec<u32>)>,
}

/// A grid that remembers the bucket asked for last: the spans of a trace are close in time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Buckets {
    grid: Grid,
    /// Times after the first, up to the second, are in bucket `last`.
    from: u64,
    to: u64,
    last: u32,
}

impl Buckets {
    pub(crate) fn new(grid: Grid) -> Self {
        Self { grid, from: 0, to: 0, last: 0 }
    }

    #[inline]
    pub(crate) fn of(&mut self, start: u64) -> Option<u32> {
        if start > self.from && start <= self.to {
            return Some(self.last);
        }
        if start <= self.grid.start || start > self.grid.end {
            return None;
        }
        let bucket = (start - self.grid.start - 1) / self.grid.step;
        self.last = bucket as u32;
        self.from = self.grid.start + bucket * self.grid.step;
        self.to = self.from.saturating_add(self.grid.step).min(self.grid.end);
        Some(self.last)
    }

    pub(crate) fn count(grid: Grid) -> usize {
        ((grid.end - grid.start).div_ceil(grid.step)) as usize
    }
}

/// Selected spans of a slice: their slots in a frame, series and bucket.
struct Placed {
    slots: Vec<u32>,
    buckets: Vec<u32>,
    series: Vec<u32>,
}

impl Accumulator {
    pub(crate) fn new(measurement: &Measurement, grid: Grid, exemplars: usize) -> Self {
        let states = match &measurement.function {
            Function::Rate | Function::Count | Function::Compare(_) => States::Counts(Vec::new()),
            Function::Min | Function::Max => States::Extremes(Vec::new()),
            Function::Sum | Function::Avg => States::Sums(Vec::new()),
            Function::Histogram => States::Log2(Vec::new()),
            Function::Quantile(_) => States::Sketches(Vec::new()),
        };
        Self {
            buckets: Buckets::count(grid),
            groups: HashMap::default(),
            keys: Vec::new(),
            states,
            picker: Picker::new(grid, exemplars),
            known: None,
        }
    }

    /// The series of a group.
    pub(crate) fn series(&mut self, mut key: Vec<Key>) -> u32 {
        // Where all is missing, the first label says so.
        let is_spread = matches!(self.states, States::Log2(_) | States::Sketches(_));
        if !is_spread && key.iter().all(|key| *key == Key::Nil) {
            key.iter_mut().take(1).for_each(|first| *first = Key::Str(Arc::from("nil")));
        }
        if let Some(series) = self.groups.get(&key) {
            return *series;
        }
        let series = self.keys.len() as u32;
        self.keys.push(key.clone());
        self.groups.insert(key, series);
        match &mut self.states {
            States::Counts(all) => all.push(Cells::default()),
            States::Sums(all) => all.push(Cells::default()),
            States::Extremes(all) => all.push(Cells::default()),
            States::Log2(all) => all.push(Cells::default()),
            States::Sketches(all) => all.push(Cells::default()),
        }
        series
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        let states: usize = match &self.states {
            States::Counts(all) => all.iter().map(Cells::heap_bytes).sum(),
            States::Sums(all) => all.iter().map(Cells::heap_bytes).sum(),
            States::Extremes(all) => all.iter().map(Cells::heap_bytes).sum(),
            States::Log2(all) => all.iter().map(Cells::heap_bytes).sum(),
            States::Sketches(all) => all.iter().map(Cells::heap_bytes).sum(),
        };
        states + self.keys.len() * 160
    }

    /// Adds the spans at `rows` (numbered from `from`) of a part.
    pub(crate) fn add(
        &mut self,
        measurement: &Measurement,
        view: &PartView<'_>,
        part: &Arc<dyn Part>,
        rows: &Bits,
        from: u32,
        grid: Grid,
    ) -> Result<(), EngineError> {
        let count = rows.count();
        if count == 0 {
            return Ok(());
        }
        let at: Vec<u32>;
        let (wanted, dense) = if count * 4 >= rows.len() {
            (Rows::Range(from, from + rows.len() as u32), true)
        } else {
            at = rows.ones().map(|row| from + row as u32).collect();
            (Rows::At(&at), false)
        };
        let frame = view.frame(wanted);
        let starts = view.part.column(Fixed::Start, wanted)?;
        let Values::Ints(starts) = &starts.values else { return Ok(()) };
        let mut buckets = Buckets::new(grid);
        let mut placed = Placed { slots: Vec::with_capacity(count), buckets: Vec::with_capacity(count), series: Vec::new() };
        let mut place = |slot: usize| {
            if let Some(bucket) = buckets.of(starts[slot] as u64) {
                placed.slots.push(slot as u32);
                placed.buckets.push(bucket);
            }
        };
        if dense && count == rows.len() {
            (0..count).for_each(&mut place);
        } else if dense {
            rows.ones().for_each(&mut place);
        } else {
            (0..count).for_each(&mut place);
        }
        self.place_series(measurement, view, &frame, &mut placed)?;
        self.measure(measurement, &frame, &placed)?;
        if self.picker.wants() {
            self.pick(measurement, &frame, part, wanted, starts, &placed)?;
        }
        view.budget.charge(self.heap_bytes_if_large())
    }

    /// Counting costs: few series are never much.
    fn heap_bytes_if_large(&self) -> usize {
        if self.keys.len() * self.buckets < 100_000 && !matches!(self.states, States::Sketches(_)) {
            0
        } else {
            self.heap_bytes()
        }
    }

    fn place_series(
        &mut self,
        measurement: &Measurement,
        view: &PartView<'_>,
        frame: &Frame<'_>,
        placed: &mut Placed,
    ) -> Result<(), EngineError> {
        match measurement.by.as_slice() {
            [] => {
                let series = self.series(Vec::new());
                placed.series = vec![series; placed.slots.len()];
            }
            [only] => {
                let field = frame.field(*only)?;
                let missing = missing_label(view.attributes.get(*only));
                match field.text_codes() {
                    Some((codes, texts)) => self.by_dictionary(codes, texts, placed),
                    None => self.by_value(&field, &missing, placed),
                }
            }
            several => self.by_values(several, view, frame, placed)?,
        }
        Ok(())
    }

    /// By one attribute that every slot has a code for.
    fn by_dictionary(&mut self, codes: &[u32], texts: &Texts, placed: &mut Placed) {
        let mut known = match self.known.take() {
            Some((last, known)) if last.is_same(texts) => known,
            _ => vec![u32::MAX; texts.len()],
        };
        placed.series.reserve(placed.slots.len());
        for slot in &placed.slots {
            let code = codes[*slot as usize] as usize;
            if known[code] == u32::MAX {
                known[code] = self.series(vec![label(Value::Str(texts.get(code as u32).unwrap_or_default()))]);
            }
            placed.series.push(known[code]);
        }
        self.known = Some((texts.clone(), known));
    }

    fn by_value(&mut self, field: &Field, missing: &Key, placed: &mut Placed) {
        let encoded = field.encode();
        let mut known = vec![u32::MAX; encoded.table.len()];
        for slot in &placed.slots {
            let code = encoded.codes[*slot as usize] as usize;
            if known[code] == u32::MAX {
                known[code] = self.series(vec![or_missing(label(encoded.table[code].value()), missing)]);
            }
            placed.series.push(known[code]);
        }
    }

    fn by_values(
        &mut self,
        by: &[AttrId],
        view: &PartView<'_>,
        frame: &Frame<'_>,
        placed: &mut Placed,
    ) -> Result<(), EngineError> {
        let mut columns = Vec::with_capacity(by.len());
        for id in by {
            columns.push((frame.field(*id)?.encode(), missing_label(view.attributes.get(*id))));
        }
        // Codes are joined pair by pair.
        let mut joined: Vec<u32> = vec![0; placed.slots.len()];
        let mut tuples: Vec<Vec<u32>> = vec![Vec::new()];
        for (encoded, _) in &columns {
            let mut known: HashMap<(u32, u32), u32, foldhash::fast::RandomState> = HashMap::default();
            let mut next: Vec<Vec<u32>> = Vec::new();
            let mut last = ((u32::MAX, u32::MAX), 0);
            for (joined, slot) in joined.iter_mut().zip(&placed.slots) {
                let pair = (*joined, encoded.codes[*slot as usize]);
                if pair != last.0 {
                    let code = *known.entry(pair).or_insert_with(|| {
                        let mut tuple = tuples[pair.0 as usize].clone();
                        tuple.push(pair.1);
                        next.push(tuple);
                        next.len() as u32 - 1
                    });
                    last = (pair, code);
                }
                *joined = last.1;
            }
            tuples = next;
        }
        let series: Vec<u32> = tuples
            .iter()
            .map(|tuple| {
                let keys = tuple
                    .iter()
                    .zip(&columns)
                    .map(|(code, (encoded, missing))| or_missing(label(encoded.table[*code as usize].value()), missing));
                self.series(keys.collect())
            })
            .collect();
        placed.series = joined.into_iter().map(|code| series[code as usize]).collect();
        Ok(())
    }

    fn measure(&mut self, measurement: &Measurement, frame: &Frame<'_>, placed: &Placed) -> Result<(), EngineError> {
        let buckets = self.buckets;
        let spots = || placed.series.iter().zip(&placed.buckets);
        let Some(operand) = measurement.operand else {
            if let States::Counts(all) = &mut self.states {
                let cells = all.len() * buckets;
                if cells <= placed.slots.len() * 2 {
                    // Counted in one small array first.
                    let mut counts = vec![0u32; cells];
                    for (series, bucket) in spots() {
                        counts[*series as usize * buckets + *bucket as usize] += 1;
                    }
                    for (series, counts) in all.iter_mut().zip(counts.chunks(buckets)) {
                        for (bucket, count) in (0..).zip(counts).filter(|(_, count)| **count > 0) {
                            *series.at(bucket, buckets) += u64::from(*count);
                        }
                    }
                    return Ok(());
                }
                for (series, bucket) in spots() {
                    *all[*series as usize].at(*bucket, buckets) += 1;
                }
            }
            return Ok(());
        };
        let field = frame.field(operand)?;
        let dense = field.dense_ints();
        let number = |slot: u32| match dense {
            Some(all) => Some(Number::Whole(all[slot as usize])),
            None => Number::of(field.value(slot as usize)),
        };
        let whole = |slot: u32| match number(slot) {
            Some(Number::Whole(value)) => u64::try_from(value).ok().filter(|value| *value > 0),
            _ => None,
        };
        let numbers = spots().zip(&placed.slots);
        match &mut self.states {
            States::Sums(all) => numbers.for_each(|((series, bucket), slot)| {
                if let Some(number) = number(*slot) {
                    all[*series as usize].at(*bucket, buckets).add(number);
                }
            }),
            States::Extremes(all) => numbers.for_each(|((series, bucket), slot)| {
                if let Some(number) = number(*slot) {
                    all[*series as usize].at(*bucket, buckets).add(number.float());
                }
            }),
            States::Log2(all) => numbers.for_each(|((series, bucket), slot)| {
                if let Some(value) = whole(*slot).filter(|value| *value >= 2) {
                    all[*series as usize].at(*bucket, buckets).add(power_above(value), 1);
                }
            }),
            States::Sketches(all) => numbers.for_each(|((series, bucket), slot)| {
                if let Some(value) = whole(*slot) {
                    all[*series as usize].at(*bucket, buckets).add(value);
                }
            }),
            States::Counts(_) => {}
        }
        Ok(())
    }

    /// Offers one span of each trace as an exemplar.
    fn pick(
        &mut self,
        measurement: &Measurement,
        frame: &Frame<'_>,
        part: &Arc<dyn Part>,
        wanted: Rows<'_>,
        starts: &[i64],
        placed: &Placed,
    ) -> Result<(), EngineError> {
        let table = part.traces()?;
        let field = match measurement.operand {
            Some(operand) => Some(frame.field(operand)?),
            None => None,
        };
        let mut at = 0;
        let mut trace = placed.slots.first().map_or(0, |slot| table.trace_of(wanted.row(*slot as usize)));
        while at < placed.slots.len() {
            let row = wanted.row(placed.slots[at] as usize);
            while table.starts[trace + 1] <= row {
                trace += 1;
            }
            let end = table.starts[trace + 1];
            let mut next = at + 1;
            while next < placed.slots.len() && wanted.row(placed.slots[next] as usize) < end {
                next += 1;
            }
            // The same one every time, whichever parts the trace lies in.
            let id = table.ids[trace];
            let low = id.0.last_chunk::<8>().map_or(0, |bytes| u64::from_be_bytes(*bytes));
            let chosen = at + (low % (next - at) as u64) as usize;
            let slot = placed.slots[chosen] as usize;
            let value = field.as_ref().and_then(|field| Number::of(field.value(slot))).map_or(f64::NAN, Number::float);
            self.picker.offer(
                id,
                Picked {
                    part: Arc::clone(part),
                    row: wanted.row(slot),
                    start: starts[slot] as u64,
                    bucket: placed.buckets[chosen],
                    series: placed.series[chosen],
                    value,
                },
            );
            at = next;
        }
        Ok(())
    }

    /// Adds what another one has.
    pub(crate) fn merge(&mut self, other: Self, budget: &Budget) -> Result<(), EngineError> {
        let buckets = self.buckets;
        let series: Vec<u32> = other.keys.into_iter().map(|key| self.series(key)).collect();
        fn merge<T: Merge>(own: &mut [Cells<T>], other: &[Cells<T>], series: &[u32], buckets: usize) {
            for (cells, series) in other.iter().zip(series) {
                own[*series as usize].merge(cells, buckets);
            }
        }
        match (&mut self.states, &other.states) {
            (States::Counts(own), States::Counts(other)) => merge(own, other, &series, buckets),
            (States::Sums(own), States::Sums(other)) => merge(own, other, &series, buckets),
            (States::Extremes(own), States::Extremes(other)) => merge(own, other, &series, buckets),
            (States::Log2(own), States::Log2(other)) => merge(own, other, &series, buckets),
            (States::Sketches(own), States::Sketches(other)) => merge(own, other, &series, buckets),
            _ => {}
        }
        self.picker.merge(other.picker, |of| series[of as usize]);
        budget.charge(self.heap_bytes())
    }
}

/// The exponent of the smallest power of two that is not below `value`.
fn power_above(value: u64) -> u8 {
    (64 - (value - 1).leading_zeros()) as u8
}

/// A value as a label. Arrays have no form there: all are one.
pub(crate) fn label(value: Value<'_>) -> Key {
    match Key::of(value) {
        Key::Array(_) => Key::Str(Arc::from("nil")),
        key => key,
    }
}

/// What stands for a missing value of an attribute in labels.
pub(crate) fn missing_label(attribute: &Attribute) -> Key {
    match attribute {
        Attribute::Intrinsic(_) if list_of(attribute).is_some() => Key::Str(Arc::from("")),
        _ => Key::Nil,
    }
}

fn or_missing(key: Key, missing: &Key) -> Key {
    if key == Key::Nil { missing.clone() } else { key }
}
