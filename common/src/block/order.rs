//! From batches to the order of rows in a block: grouped by trace, each trace in pre-order, identical copies left out.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::Write as _;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use super::tree::{Node, TreeBuilder, flag};
use crate::batch::{ModelReader, Row, SpanBatch, row_flag};
use crate::model::Attribute;
use crate::model::typed_json::{self, TypedJsonError};

/// A row of one of the batches a block is built from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RowRef {
    pub(crate) batch: u32,
    pub(crate) row: u32,
}

/// Rows in block order, with what their trace says of them. All vectors have one entry a row unless noted.
#[derive(Debug, Default)]
pub(crate) struct Ordered {
    pub(crate) rows: Vec<RowRef>,
    pub(crate) parent_delta: Vec<i32>,
    pub(crate) subtree_size: Vec<i32>,
    pub(crate) flags: Vec<i32>,
    /// One entry a trace.
    pub(crate) traces: Vec<TraceFacts>,
    /// Spans left out because an identical one is in the block.
    pub(crate) duplicates_removed: u64,
}

/// What holds for every row of a trace.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TraceFacts {
    /// Position of the trace's first row; it ends where the next trace starts.
    pub(crate) first: u32,
    /// The earliest span without parent, if it is in this block.
    pub(crate) root: Option<RowRef>,
    /// Latest end minus earliest start of the rows in this block.
    pub(crate) duration_ns: i64,
}

const SERVER: i32 = 2;
const CLIENT: i32 = 3;

/// Orders the selected rows.
pub(crate) fn order(batches: &[Arc<SpanBatch>], selected: &[RowRef]) -> Result<Ordered, TypedJsonError> {
    let row_of = |r: RowRef| -> &Row { &batches[r.batch as usize].rows[r.row as usize] };
    let mut keyed: Vec<(u128, RowRef)> = selected.iter().map(|r| (u128::from_be_bytes(row_of(*r).trace_id.0), *r)).collect();
    keyed.sort_unstable();
    let mut out = Ordered::default();
    out.rows.reserve(keyed.len());
    let mut tree = TreeBuilder::default();
    let mut nodes = Vec::new();
    let mut kept = Vec::new();
    let mut contents = Contents::new(batches);
    for trace in keyed.chunk_by(|a, b| a.0 == b.0) {
        kept.clear();
        kept.extend(trace.iter().map(|(_, r)| *r));
        out.duplicates_removed += drop_identical(&mut contents, &mut kept)?;
        nodes.clear();
        let (mut start, mut end) = (u64::MAX, 0);
        for r in &kept {
            let row = row_of(*r);
            start = start.min(row.start);
            end = end.max(row.end);
            nodes.push(Node {
                span_id: u64::from_be_bytes(row.span_id.0),
                parent_id: u64::from_be_bytes(row.parent_span_id.0),
                start: row.start,
                is_server: row.kind == SERVER,
                is_client: row.kind == CLIENT,
            });
        }
        tree.build(&nodes);
        let layout = &tree.layout;
        let first = out.rows.len() as u32;
        let root = layout.root.map(|at| kept[at as usize]);
        out.traces.push(TraceFacts { first, root, duration_ns: end.wrapping_sub(start) as i64 });
        out.rows.extend(layout.order.iter().map(|at| kept[*at as usize]));
        out.parent_delta.extend_from_slice(&layout.parent_delta);
        out.subtree_size.extend_from_slice(&layout.subtree_size);
        out.flags.extend(layout.flags.iter().zip(&layout.order).map(|(flags, at)| {
            let row = row_of(kept[*at as usize]);
            let mut flags = *flags;
            if row.start >> 63 != 0 {
                flags |= flag::START_UNSIGNED;
            }
            if row.end >> 63 != 0 {
                flags |= flag::END_UNSIGNED;
            }
            if row.row_flags & row_flag::ZERO_PARENT != 0 {
                flags |= flag::ZERO_PARENT;
            }
            if row.row_flags & row_flag::MAYBE_DUPLICATE != 0 {
                flags |= flag::MAYBE_DUPLICATE;
            }
            flags
        }));
    }
    Ok(out)
}

/// Removes spans that are equal to another in everything: ids, kind, times, content, resource and scope. Spans that only share
/// their ids stay. Returns how many went.
fn drop_identical(contents: &mut Contents<'_>, rows: &mut Vec<RowRef>) -> Result<u64, TypedJsonError> {
    if rows.len() < 2 {
        return Ok(0);
    }
    let batches = contents.batches;
    let key = |r: &RowRef| {
        let row = &batches[r.batch as usize].rows[r.row as usize];
        (row.span_id, row.start, row.end, row.kind)
    };
    let mut by_key: Vec<RowRef> = rows.clone();
    by_key.sort_unstable_by_key(|r| (key(r), *r));
    let mut gone: Vec<RowRef> = Vec::new();
    for same in by_key.chunk_by(|a, b| key(a) == key(b)).filter(|same| same.len() > 1) {
        contents.copies(same, &mut gone)?;
    }
    if !gone.is_empty() {
        gone.sort_unstable();
        rows.retain(|r| gone.binary_search(r).is_err());
    }
    Ok(gone.len() as u64)
}

/// Compares spans by all that they say. Keeps a hash of each and never the texts of all: nothing stops a sender from giving
/// all its spans one id and time.
struct Contents<'a> {
    batches: &'a [Arc<SpanBatch>],
    /// By batch, made when first needed.
    readers: HashMap<u32, ModelReader<'a>>,
    /// Keyed, and not guessable: hits are compared in full, so a sender that can make hashes meet could make that slow.
    hasher: RandomState,
}

impl<'a> Contents<'a> {
    fn new(batches: &'a [Arc<SpanBatch>]) -> Self {
        Self { batches, readers: HashMap::new(), hasher: RandomState::new() }
    }

    /// Adds to `gone` the rows that say the same as one before them.
    fn copies(&mut self, same: &[RowRef], gone: &mut Vec<RowRef>) -> Result<(), TypedJsonError> {
        // By hash and how many others of that hash were there first.
        let mut distinct: HashMap<(u64, u32), RowRef> = HashMap::new();
        let (mut text, mut other) = (String::new(), String::new());
        for r in same {
            self.write(*r, &mut text)?;
            let hash = self.hasher.hash_one(&text);
            for nth in 0.. {
                match distinct.entry((hash, nth)) {
                    Entry::Vacant(place) => {
                        place.insert(*r);
                        break;
                    }
                    Entry::Occupied(first) => {
                        self.write(*first.get(), &mut other)?;
                        if text == other {
                            gone.push(*r);
                            break;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// All that a span says, with its resource and scope, as one text: equal exactly if every bit is.
    fn write(&mut self, r: RowRef, text: &mut String) -> Result<(), TypedJsonError> {
        text.clear();
        let batch = &self.batches[r.batch as usize];
        let row = &batch.rows[r.row as usize];
        let reader = self.readers.entry(r.batch).or_insert_with(|| ModelReader::new(batch));
        let mut span = reader.span(r.row as usize)?;
        // Attributes as typed JSON: neither `==` nor Debug tells all doubles apart (zeros the one, NaNs the other).
        let mut take = |attributes: &mut Vec<Attribute>| typed_json::push_attributes(&std::mem::take(attributes), text);
        take(&mut span.attributes);
        span.events.iter_mut().for_each(|event| take(&mut event.attributes));
        span.links.iter_mut().for_each(|link| take(&mut link.attributes));
        text.push_str(batch.strings.text(batch.resources[row.resource as usize].json));
        text.push_str(batch.strings.text(batch.scopes[row.scope as usize]));
        // A String never fails to grow, short of an abort.
        let _ = write!(text, "{span:?}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{Attr, ResourceEntry, Sym, ValueKind};
    use crate::id::{SpanId, TraceId};

    /// Spans of one trace, id and time whose only attribute has the given values.
    fn spans_of_one_key(values: impl Iterator<Item = u64>) -> Arc<SpanBatch> {
        let mut batch = SpanBatch::default();
        let (empty, key) = (batch.strings.push(b"{}"), batch.strings.push(b"n"));
        batch.resources.push(ResourceEntry { json: empty, service_name: Sym::EMPTY });
        batch.scopes.push(empty);
        for bits in values {
            batch.attrs.push(Attr { key, kind: ValueKind::Int, bits });
            let attrs_end = batch.attrs.len() as u32;
            let (trace_id, span_id) = (TraceId([1; 16]), SpanId([2; 8]));
            batch.rows.push(Row { trace_id, span_id, start: 1, end: 2, attrs_end, ..Row::default() });
        }
        Arc::new(batch)
    }

    #[test]
    fn of_many_spans_with_one_key_only_copies_go() {
        const DISTINCT: u64 = 20_000;
        // Each value three times, in two batches.
        let batches = [spans_of_one_key((0..DISTINCT).chain(0..DISTINCT)), spans_of_one_key(0..DISTINCT)];
        let rows = |batch: u32| (0..batches[batch as usize].len() as u32).map(move |row| RowRef { batch, row });
        let selected: Vec<RowRef> = rows(0).chain(rows(1)).collect();
        let began = std::time::Instant::now();
        let ordered = order(&batches, &selected).unwrap();
        assert_eq!((ordered.rows.len() as u64, ordered.duplicates_removed), (DISTINCT, 2 * DISTINCT));
        assert!(ordered.rows.iter().all(|r| r.batch == 0 && u64::from(r.row) < DISTINCT), "not the first stayed");
        assert!(began.elapsed() < std::time::Duration::from_secs(20), "{:?}", began.elapsed());
    }
}
