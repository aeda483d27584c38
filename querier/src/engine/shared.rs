//! The traces that lie in several of the parts of a query: which they are, and how they are put together.
//!
//! Blocks stay and live data grows, so the parts of a query mostly begin as those of the one before: what is known of the first
//! ones is kept, and only what the others add is looked for. Owns what is kept of this between queries, and its bound.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;
use spanhouse_common::block::flag;
use spanhouse_common::budget::{Lease, Share};
use spanhouse_common::columns::{Fixed, Joined, Part, Piece, Rows, TraceTable, Values};
use spanhouse_common::id::TraceId;
use spanhouse_common::source::SourceError;

use super::bits::Bits;

/// Bytes that are remembered of how parts share traces, about: those asked for last.
const REMEMBERED_BYTES: usize = 32 << 20;

/// The traces that lie in several of some parts, numbered.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// What the first of the parts share, whose numbers come first. Traces that later parts have pieces of as well have a new
    /// number, and nothing refers to their old one.
    base: Option<Arc<Shared>>,
    /// By id, with their pieces by part; numbered after those of the base.
    traces: Vec<(TraceId, Vec<Piece>)>,
    /// By part: number of the trace in the part, and of the shared trace, ascending.
    of_part: Vec<Vec<(u32, u32)>>,
    /// Those of `traces` with a span that some part marks as perhaps received before.
    marked: Bits,
    /// Neighbouring traces joined together, when somebody first needs them; those of the base first.
    lots: Vec<Arc<Lot>>,
    /// Of those that are not remembered: goes with the last query that has them.
    lease: Mutex<Option<Lease>>,
}

/// Some of the shared traces.
#[derive(Debug)]
struct Lot {
    /// Number of the first trace, and of the one after the last.
    traces: (u32, u32),
    joined: Mutex<Option<Arc<Joined>>>,
}

/// Rows of joined traces in one lot, about.
const LOT_ROWS: u32 = 48 * 1024;

/// Ids as numbers: comparing them is most of the work.
pub(super) fn number_of(id: TraceId) -> u128 {
    u128::from_be_bytes(id.0)
}

impl Shared {
    /// How many numbers there are.
    pub(crate) fn len(&self) -> usize {
        self.before() + self.traces.len()
    }

    /// Numbers of the base.
    fn before(&self) -> usize {
        self.base.as_ref().map_or(0, |base| base.len())
    }

    fn find(parts: &[Arc<dyn Part>]) -> Result<Self, SourceError> {
        let tables = tables(parts)?;
        let mut out = Self { of_part: vec![Vec::new(); parts.len()], ..Self::default() };
        if parts.len() < 2 {
            return Ok(out);
        }
        let id = |part: usize, at: usize| tables[part].ids.get(at).map(|id| number_of(*id));
        let mut heap: BinaryHeap<Reverse<(u128, usize, usize)>> =
            (0..parts.len()).filter_map(|part| Some(Reverse((id(part, 0)?, part, 0)))).collect();
        let mut last: Option<(u128, usize, usize)> = None;
        let mut is_open = false;
        while let Some(Reverse((this, part, at))) = heap.pop() {
            if let Some(next) = id(part, at + 1) {
                heap.push(Reverse((next, part, at + 1)));
            }
            let piece = |part: usize, at: usize| Piece { part: part as u32, rows: tables[part].rows(at) };
            match last {
                Some((id, first_part, first_at)) if id == this => {
                    if !is_open {
                        let number = out.traces.len() as u32;
                        out.traces.push((TraceId(this.to_be_bytes()), vec![piece(first_part, first_at)]));
                        out.of_part[first_part].push((first_at as u32, number));
                        is_open = true;
                    }
                    let number = out.traces.len() as u32 - 1;
                    if let Some((_, pieces)) = out.traces.last_mut() {
                        pieces.push(piece(part, at));
                    }
                    out.of_part[part].push((at as u32, number));
                }
                _ => is_open = false,
            }
            last = Some((this, part, at));
        }
        out.finish(parts, &tables)?;
        Ok(out)
    }

    /// What `base` knows of the first parts, and what the others add.
    fn extend(base: &Arc<Self>, parts: &[Arc<dyn Part>]) -> Result<Self, SourceError> {
        let tables = tables(parts)?;
        let known = base.of_part.len();
        // The traces of the later parts, by id.
        let mut later: Vec<(u128, u32, u32)> = Vec::new();
        for (part, table) in tables.iter().enumerate().skip(known) {
            later.extend(table.ids.iter().zip(0..).map(|(id, at)| (number_of(*id), part as u32, at)));
        }
        later.sort_unstable();
        let mut ids: Vec<u128> = later.iter().map(|(id, ..)| *id).collect();
        ids.dedup();
        // By id: where it is in all parts, in their order.
        let mut places: Vec<Vec<(u32, u32)>> = vec![Vec::new(); ids.len()];
        for (part, table) in tables[..known].iter().enumerate() {
            each_common(&table.ids, &ids, |at, id| places[id].push((part as u32, at as u32)));
        }
        let mut id = 0;
        for (this, part, at) in later {
            while ids[id] != this {
                id += 1;
            }
            places[id].push((part, at));
        }
        let mut out = Self {
            base: Some(Arc::clone(base)),
            of_part: vec![Vec::new(); parts.len()],
            lots: base.lots.clone(),
            ..Self::default()
        };
        let shared = ids.iter().zip(places).filter(|(_, places)| places.len() > 1);
        for (number, (id, places)) in (base.len() as u32..).zip(shared) {
            let piece = |(part, at): &(u32, u32)| Piece { part: *part, rows: tables[*part as usize].rows(*at as usize) };
            out.traces.push((TraceId(id.to_be_bytes()), places.iter().map(piece).collect()));
            places.iter().for_each(|(part, at)| out.of_part[*part as usize].push((*at, number)));
        }
        out.finish(parts, &tables)?;
        for (own, base) in out.of_part.iter_mut().zip(&base.of_part) {
            let new: HashSet<u32, foldhash::fast::RandomState> = own.iter().map(|(at, _)| *at).collect();
            own.extend(base.iter().filter(|(at, _)| !new.contains(at)));
            own.sort_unstable();
        }
        Ok(out)
    }

    /// Completes a list of traces that is complete, while `of_part` has these only.
    fn finish(&mut self, parts: &[Arc<dyn Part>], tables: &[Arc<TraceTable>]) -> Result<(), SourceError> {
        self.find_marked(parts, tables)?;
        let (mut rows, mut lots): (u32, Vec<(u32, u32)>) = (0, Vec::new());
        for (number, (_, pieces)) in (self.before() as u32..).zip(&self.traces) {
            let size: u32 = pieces.iter().map(|piece| piece.rows.len() as u32).sum();
            match lots.last_mut() {
                Some(lot) if rows + size <= LOT_ROWS => lot.1 = number + 1,
                _ => {
                    rows = 0;
                    lots.push((number, number + 1));
                }
            }
            rows += size;
        }
        self.lots.extend(lots.into_iter().map(|traces| Arc::new(Lot { traces, joined: Mutex::new(None) })));
        Ok(())
    }

    fn find_marked(&mut self, parts: &[Arc<dyn Part>], tables: &[Arc<TraceTable>]) -> Result<(), SourceError> {
        let before = self.before();
        self.marked = Bits::none(self.traces.len());
        for ((part, table), traces) in parts.iter().zip(tables).zip(&self.of_part) {
            if traces.is_empty() || !part.may_have_duplicates() {
                continue;
            }
            let rows: Vec<u32> = traces.iter().flat_map(|(trace, _)| table.rows(*trace as usize)).collect();
            let column = match part.column(Fixed::RowFlags, Rows::At(&rows)) {
                Ok(column) => column,
                // Joining them tells.
                Err(SourceError::Damaged { .. }) => {
                    traces.iter().for_each(|(_, shared)| self.marked.set(*shared as usize - before));
                    continue;
                }
                Err(error) => return Err(error),
            };
            let Values::Small(flags) = column.values else { continue };
            let mut at = 0;
            for (trace, shared) in traces {
                let count = table.rows(*trace as usize).len();
                if flags[at..at + count].iter().any(|flags| flags & flag::MAYBE_DUPLICATE != 0) {
                    self.marked.set(*shared as usize - before);
                }
                at += count;
            }
        }
        Ok(())
    }

    /// The lots that some traces (ascending) are in: number of the lot, and of the traces in it.
    pub(crate) fn lots_of(&self, traces: &[u32]) -> Vec<(usize, Vec<u32>)> {
        let mut out: Vec<(usize, Vec<u32>)> = Vec::new();
        for trace in traces {
            let lot = self.lots.partition_point(|lot| lot.traces.1 <= *trace);
            let number = trace - self.lots[lot].traces.0;
            match out.last_mut() {
                Some((last, numbers)) if *last == lot => numbers.push(number),
                _ => out.push((lot, vec![number])),
            }
        }
        out
    }

    /// The traces of a lot, joined.
    pub(crate) fn join(&self, lot: usize, parts: &[Arc<dyn Part>]) -> Result<Arc<Joined>, SourceError> {
        let lot = &self.lots[lot];
        let mut known = lot.joined.lock();
        if let Some(joined) = &*known {
            return Ok(Arc::clone(joined));
        }
        let traces = self.numbered(lot.traces);
        let joined = Arc::new(Joined::new(parts, traces)?);
        let keep = match &mut *self.lease.lock() {
            // Counted in full when it was remembered.
            None => true,
            // Made again by whoever needs it next, rather than that queries go without.
            Some(lease) if lease.share().used() >= lease.share().limit() / 2 => false,
            Some(lease) => {
                lease.resize(lease.bytes() + joined_bytes(traces));
                true
            }
        };
        if keep {
            *known = Some(Arc::clone(&joined));
        }
        Ok(joined)
    }

    /// The traces of a lot.
    fn numbered(&self, (from, to): (u32, u32)) -> &[(TraceId, Vec<Piece>)] {
        match (&self.base, (from as usize).checked_sub(self.before())) {
            (Some(base), None) => base.numbered((from, to)),
            (_, from) => &self.traces[from.unwrap_or(0)..to as usize - self.before()],
        }
    }

    /// Whether a shared trace may have a span twice: only joining it tells.
    pub(crate) fn may_be_twice(&self, trace: u32) -> bool {
        match (&self.base, (trace as usize).checked_sub(self.before())) {
            (Some(base), None) => base.may_be_twice(trace),
            (_, own) => own.is_some_and(|own| self.marked.get(own)),
        }
    }

    /// Those of a part's traces from `from` to before `to`: their numbers in the part and as shared ones.
    pub(crate) fn between(&self, part: usize, from: usize, to: usize) -> &[(u32, u32)] {
        let all = &self.of_part[part];
        let at = |trace: usize| all.partition_point(|(known, _)| (*known as usize) < trace);
        &all[at(from)..at(to)]
    }

    /// Clears the rows (numbered from `base`) of these traces.
    pub(crate) fn clear(traces: &[(u32, u32)], table: &TraceTable, base: u32, rows: &mut Bits) {
        for (trace, _) in traces {
            let range = table.rows(*trace as usize);
            rows.clear_range((range.start - base) as usize, (range.end - base) as usize);
        }
    }

    /// As much as it may come to, joined, with what it takes to remember it; without the base.
    fn heap_bytes(&self) -> usize {
        self.own_bytes() + joined_bytes(&self.traces)
    }

    /// As long as nothing is joined.
    fn own_bytes(&self) -> usize {
        let itself = 512 + self.of_part.len() * 40 + self.lots.len() * 16;
        itself + self.traces.len() * 140 + self.of_part.iter().map(|all| all.len() * 8).sum::<usize>()
    }
}

/// Of some traces when they are joined.
fn joined_bytes(traces: &[(TraceId, Vec<Piece>)]) -> usize {
    traces.iter().flat_map(|(_, pieces)| pieces).map(|piece| piece.rows.len()).sum::<usize>() * 28
}

fn tables(parts: &[Arc<dyn Part>]) -> Result<Vec<Arc<TraceTable>>, SourceError> {
    parts.iter().map(|part| part.traces()).collect()
}

/// Calls `each` with the places of ids that both lists have, which are ascending.
pub(super) fn each_common(all: &[TraceId], some: &[u128], mut each: impl FnMut(usize, usize)) {
    let mut from = 0;
    for (nth, id) in some.iter().enumerate() {
        // The next one is mostly near: a look at ever further ones before halving.
        let mut step = 1;
        while all.get(from + step).is_some_and(|other| number_of(*other) < *id) {
            from += step;
            step *= 2;
        }
        let end = (from + step + 1).min(all.len());
        from += all[from..end].partition_point(|other| number_of(*other) < *id);
        if all.get(from).is_some_and(|other| number_of(*other) == *id) {
            each(from, nth);
        }
        if from >= all.len() {
            return;
        }
    }
}

/// Which traces sets of parts share, remembered for the sets asked for last.
#[derive(Debug)]
pub(crate) struct SharedTraces {
    memory: Share,
    known: Mutex<Vec<Remembered>>,
}

#[derive(Debug)]
struct Remembered {
    parts: Vec<u64>,
    shared: Arc<Shared>,
    bytes: usize,
    _lease: Lease,
}

impl SharedTraces {
    pub(crate) fn new(memory: Share) -> Self {
        Self { memory, known: Mutex::default() }
    }

    /// Gives back what is remembered.
    pub(crate) fn forget(&self) {
        self.known.lock().clear();
    }

    /// What `parts` share. `stages` are how many of the first parts stay as they are the longest, and so on, ascending.
    pub(crate) fn of(&self, parts: &[Arc<dyn Part>], stages: &[usize]) -> Result<Arc<Shared>, SourceError> {
        let key: Vec<u64> = parts.iter().map(|part| part.identity()).collect();
        {
            let mut known = self.known.lock();
            if let Some(at) = known.iter().position(|known| known.parts == key) {
                let found = known.remove(at);
                let shared = Arc::clone(&found.shared);
                known.push(found);
                return Ok(shared);
            }
        }
        let found = match stages.split_last() {
            Some((first, earlier)) if (1..parts.len()).contains(first) => {
                Shared::extend(&self.of(&parts[..*first], earlier)?, parts)?
            }
            Some((_, earlier)) => return self.of(parts, earlier),
            None => Shared::find(parts)?,
        };
        let shared = Arc::new(found);
        let bytes = shared.heap_bytes();
        // Large ones are made again rather than kept; half of the memory is for running queries.
        if bytes <= REMEMBERED_BYTES && self.memory.used() < self.memory.limit() / 2 {
            let mut known = self.known.lock();
            let mut sum: usize = bytes + known.iter().map(|known| known.bytes).sum::<usize>();
            while sum > REMEMBERED_BYTES && !known.is_empty() {
                sum -= known.remove(0).bytes;
            }
            // What holds a base that is not remembered would keep it, uncounted.
            let mut bases: Vec<*const Shared> = known.iter().map(|known| Arc::as_ptr(&known.shared)).collect();
            let is_held = |shared: &Shared, bases: &[*const Shared]| {
                shared.base.as_ref().is_none_or(|base| bases.contains(&Arc::as_ptr(base)))
            };
            loop {
                let before = known.len();
                known.retain(|known| is_held(&known.shared, &bases));
                bases = known.iter().map(|known| Arc::as_ptr(&known.shared)).collect();
                if known.len() == before {
                    break;
                }
            }
            if is_held(&shared, &bases)
                && let Ok(lease) = self.memory.try_take(bytes)
            {
                known.push(Remembered { parts: key, shared: Arc::clone(&shared), bytes, _lease: lease });
                return Ok(shared);
            }
        }
        *shared.lease.lock() = Some(self.memory.count(shared.own_bytes()));
        Ok(shared)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use spanhouse_common::batch::SpanBatch;
    use spanhouse_common::columns::{MemoryPart, MergedPart};
    use spanhouse_common::model::StoredSpan;

    use super::*;
    use crate::test_util::{span, stored};

    /// A part with a span of each of some traces, by number.
    fn part(traces: &[u128], number: u64) -> Arc<dyn Part> {
        let spans: Vec<StoredSpan> = traces
            .iter()
            .map(|trace| {
                let mut span = span(number + 1, 0, 1);
                span.trace_id = TraceId(trace.to_be_bytes());
                stored(span)
            })
            .collect();
        Arc::new(MemoryPart::new(vec![Arc::new(SpanBatch::of_spans(&spans))]).unwrap())
    }

    /// All that is known: by part and trace in it, the trace with its pieces, as its lot has it.
    fn all(shared: &Shared, parts: &[Arc<dyn Part>]) -> Vec<(usize, u32, TraceId, Vec<Piece>, bool)> {
        let mut out = Vec::new();
        for (part, of) in parts.iter().enumerate() {
            for (at, number) in shared.between(part, 0, of.traces().unwrap().len()) {
                let lots = shared.lots_of(&[*number]);
                let [(lot, wanted)] = lots.as_slice() else { panic!("{lots:?}") };
                let (id, pieces) = &shared.numbered(shared.lots[*lot].traces)[wanted[0] as usize];
                let joined = shared.join(*lot, parts).unwrap();
                assert_eq!(ids_of(&joined, parts)[wanted[0] as usize], *id);
                out.push((part, *at, *id, pieces.clone(), shared.may_be_twice(*number)));
            }
        }
        out
    }

    fn ids_of(joined: &Arc<Joined>, parts: &[Arc<dyn Part>]) -> Vec<TraceId> {
        MergedPart::new(parts.to_vec(), Arc::clone(joined)).traces().unwrap().ids.clone()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever was known of the first parts, what is found is the same.
        #[test]
        fn extending_finds_what_looking_at_all_finds(
            traces in prop::collection::vec(prop::collection::btree_set(0u128..40, 1..30), 1..7),
            (first, second) in (0usize..8, 0usize..8),
        ) {
            let parts: Vec<Arc<dyn Part>> =
                traces.iter().zip(0..).map(|(of, number)| part(&of.iter().copied().collect::<Vec<_>>(), number)).collect();
            let plain = Shared::find(&parts).unwrap();
            let kept = SharedTraces::new(Share::new("queries", 64 << 20));
            let stages = [first.min(second).min(parts.len()), second.max(first).min(parts.len())];
            let staged = kept.of(&parts, &stages).unwrap();
            prop_assert_eq!(all(&staged, &parts), all(&plain, &parts));
            prop_assert!(Arc::ptr_eq(&kept.of(&parts, &stages).unwrap(), &staged));
            let held = kept.memory.used();
            prop_assert_eq!(held, kept.known.lock().iter().map(|known| known.bytes).sum::<usize>());
            kept.forget();
            prop_assert_eq!(kept.memory.used(), 0);
        }

        #[test]
        fn common_ids_are_found_by_leaps(
            all in prop::collection::btree_set(0u128..300, 0..200), some in prop::collection::btree_set(0u128..300, 0..60),
        ) {
            let ids: Vec<TraceId> = all.iter().map(|id| TraceId(id.to_be_bytes())).collect();
            let some: Vec<u128> = some.into_iter().collect();
            let mut found = Vec::new();
            each_common(&ids, &some, |at, nth| found.push((number_of(ids[at]), some[nth])));
            let expected: Vec<(u128, u128)> = some.iter().filter(|id| all.contains(id)).map(|id| (*id, *id)).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
