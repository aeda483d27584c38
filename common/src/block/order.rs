//! From batches to the rows of a block: grouped by trace, each trace in pre-order, identical copies left out.
//!
//! Rows are read batch by batch as they lie in memory and put in their trace's place, because reading them in the order of the
//! block would miss the cache for each of them. What a column needs of a batch's tables (names, resources, scopes) is looked up
//! on the way, while those tables are at hand.

use std::hash::BuildHasher;
use std::sync::Arc;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use super::gather::Global;
use super::identical::Contents;
use super::tree::{Node, TreeBuilder, flag};
use crate::batch::{AttrsEnd, Row, Shape, SpanBatch, Sym, row_flag};
use crate::id::{SpanId, TraceId};
use crate::model::typed_json::TypedJsonError;

/// A row on its way into a block: texts are symbols of the block's [`Global`].
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct BlockRow {
    pub(crate) trace_id: TraceId,
    pub(crate) span_id: SpanId,
    pub(crate) parent_span_id: SpanId,
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) name: u32,
    pub(crate) service: u32,
    pub(crate) resource: u32,
    pub(crate) scope: u32,
    pub(crate) status_message: u32,
    pub(crate) kind: i32,
    pub(crate) status_code: i32,
    pub(crate) flags: u32,
    /// Where it comes from.
    pub(crate) batch: u32,
    pub(crate) row: u32,
    pub(crate) shape: Shape,
    /// Where its attribute values start in the batch.
    pub(crate) attrs_start: AttrsEnd,
    pub(crate) row_flags: u8,
}

/// Bits of [`BlockRow::row_flags`], beside those of [`row_flag`]: what is worth looking at in the batch.
pub(crate) mod has {
    pub(crate) const EVENTS: u8 = 1 << 4;
    pub(crate) const LINKS: u8 = 1 << 5;
    /// Trace state, unknown fields or dropped counts.
    pub(crate) const RARE: u8 = 1 << 6;
}

impl BlockRow {
    /// The row as it lies in its batch.
    pub(crate) fn source<'b>(&self, batches: &'b [Arc<SpanBatch>]) -> (&'b SpanBatch, usize) {
        (&batches[self.batch as usize], self.row as usize)
    }

    pub(crate) fn has(&self, what: u8) -> bool {
        self.row_flags & what != 0
    }
}

/// Rows in block order, with what their trace says of them. All vectors have one entry a row unless noted.
#[derive(Debug, Default)]
pub(crate) struct Ordered {
    pub(crate) rows: Vec<BlockRow>,
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
    /// Of the earliest span without parent, if it is in this block; else empty.
    pub(crate) root_service: u32,
    pub(crate) root_name: u32,
    /// Latest end minus earliest start of the rows in this block.
    pub(crate) duration_ns: i64,
}

const SERVER: i32 = 2;
const CLIENT: i32 = 3;

/// Orders rows: by batch, those selected, or all.
pub(crate) fn order(
    batches: &[Arc<SpanBatch>],
    selected: &[Option<Vec<u32>>],
    global: &mut Global<'_>,
) -> Result<Ordered, TypedJsonError> {
    let grouped = group(batches, selected, global);
    let mut out = Ordered { rows: grouped.rows, ..Ordered::default() };
    for column in [&mut out.parent_delta, &mut out.subtree_size, &mut out.flags] {
        column.reserve(out.rows.len());
    }
    out.traces.reserve(grouped.ends.len());
    let mut tree = TreeBuilder::default();
    let (mut nodes, mut kept) = (Vec::new(), Vec::new());
    let mut contents = Contents::new(batches);
    let (mut from, mut written) = (0, 0);
    for to in grouped.ends {
        kept.clear();
        kept.extend_from_slice(&out.rows[from..to]);
        from = to;
        let node = |row: &BlockRow| Node {
            span_id: u64::from_be_bytes(row.span_id.0),
            parent_id: u64::from_be_bytes(row.parent_span_id.0),
            start: row.start,
            is_server: row.kind == SERVER,
            is_client: row.kind == CLIENT,
            duration: row.end.wrapping_sub(row.start),
        };
        nodes.clear();
        nodes.extend(kept.iter().map(node));
        // Only spans that share their id can be copies, so the index by id tells most traces that there are none.
        if tree.index(&nodes) {
            let removed = drop_identical(&mut contents, &mut kept)?;
            if removed > 0 {
                out.duplicates_removed += removed;
                nodes.clear();
                nodes.extend(kept.iter().map(node));
                tree.index(&nodes);
            }
        }
        tree.lay_out(&nodes);
        let layout = &tree.layout;
        let (mut start, mut end) = (u64::MAX, 0);
        for row in &kept {
            start = start.min(row.start);
            end = end.max(row.end);
        }
        let root = layout.root.map(|at| &kept[at as usize]);
        out.traces.push(TraceFacts {
            first: written as u32,
            root_service: root.map_or(0, |row| row.service),
            root_name: root.map_or(0, |row| row.name),
            duration_ns: end.wrapping_sub(start) as i64,
        });
        // Never beyond `from`: a trace takes at most the room it had.
        for (at, flags) in layout.order.iter().zip(&layout.flags) {
            let row = kept[*at as usize];
            out.flags.push(flags | stored_flags(&row));
            out.rows[written] = row;
            written += 1;
        }
        out.parent_delta.extend_from_slice(&layout.parent_delta);
        out.subtree_size.extend_from_slice(&layout.subtree_size);
    }
    out.rows.truncate(written);
    Ok(out)
}

fn stored_flags(row: &BlockRow) -> i32 {
    let mut flags = 0;
    if row.start >> 63 != 0 {
        flags |= flag::START_UNSIGNED;
    }
    if row.end >> 63 != 0 {
        flags |= flag::END_UNSIGNED;
    }
    if row.has(row_flag::ZERO_PARENT) {
        flags |= flag::ZERO_PARENT;
    }
    if row.has(row_flag::MAYBE_DUPLICATE) {
        flags |= flag::MAYBE_DUPLICATE;
    }
    flags
}

/// Rows by trace in the order of ids, within a trace as they came.
struct Grouped {
    rows: Vec<BlockRow>,
    /// Where each trace ends.
    ends: Vec<usize>,
}

fn group(batches: &[Arc<SpanBatch>], selected: &[Option<Vec<u32>>], global: &mut Global<'_>) -> Grouped {
    // Seeded at random: ids come from outside, and a fixed seed would let a sender choose ids that collide.
    let hasher = RandomState::default();
    let mut table: HashTable<u32> = HashTable::new();
    let mut ids: Vec<TraceId> = Vec::new();
    let mut counts: Vec<usize> = Vec::new();
    let mut trace_of: Vec<u32> = Vec::new();
    each_row(batches, selected, |_, _, row| {
        let hash = hasher.hash_one(row.trace_id);
        let entry = table.entry(
            hash,
            |number| ids[*number as usize] == row.trace_id,
            |number| hasher.hash_one(ids[*number as usize]),
        );
        let number = match entry {
            hashbrown::hash_table::Entry::Occupied(known) => *known.get(),
            hashbrown::hash_table::Entry::Vacant(free) => {
                let number = counts.len() as u32;
                free.insert(number);
                number
            }
        };
        if number as usize == counts.len() {
            ids.push(row.trace_id);
            counts.push(0);
        }
        counts[number as usize] += 1;
        trace_of.push(number);
    });
    drop(table);
    let mut by_id: Vec<(u128, u32)> = ids.iter().zip(0..).map(|(id, number)| (u128::from_be_bytes(id.0), number)).collect();
    by_id.sort_unstable();
    // Where the next row of each trace goes.
    let mut next = vec![0; counts.len()];
    let mut ends = Vec::with_capacity(counts.len());
    let mut at = 0;
    for (_, number) in &by_id {
        next[*number as usize] = at;
        at += counts[*number as usize];
        ends.push(at);
    }
    let mut rows = vec![BlockRow::default(); trace_of.len()];
    let mut numbers = trace_of.iter();
    each_row(batches, selected, |number, at, row| {
        if let Some(trace) = numbers.next() {
            let place = &mut next[*trace as usize];
            rows[*place] = translate(&batches[number as usize], number, at, row, global);
            *place += 1;
        }
    });
    Grouped { rows, ends }
}

/// Calls `each` with the batch's number, the row's number and the row, as they lie in memory.
fn each_row(batches: &[Arc<SpanBatch>], selected: &[Option<Vec<u32>>], mut each: impl FnMut(u32, u32, &Row)) {
    for ((number, batch), rows) in (0..).zip(batches).zip(selected) {
        match rows {
            None => batch.rows.iter().zip(0..).for_each(|(row, at)| each(number, at, row)),
            Some(rows) => rows.iter().for_each(|at| each(number, *at, &batch.rows[*at as usize])),
        }
    }
}

fn translate(batch: &SpanBatch, number: u32, at: u32, row: &Row, global: &mut Global<'_>) -> BlockRow {
    let before = (at as usize).checked_sub(1).map(|before| &batch.rows[before]);
    let resource = batch.resources[row.resource as usize];
    let mut row_flags = row.row_flags;
    if row.events_end != before.map_or(0, |row| row.events_end) {
        row_flags |= has::EVENTS;
    }
    if row.links_end != before.map_or(0, |row| row.links_end) {
        row_flags |= has::LINKS;
    }
    let dropped = row.dropped_attributes | row.dropped_events | row.dropped_links;
    if dropped != 0 || row.trace_state != Sym::EMPTY || row.unknown != Sym::EMPTY {
        row_flags |= has::RARE;
    }
    BlockRow {
        trace_id: row.trace_id,
        span_id: row.span_id,
        parent_span_id: row.parent_span_id,
        start: row.start,
        end: row.end,
        name: global.symbol(number, row.name),
        service: global.symbol(number, resource.service_name),
        resource: global.symbol(number, resource.json),
        scope: global.symbol(number, batch.scopes[row.scope as usize]),
        status_message: global.symbol(number, row.status_message),
        kind: row.kind,
        status_code: row.status_code,
        flags: row.flags,
        batch: number,
        row: at,
        shape: row.attrs.shape,
        attrs_start: before.map_or_else(AttrsEnd::default, |row| row.attrs.end),
        row_flags,
    }
}

/// Removes spans that are equal to another in everything: ids, kind, times, content, resource and scope. Spans that only share
/// their ids stay. Returns how many went.
fn drop_identical(contents: &mut Contents<'_>, rows: &mut Vec<BlockRow>) -> Result<u64, TypedJsonError> {
    let key = |at: &u32| {
        let row = &rows[*at as usize];
        (row.span_id, row.start, row.end, row.kind)
    };
    let mut by_key: Vec<u32> = (0..rows.len() as u32).collect();
    by_key.sort_unstable_by_key(|at| (key(at), *at));
    let mut gone = vec![false; rows.len()];
    for same in by_key.chunk_by(|a, b| key(a) == key(b)).filter(|same| same.len() > 1) {
        contents.copies(same, rows, &mut gone)?;
    }
    let before = rows.len();
    let mut gone = gone.iter();
    rows.retain(|_| gone.next() == Some(&false));
    Ok((before - rows.len()) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{ItemAttrs, ResourceEntry, ShapeFinder, ValueKind};

    /// Spans of one trace, id and time whose only attribute has the given values.
    fn spans_of_one_key(values: impl Iterator<Item = u64>) -> Arc<SpanBatch> {
        let mut batch = SpanBatch::default();
        let (empty, key) = (batch.strings.push(b"{}"), batch.strings.push(b"n"));
        batch.resources.push(ResourceEntry { json: empty, service_name: Sym::EMPTY });
        batch.scopes.push(empty);
        let shape = ShapeFinder::default().with(&mut batch.shapes, Shape::EMPTY, key, ValueKind::Int);
        for bits in values {
            batch.attrs.push(ValueKind::Int, bits);
            let attrs = ItemAttrs { shape, end: batch.attrs.end() };
            let (trace_id, span_id) = (TraceId([1; 16]), SpanId([2; 8]));
            batch.rows.push(Row { trace_id, span_id, start: 1, end: 2, attrs, ..Row::default() });
        }
        Arc::new(batch)
    }

    #[test]
    fn of_many_spans_with_one_key_only_copies_go() {
        const DISTINCT: u64 = 20_000;
        // Each value three times, in two batches.
        let batches = [spans_of_one_key((0..DISTINCT).chain(0..DISTINCT)), spans_of_one_key(0..DISTINCT)];
        let began = std::time::Instant::now();
        let ordered = order(&batches, &[None, None], &mut Global::new(&batches)).unwrap();
        assert_eq!((ordered.rows.len() as u64, ordered.duplicates_removed), (DISTINCT, 2 * DISTINCT));
        assert!(ordered.rows.iter().all(|r| r.batch == 0 && u64::from(r.row) < DISTINCT), "not the first stayed");
        assert!(began.elapsed() < std::time::Duration::from_secs(20), "{:?}", began.elapsed());
    }
}
