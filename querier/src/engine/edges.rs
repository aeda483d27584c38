//! Edges: calls between services, told by spans and their parents in the same trace.
//!
//! One pass over the columns; a span's parent is some rows before it. Traces that lie in several parts are joined first. What a
//! stretch of a block adds up to, where all of its spans are asked about, is the same for ever and kept. Owns what is counted and
//! what is kept; does not own how parts are opened.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::hash::BuildHasher as _;
use std::sync::Arc;

use parking_lot::Mutex;
use spanhouse_common::budget::{Lease, Share};
use spanhouse_common::columns::{Fixed, Part, Rows, Values};
use spanhouse_common::source::SourceError;
use spanhouse_common::time::TimeRange;

use super::answer::{EdgeStats, EdgesAnswer};
use super::budget::Budget;
use super::run::{Running, Slice};
use super::series::cells::Merge as _;
use super::series::sketch::Sketch;
use super::shared::Shared;
use super::texts::Texts;
use super::{EdgesRequest, EngineError};

const STATUS_ERROR: i32 = 2;

/// Bytes that are kept of what slices added up to, about: of those asked for last.
const KEPT_BYTES: usize = 16 << 20;

/// With more services than this, pairs of them are looked up by hash.
const FEW_SERVICES: usize = 256;

/// What the calls of one service by another add up to.
#[derive(Debug, Clone, Default)]
struct Calls {
    count: u64,
    errors: u64,
    total: u128,
    durations: Sketch,
}

impl Calls {
    fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.errors += other.errors;
        self.total += other.total;
        self.durations.merge(&other.durations);
    }
}

/// Calls by parent and child.
type Sums = BTreeMap<(Arc<str>, Arc<str>), Calls>;

fn merge(sums: &mut Sums, other: &Sums) {
    for (pair, calls) in other {
        match sums.get_mut(pair) {
            Some(known) => known.merge(calls),
            None => {
                sums.insert(pair.clone(), calls.clone());
            }
        }
    }
}

fn heap_bytes(sums: &Sums) -> usize {
    let of = |((parent, child), calls): (&(Arc<str>, Arc<str>), &Calls)| {
        parent.len() + child.len() + size_of::<Calls>() + 64 + calls.durations.heap_bytes()
    };
    sums.iter().map(of).sum()
}

/// What stretches of blocks added up to, by those asked for last.
#[derive(Debug)]
pub(crate) struct KeptEdges {
    memory: Share,
    kept: Mutex<Vec<Kept>>,
}

#[derive(Debug)]
struct Kept {
    /// Of the part, the first trace and the traces left out.
    key: (u64, usize, u64),
    sums: Arc<Sums>,
    lease: Lease,
}

impl KeptEdges {
    pub(crate) fn new(memory: Share) -> Self {
        Self { memory, kept: Mutex::default() }
    }

    /// Gives back what is kept.
    pub(crate) fn forget(&self) {
        self.kept.lock().clear();
    }

    fn get(&self, key: (u64, usize, u64)) -> Option<Arc<Sums>> {
        let mut kept = self.kept.lock();
        let at = kept.iter().position(|kept| kept.key == key)?;
        let found = kept.remove(at);
        let sums = Arc::clone(&found.sums);
        kept.push(found);
        Some(sums)
    }

    fn keep(&self, key: (u64, usize, u64), sums: &Arc<Sums>) {
        let bytes = heap_bytes(sums) + 128;
        // Half of the memory is for running queries.
        if bytes > KEPT_BYTES || self.memory.used() >= self.memory.limit() / 2 {
            return;
        }
        let Ok(lease) = self.memory.try_take(bytes) else { return };
        let mut kept = self.kept.lock();
        kept.retain(|kept| kept.key != key);
        let mut sum = bytes + kept.iter().map(|kept| kept.lease.bytes()).sum::<usize>();
        while sum > KEPT_BYTES && !kept.is_empty() {
            sum -= kept.remove(0).lease.bytes();
        }
        kept.push(Kept { key, sums: Arc::clone(sums), lease });
    }
}

/// What every job knows.
struct Counting {
    range: TimeRange,
    shared: Arc<Shared>,
    budget: Budget,
    kept: Arc<KeptEdges>,
}

struct Counted {
    sums: Arc<Sums>,
    /// Shared traces, which are counted joined.
    joined: Vec<u32>,
    traces: u32,
    spans: u64,
    bytes: u64,
}

pub(crate) async fn edges(
    mut running: Running,
    request: &EdgesRequest,
    kept: &Arc<KeptEdges>,
) -> Result<EdgesAnswer, EngineError> {
    let counting = Arc::new(Counting {
        range: request.range,
        shared: Arc::clone(&running.shared),
        budget: running.budget.clone(),
        kept: Arc::clone(kept),
    });
    // Parts outside of the range have no span that counts.
    let slices = running.slices().into_iter().filter(|slice| slice.only.is_none());
    let jobs: Vec<_> = slices
        .map(|slice| {
            let counting = Arc::clone(&counting);
            move || counting.slice(&slice)
        })
        .collect();
    let (mut sums, mut joined, mut held) = (Sums::new(), Vec::new(), 0);
    let budget = running.budget.clone();
    let mut add = |counted: &Counted| {
        merge(&mut sums, &counted.sums);
        let bytes = heap_bytes(&sums);
        budget.keep(bytes.saturating_sub(held))?;
        held = held.max(bytes);
        Ok(())
    };
    running
        .jobs(jobs, |stats, counted| {
            stats.inspected_traces = stats.inspected_traces.saturating_add(counted.traces);
            stats.inspected_spans += counted.spans;
            stats.inspected_bytes += counted.bytes;
            add(&counted)?;
            joined.extend(counted.joined);
            Ok(())
        })
        .await?;
    let work = Arc::clone(&counting);
    let jobs = running.merged(joined, move |slice| work.slice(&slice));
    running.jobs(jobs, |_, counted| add(&counted)).await?;
    let edges = sums.into_iter().map(|((parent, child), calls)| EdgeStats {
        parent,
        child,
        calls: calls.count,
        errors: calls.errors,
        quantiles: request.quantiles.iter().map(|q| calls.durations.quantile(*q).unwrap_or(f64::NAN)).collect(),
        total: calls.total as f64,
    });
    Ok(EdgesAnswer { edges: edges.collect(), stats: running.stats.clone() })
}

impl Counting {
    fn slice(&self, slice: &Slice) -> Result<Counted, EngineError> {
        let (from, to) = slice.rows;
        let rows = u64::from(to - from);
        let here = slice.number.map_or(&[][..], |number| self.shared.between(number, slice.traces.0, slice.traces.1));
        let counted = |sums| Counted {
            sums,
            joined: here.iter().map(|(_, shared)| *shared).collect(),
            traces: (slice.traces.1 - slice.traces.0) as u32,
            spans: rows,
            bytes: slice.part.bytes() * rows / u64::from(slice.part.rows().max(1)),
        };
        let is_all = self.range.min <= slice.range.min && slice.range.max <= self.range.max;
        let left_out: Vec<u32> = here.iter().map(|(trace, _)| *trace).collect();
        let key = (
            slice.part.identity(),
            slice.traces.0,
            foldhash::fast::FixedState::default().hash_one((&left_out, slice.traces.1)),
        );
        let may_keep = is_all && slice.number.is_some();
        if may_keep && let Some(sums) = self.kept.get(key) {
            return Ok(Counted { spans: 0, bytes: 0, ..counted(sums) });
        }
        let sums = Arc::new(self.count(slice, &left_out, is_all)?);
        if may_keep {
            self.kept.keep(key, &sums);
        }
        Ok(counted(sums))
    }

    /// Adds up the spans of a slice that have a parent, without those of some traces.
    fn count(&self, slice: &Slice, left_out: &[u32], is_all: bool) -> Result<Sums, EngineError> {
        let part = &*slice.part;
        let (from, to) = slice.rows;
        let slots = (to - from) as usize;
        let mut deltas = self.small(part, Fixed::ParentDelta, slice)?;
        let table = part.traces()?;
        let clear = |trace: u32, deltas: &mut Vec<i32>| {
            let rows = table.rows(trace as usize);
            deltas[(rows.start - from) as usize..(rows.end - from) as usize].fill(0);
        };
        left_out.iter().for_each(|trace| clear(*trace, &mut deltas));
        if let Some(only) = &slice.only {
            let others = (slice.traces.0 as u32..slice.traces.1 as u32).filter(|trace| only.binary_search(trace).is_err());
            others.for_each(|trace| clear(trace, &mut deltas));
        }
        if !is_all {
            let starts = self.ints(part, Fixed::Start, slice)?;
            for (delta, start) in deltas.iter_mut().zip(starts) {
                if (start as u64) < self.range.min.0 || (start as u64) > self.range.max.0 {
                    *delta = 0;
                }
            }
        }
        if deltas.iter().all(|delta| *delta == 0) {
            return Ok(Sums::new());
        }
        let mut texts = Texts::default();
        let names = part.column(Fixed::ServiceName, Rows::Range(from, to))?;
        self.budget.charge(names.heap_bytes() + slots * 4)?;
        let services = texts.numbers(&names, slots);
        let statuses = self.small(part, Fixed::StatusCode, slice)?;
        let durations = self.ints(part, Fixed::Duration, slice)?;
        let mut pairs = Pairs::new(texts.len());
        let mut all: Vec<Calls> = Vec::new();
        for (slot, delta) in deltas.iter().enumerate().filter(|(_, delta)| **delta > 0) {
            let Some(parent) = slot.checked_sub(*delta as usize) else {
                let why = "a parent outside of its trace".into();
                return Err(SourceError::Damaged { what: part.name(), why }.into());
            };
            let (parent, child) = (services[parent], services[slot]);
            // Number 0 is no name.
            if parent == 0 || child == 0 {
                continue;
            }
            let place = pairs.of(parent, child);
            if place == all.len() {
                all.push(Calls::default());
            }
            let calls = &mut all[place];
            // A span that ends before it starts took no time.
            let duration = durations[slot].max(0) as u64;
            calls.count += 1;
            calls.errors += u64::from(statuses[slot] == STATUS_ERROR);
            calls.total += u128::from(duration);
            calls.durations.add(duration);
        }
        let name = |number: &u32| Arc::clone(texts.text(*number));
        Ok(pairs.in_order.iter().zip(all).map(|((parent, child), calls)| ((name(parent), name(child)), calls)).collect())
    }

    fn small(&self, part: &dyn Part, which: Fixed, slice: &Slice) -> Result<Vec<i32>, EngineError> {
        let column = part.column(which, Rows::Range(slice.rows.0, slice.rows.1))?;
        self.budget.charge(column.heap_bytes())?;
        match column.values {
            Values::Small(all) if all.len() == (slice.rows.1 - slice.rows.0) as usize => Ok(all),
            _ => Err(SourceError::Damaged { what: part.name(), why: format!("{which:?} of another type") }.into()),
        }
    }

    fn ints(&self, part: &dyn Part, which: Fixed, slice: &Slice) -> Result<Vec<i64>, EngineError> {
        let column = part.column(which, Rows::Range(slice.rows.0, slice.rows.1))?;
        self.budget.charge(column.heap_bytes())?;
        match column.values {
            Values::Ints(all) if all.len() == (slice.rows.1 - slice.rows.0) as usize => Ok(all),
            _ => Err(SourceError::Damaged { what: part.name(), why: format!("{which:?} of another type") }.into()),
        }
    }
}

/// Places for pairs of services, in the order they come.
struct Pairs {
    services: usize,
    table: Vec<u32>,
    hashed: HashMap<(u32, u32), u32, foldhash::fast::RandomState>,
    in_order: Vec<(u32, u32)>,
}

impl Pairs {
    fn new(services: usize) -> Self {
        let table = if services <= FEW_SERVICES { vec![u32::MAX; services * services] } else { Vec::new() };
        Self { services, table, hashed: HashMap::default(), in_order: Vec::new() }
    }

    #[inline]
    fn of(&mut self, parent: u32, child: u32) -> usize {
        let place = match self.table.get_mut(parent as usize * self.services + child as usize) {
            Some(place) if self.services <= FEW_SERVICES => place,
            _ => self.hashed.entry((parent, child)).or_insert(u32::MAX),
        };
        if *place == u32::MAX {
            *place = self.in_order.len() as u32;
            self.in_order.push((parent, child));
        }
        *place as usize
    }
}
