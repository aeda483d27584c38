//! Which deleted traces lie in which part, and what is kept of this between queries.
//!
//! A part has the same traces for ever and deletions are rare, so that a part is looked through once for each deletion. Where a
//! tenant has none, nothing of this runs. Owns what is kept and its bound; does not own how rows are left out
//! ([`spanhouse_common::columns::PartWithout`]).

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use spanhouse_common::budget::{Lease, Share};
use spanhouse_common::columns::{Hidden, Part, TraceTable};
use spanhouse_common::manifest::Tombstones;

use super::shared::{each_common, number_of};

/// Parts that are remembered, with and without deleted traces. Those of one query always are.
const MAX_KNOWN: usize = 16 * 1024;

/// Bytes that are kept of parts with deleted traces, about.
const KEPT_BYTES: usize = 32 << 20;

/// What was found of the parts asked for last.
#[derive(Debug)]
pub(crate) struct HiddenTraces {
    memory: Share,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// By identity of the part.
    parts: HashMap<u64, PartKnown, foldhash::fast::RandomState>,
    bytes: usize,
    /// Queries so far.
    queries: u64,
}

#[derive(Debug)]
struct PartKnown {
    /// The tombstones it was held against. Keeps their place, not their content, so that no others can be there.
    against: Weak<Tombstones>,
    hidden: Option<(Arc<Hidden>, Lease)>,
    /// By which query last.
    used: u64,
}

/// One query's look at its parts.
pub(crate) struct Look<'h> {
    all: &'h HiddenTraces,
    query: u64,
    /// The ids of the tombstones asked about last, as numbers.
    ids: Option<(Arc<Tombstones>, Vec<u128>)>,
}

impl HiddenTraces {
    pub(crate) fn new(memory: Share) -> Self {
        Self { memory, known: Mutex::default() }
    }

    /// Gives back what is remembered.
    pub(crate) fn forget(&self) {
        let mut known = self.known.lock();
        known.parts.clear();
        known.bytes = 0;
    }

    pub(crate) fn look(&self) -> Look<'_> {
        Look { all: self, query: 0, ids: None }
    }
}

impl Look<'_> {
    /// The traces of a part that are deleted; `None` if none is. `table` is the part's.
    pub(crate) fn hidden(
        &mut self,
        part: &dyn Part,
        table: &TraceTable,
        tombstones: &Arc<Tombstones>,
    ) -> Option<Arc<Hidden>> {
        let identity = part.identity();
        let mut before = None;
        {
            let mut known = self.all.known.lock();
            if self.query == 0 {
                known.queries += 1;
                self.query = known.queries;
            }
            if let Some(part) = known.parts.get_mut(&identity) {
                part.used = self.query;
                before = part.hidden.as_ref().map(|(hidden, _)| Arc::clone(hidden));
                if std::ptr::eq(part.against.as_ptr(), Arc::as_ptr(tombstones)) {
                    return before;
                }
            }
        }
        let found = self.find(table, tombstones);
        let hidden = (!found.is_empty()).then(|| {
            // Another deletion: mostly not of a trace in this part.
            let is_same = |before: &Arc<Hidden>| before.ids().iter().eq(found.iter().map(|trace| &table.ids[*trace]));
            before.filter(is_same).unwrap_or_else(|| Arc::new(Hidden::new(table, &found)))
        });
        self.keep(identity, tombstones, hidden.as_ref());
        hidden
    }

    /// The numbers of a part's traces that have a tombstone, ascending.
    fn find(&mut self, table: &TraceTable, tombstones: &Arc<Tombstones>) -> Vec<usize> {
        if self.ids.as_ref().is_none_or(|(of, _)| !Arc::ptr_eq(of, tombstones)) {
            self.ids = Some((Arc::clone(tombstones), tombstones.keys().map(|id| number_of(*id)).collect()));
        }
        let mut out = Vec::new();
        if let (Some((_, ids)), Some(first), Some(last)) = (&self.ids, table.ids.first(), table.ids.last()) {
            let from = ids.partition_point(|id| *id < number_of(*first));
            let to = ids.partition_point(|id| *id <= number_of(*last));
            each_common(&table.ids, &ids[from..to], |trace, _| out.push(trace));
        }
        out
    }

    fn keep(&self, identity: u64, tombstones: &Arc<Tombstones>, hidden: Option<&Arc<Hidden>>) {
        let known = &mut *self.all.known.lock();
        let bytes_of = |known: &PartKnown| known.hidden.as_ref().map_or(0, |(_, lease)| lease.bytes());
        if let Some(old) = known.parts.remove(&identity) {
            known.bytes -= bytes_of(&old);
        }
        let bytes = hidden.map_or(0, |hidden| hidden.heap_bytes());
        if known.parts.len() >= MAX_KNOWN || known.bytes + bytes > KEPT_BYTES {
            known.parts.retain(|_, part| part.used == self.query);
            known.bytes = known.parts.values().map(bytes_of).sum();
        }
        let lease = match hidden {
            None => None,
            // Half of the memory is for running queries.
            Some(_) if known.bytes + bytes > KEPT_BYTES || self.all.memory.used() >= self.all.memory.limit() / 2 => return,
            Some(hidden) => match self.all.memory.try_take(bytes) {
                Ok(lease) => Some((Arc::clone(hidden), lease)),
                Err(_) => return,
            },
        };
        known.bytes += bytes;
        let part = PartKnown { against: Arc::downgrade(tombstones), hidden: lease, used: self.query };
        known.parts.insert(identity, part);
    }
}

#[cfg(test)]
mod tests {
    use spanhouse_common::batch::SpanBatch;
    use spanhouse_common::columns::MemoryPart;
    use spanhouse_common::id::TraceId;
    use spanhouse_common::manifest::Tombstone;
    use spanhouse_common::model::StoredSpan;
    use spanhouse_common::time::UnixNanos;

    use super::*;
    use crate::test_util::{span, stored};

    fn id(n: u128) -> TraceId {
        TraceId(n.to_be_bytes())
    }

    fn part(traces: &[u128]) -> MemoryPart {
        let spans: Vec<StoredSpan> = (1..)
            .zip(traces)
            .map(|(number, trace)| {
                let mut span = span(number, 0, 1);
                span.trace_id = id(*trace);
                stored(span)
            })
            .collect();
        MemoryPart::new(vec![Arc::new(SpanBatch::of_spans(&spans))]).unwrap()
    }

    fn deleted(ids: &[u128]) -> Arc<Tombstones> {
        let stone = |n: &u128| (id(*n), Tombstone { trace_id: id(*n), deleted_at: UnixNanos(1) });
        Arc::new(ids.iter().map(stone).collect())
    }

    fn ids(hidden: Option<&Arc<Hidden>>) -> Vec<u128> {
        hidden.map_or_else(Vec::new, |hidden| hidden.ids().iter().map(|id| number_of(*id)).collect())
    }

    #[test]
    fn parts_are_looked_through_once_for_each_deletion() {
        let known = HiddenTraces::new(Share::new("queries", 64 << 20));
        let (one, two) = (part(&[1, 3, 5, 7]), part(&[2, 4]));
        let look =
            |part: &MemoryPart, tombstones: &Arc<Tombstones>| known.look().hidden(part, &part.traces().unwrap(), tombstones);
        let first = deleted(&[0, 3, 6, 7, 9]);
        let found = look(&one, &first).unwrap();
        assert_eq!(ids(Some(&found)), [3, 7]);
        assert!(look(&two, &first).is_none());
        assert!(Arc::ptr_eq(&look(&one, &first).unwrap(), &found));
        assert!(known.memory.used() > 0 && known.known.lock().parts.len() == 2);

        // A deletion elsewhere finds the same, one here more, and one that is taken back less.
        let second = deleted(&[0, 2, 3, 6, 7, 9]);
        assert!(Arc::ptr_eq(&look(&one, &second).unwrap(), &found));
        assert_eq!(ids(look(&two, &second).as_ref()), [2]);
        assert_eq!(ids(look(&one, &deleted(&[3, 5, 7])).as_ref()), [3, 5, 7]);
        assert!(look(&one, &deleted(&[8])).is_none() && look(&one, &Arc::default()).is_none());

        let bytes = known.known.lock().bytes;
        assert_eq!(known.memory.used(), bytes);
        known.forget();
        assert_eq!((known.memory.used(), known.known.lock().bytes), (0, 0));
    }

    #[test]
    fn nothing_is_kept_without_room() {
        let known = HiddenTraces::new(Share::new("queries", 1 << 10));
        let (part, tombstones) = (part(&[1, 2, 3]), deleted(&[2]));
        let _most = known.memory.try_take(600).unwrap();
        for _ in 0..2 {
            let found = known.look().hidden(&part, &part.traces().unwrap(), &tombstones);
            assert_eq!(ids(found.as_ref()), [2]);
            assert_eq!(known.memory.used(), 600);
        }
    }
}
