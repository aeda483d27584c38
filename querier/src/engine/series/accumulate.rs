//! Accumulators: what the spans of some slices add up to, by group and time.
//!
//! A few accumulators serve all jobs of a measurement, one job at a time each, and are merged at the end. Adding and merging
//! commute, so answers do not depend on which job ran where.

use std::collections::HashMap;
use std::sync::Arc;

use spanhouse_common::columns::{Fixed, Part, Present, Rows, Texts, Values};

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
    /// Of their texts.
    key_bytes: usize,
    /// Counted against the query's memory so far.
    kept: usize,
    pub(crate) states: States,
    /// Quantiles count what took no time too. Queries in the language leave it out, as Tempo does.
    pub(crate) counts_zero: bool,
    pub(crate) picker: Picker,
    /// Series of the codes of dictionaries used last.
    known: Vec<(Texts, Vec<u32>)>,
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
        if self.holds(start) {
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

    /// Whether a time is in the bucket that was asked for last.
    #[inline]
    fn holds(&self, start: u64) -> bool {
        start.wrapping_sub(self.from).wrapping_sub(1) < self.to - self.from
    }

    pub(crate) fn count(grid: Grid) -> usize {
        ((grid.end - grid.start).div_ceil(grid.step)) as usize
    }
}

/// Selected spans of a slice within the grid: their slots in a frame, buckets and series.
#[derive(Default)]
struct Placed {
    count: usize,
    /// `None` if every slot of the frame is one.
    slots: Option<Vec<u32>>,
    /// Stretches of spans of one bucket: where each ends, and the bucket. The spans of a trace are close in time.
    runs: Vec<(u32, u32)>,
    series: Vec<u32>,
}

impl Placed {
    /// Every slot, if all are within the grid.
    fn all(starts: &[i64], grid: Grid) -> Option<Self> {
        let (mut runs, mut buckets) = (Vec::new(), Buckets::new(grid));
        let mut at = 0;
        while at < starts.len() {
            let bucket = buckets.of(starts[at] as u64)?;
            at += starts[at..].iter().take_while(|start| buckets.holds(**start as u64)).count();
            runs.push((at as u32, bucket));
        }
        Some(Self { count: starts.len(), slots: None, runs, series: Vec::new() })
    }

    /// Those of some slots that are within the grid.
    fn some(slots: impl Iterator<Item = usize>, starts: &[i64], grid: Grid) -> Self {
        let mut buckets = Buckets::new(grid);
        let (mut kept, mut runs): (Vec<u32>, Vec<(u32, u32)>) = (Vec::with_capacity(slots.size_hint().0), Vec::new());
        for slot in slots {
            let Some(bucket) = buckets.of(starts[slot] as u64) else { continue };
            kept.push(slot as u32);
            match runs.last_mut() {
                Some((end, last)) if *last == bucket => *end += 1,
                _ => runs.push((kept.len() as u32, bucket)),
            }
        }
        Self { count: kept.len(), slots: Some(kept), runs, series: Vec::new() }
    }

    fn slot(&self, at: usize) -> u32 {
        self.slots.as_ref().map_or(at as u32, |slots| slots[at])
    }

    fn slots(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.count).map(|at| self.slot(at))
    }

    /// Stretches of spans with their bucket.
    fn stretches(&self) -> impl Iterator<Item = (std::ops::Range<usize>, u32)> + '_ {
        let starts = std::iter::once(0).chain(self.runs.iter().map(|(end, _)| *end as usize));
        starts.zip(&self.runs).map(|(start, (end, bucket))| (start..*end as usize, *bucket))
    }

    /// Adds every span to the cell of its series and bucket.
    fn add_to<T: Merge>(&self, all: &mut [Cells<T>], buckets: usize, mut add: impl FnMut(&mut T, u32)) {
        // Few buckets come in a slice. Where these times the series are not many more than spans, each cell is looked up once.
        let mut known = vec![u32::MAX; buckets];
        let mut met = 0u32;
        for (_, bucket) in &self.runs {
            let known = &mut known[*bucket as usize];
            if *known == u32::MAX {
                *known = met;
                met += 1;
            }
        }
        let cells = (met as usize).saturating_mul(all.len());
        if cells > self.count * 2 {
            for (stretch, bucket) in self.stretches() {
                for (at, series) in stretch.clone().zip(&self.series[stretch]) {
                    add(all[*series as usize].at(bucket, buckets), self.slot(at));
                }
            }
            return;
        }
        let mut place = vec![u32::MAX; cells];
        let (mut taken, mut from): (Vec<T>, Vec<(u32, u32)>) = (Vec::new(), Vec::new());
        for (stretch, bucket) in self.stretches() {
            let base = known[bucket as usize] as usize * all.len();
            let place = &mut place[base..base + all.len()];
            for (at, series) in stretch.clone().zip(&self.series[stretch]) {
                let place = &mut place[*series as usize];
                if *place == u32::MAX {
                    *place = taken.len() as u32;
                    taken.push(std::mem::take(all[*series as usize].at(bucket, buckets)));
                    from.push((*series, bucket));
                }
                add(&mut taken[*place as usize], self.slot(at));
            }
        }
        for (value, (series, bucket)) in taken.into_iter().zip(from) {
            *all[series as usize].at(bucket, buckets) = value;
        }
    }
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
            key_bytes: 0,
            kept: 0,
            states,
            counts_zero: false,
            picker: Picker::new(grid, exemplars),
            known: Vec::new(),
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
        self.key_bytes += key.iter().map(Key::text_bytes).sum::<usize>();
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
        states + self.keys.len() * 160 + self.key_bytes
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
        let everywhere = if count == rows.len() { Placed::all(starts, grid) } else { None };
        let mut placed = everywhere.unwrap_or_else(|| {
            if dense { Placed::some(rows.ones(), starts, grid) } else { Placed::some(0..count, starts, grid) }
        });
        self.place_series(measurement, view, &frame, &mut placed)?;
        self.measure(measurement, &frame, &placed)?;
        if self.picker.wants() {
            self.pick(measurement, &frame, part, wanted, starts, &placed)?;
        }
        self.keep(view.budget)
    }

    /// Counts what it grew by.
    fn keep(&mut self, budget: &Budget) -> Result<(), EngineError> {
        let now = self.heap_bytes_if_large();
        let more = now.saturating_sub(self.kept);
        self.kept = self.kept.max(now);
        budget.keep(more)?;
        budget.check()
    }

    /// Counting costs: few series are never much.
    fn heap_bytes_if_large(&self) -> usize {
        let is_small = self.keys.len() * self.buckets < 100_000 && self.key_bytes < 1 << 20;
        if is_small && !matches!(self.states, States::Sketches(_)) { 0 } else { self.heap_bytes() }
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
                placed.series = vec![series; placed.count];
            }
            [only] => {
                let field = frame.field(*only)?;
                let missing = missing_label(view.attributes.get(*only));
                match field.text_codes() {
                    Some((present, codes, texts)) => self.by_dictionary(present, codes, texts, &missing, placed),
                    None => self.by_value(&field, &missing, placed),
                }
            }
            several => self.by_values(several, view, frame, placed)?,
        }
        Ok(())
    }

    /// By one attribute whose values are all codes of one dictionary. Of a dictionary that is used again and again each code is
    /// looked up once.
    fn by_dictionary(&mut self, present: &Present, codes: &[u32], texts: &Texts, missing: &Key, placed: &mut Placed) {
        let known = self.known.iter().position(|(last, _)| last.is_same(texts));
        let mut known = match known {
            Some(at) => self.known.swap_remove(at).1,
            None => vec![u32::MAX; texts.len()],
        };
        let mut of = |accumulator: &mut Self, code: u32| {
            let series = &mut known[code as usize];
            if *series == u32::MAX {
                *series = accumulator.series(vec![label(Value::Str(texts.get(code).unwrap_or_default()))]);
            }
            *series
        };
        let mut out = Vec::with_capacity(placed.count);
        match present {
            Present::All => match &placed.slots {
                None => out.extend(codes.iter().map(|code| of(self, *code))),
                Some(slots) => out.extend(slots.iter().map(|slot| of(self, codes[*slot as usize]))),
            },
            Present::At(slots) => {
                let mut none = u32::MAX;
                let mut values = slots.iter().zip(codes).peekable();
                for slot in placed.slots() {
                    while values.next_if(|(at, _)| **at < slot).is_some() {}
                    out.push(match values.next_if(|(at, _)| **at == slot) {
                        Some((_, code)) => of(self, *code),
                        None => {
                            if none == u32::MAX {
                                none = self.series(vec![missing.clone()]);
                            }
                            none
                        }
                    });
                }
            }
        }
        placed.series = out;
        // As many as jobs read at once, and some that come again.
        if self.known.len() >= 8 {
            self.known.remove(0);
        }
        self.known.push((texts.clone(), known));
    }

    fn by_value(&mut self, field: &Field, missing: &Key, placed: &mut Placed) {
        let encoded = field.encode();
        let mut known = vec![u32::MAX; encoded.table.len()];
        let of = |slot: u32| {
            let code = encoded.codes[slot as usize] as usize;
            if known[code] == u32::MAX {
                known[code] = self.series(vec![or_missing(label(encoded.table[code].value()), missing)]);
            }
            known[code]
        };
        placed.series = placed.slots().map(of).collect();
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
        let mut joined: Vec<u32> = vec![0; placed.count];
        let mut tuples: Vec<Vec<u32>> = vec![Vec::new()];
        for (encoded, _) in &columns {
            let mut known: HashMap<(u32, u32), u32, foldhash::fast::RandomState> = HashMap::default();
            let mut next: Vec<Vec<u32>> = Vec::new();
            let mut last = ((u32::MAX, u32::MAX), 0);
            for (joined, slot) in joined.iter_mut().zip(placed.slots()) {
                let pair = (*joined, encoded.codes[slot as usize]);
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
        let Some(operand) = measurement.operand else {
            if let States::Counts(all) = &mut self.states {
                placed.add_to(all, buckets, |count, _| *count += 1);
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
        let least = i64::from(!self.counts_zero);
        match &mut self.states {
            States::Sums(all) => placed.add_to(all, buckets, |sum, slot| {
                if let Some(number) = number(slot) {
                    sum.add(number);
                }
            }),
            States::Extremes(all) => placed.add_to(all, buckets, |extremes, slot| {
                if let Some(number) = number(slot) {
                    extremes.add(number.float());
                }
            }),
            States::Log2(all) => placed.add_to(all, buckets, |counts, slot| {
                if let Some(value) = whole(slot).filter(|value| *value >= 2) {
                    counts.add(power_above(value), 1);
                }
            }),
            States::Sketches(all) => match dense {
                Some(numbers) => placed.add_to(all, buckets, |sketch, slot| {
                    let value = numbers[slot as usize];
                    if value >= least {
                        sketch.add(value as u64);
                    }
                }),
                None => placed.add_to(all, buckets, |sketch, slot| {
                    if let Some(value) = whole(slot) {
                        sketch.add(value);
                    }
                }),
            },
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
        let row_of = |at: usize| wanted.row(placed.slot(at) as usize);
        let mut at = 0;
        let mut trace = if placed.count > 0 { table.trace_of(row_of(0)) } else { 0 };
        let mut stretches = placed.stretches().peekable();
        while at < placed.count {
            let row = row_of(at);
            while table.starts[trace + 1] <= row {
                trace += 1;
            }
            let end = table.starts[trace + 1];
            let mut next = at + 1;
            while next < placed.count && row_of(next) < end {
                next += 1;
            }
            // The same one every time, whichever parts the trace lies in.
            let id = table.ids[trace];
            let low = id.0.last_chunk::<8>().map_or(0, |bytes| u64::from_be_bytes(*bytes));
            let chosen = at + (low % (next - at) as u64) as usize;
            let slot = placed.slot(chosen) as usize;
            while stretches.next_if(|(stretch, _)| stretch.end <= chosen).is_some() {}
            let start = starts[slot] as u64;
            self.picker.offer(id, start, || Picked {
                part: Arc::clone(part),
                row: wanted.row(slot),
                start,
                bucket: stretches.peek().map_or(0, |(_, bucket)| *bucket),
                series: placed.series[chosen],
                value: field.as_ref().and_then(|field| Number::of(field.value(slot))).map_or(f64::NAN, Number::float),
            });
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
        budget.release(other.kept);
        self.keep(budget)
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
