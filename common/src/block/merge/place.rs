//! Where each row of an output row group comes from, and what its tree looks like.
//!
//! Owns the first half of merging a row group: the order. A trace that lies in one input keeps its rows as they are; one that
//! lies in several, or loses spans, is laid out anew over all its spans. Reads only the columns that decide.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::ops::Range;

use super::super::bitmap::Bitmap;
use super::super::decode::BadPage;
use super::super::page::Values;
use super::super::tree::{Node, TreeBuilder, flag};
use super::column::StripColumn;
use super::copies::content_hashes;
use super::input::{Input, Result, Scratch, TraceRows};
use crate::id::TraceId;
use crate::time::UnixNanos;

const SERVER: i32 = 2;
const CLIENT: i32 = 3;

/// Flags that follow from the trace's spans and not from the span alone.
const STRUCTURE: i32 = flag::ROOT | flag::ORPHAN | flag::DUPLICATE_ID | flag::CYCLE_BROKEN;

/// Rows of one row group of an input that go to one output row group.
#[derive(Clone, Debug)]
pub(super) struct Strip {
    pub(super) input: usize,
    pub(super) group: usize,
    pub(super) rows: Range<usize>,
}

/// Neighbouring rows of a strip that stay neighbours. Rows count from the strip's first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) strip: u32,
    pub(super) from: u32,
    pub(super) len: u32,
}

/// A trace of the output.
#[derive(Clone, Copy, Debug)]
pub(super) struct PlacedTrace {
    pub(super) id: TraceId,
    /// First row in the group.
    pub(super) first: u32,
    /// Row of its earliest span without parent.
    pub(super) root: Option<u32>,
    pub(super) duration_ns: i64,
}

/// The columns that decide, of one strip.
pub(super) struct Deciding {
    pub(super) span_id: Vec<[u8; 8]>,
    pub(super) start: Vec<i64>,
    pub(super) duration: Vec<i64>,
    pub(super) kind: Vec<i32>,
    delta: Vec<i32>,
    subtree: Vec<i32>,
    flags: Vec<i32>,
    /// Rows with a parent id of their own, and these ids.
    parent_rows: Vec<u32>,
    parents: Vec<[u8; 8]>,
}

/// A row group in its order.
#[derive(Default)]
pub(super) struct Placed {
    pub(super) strips: Vec<Strip>,
    pub(super) deciding: Vec<Deciding>,
    pub(super) runs: Vec<Run>,
    pub(super) rows: usize,
    pub(super) traces: Vec<PlacedTrace>,
    pub(super) parent_delta: Vec<i32>,
    pub(super) subtree_size: Vec<i32>,
    pub(super) flags: Vec<i32>,
    /// Rows whose parent id is stored, and the ids one after the other.
    pub(super) with_parent: Bitmap,
    pub(super) parents: Vec<u8>,
    pub(super) duplicates_removed: u64,
    pub(super) expired: u64,
}

/// A trace to be placed, with its pieces in the order of inputs.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub(super) id: TraceId,
    /// By strip number: rows counted from the strip's first.
    pub(super) pieces: Vec<(u32, Range<u32>)>,
}

/// Collects traces for a row group until there are enough.
#[derive(Default)]
pub(super) struct Collector {
    pub(super) strips: Vec<Strip>,
    pub(super) traces: Vec<Pending>,
    pub(super) rows: usize,
    /// By input: its strip that is being filled.
    open: HashMap<usize, u32>,
}

impl Collector {
    /// Adds a trace with its rows in each input that has some.
    pub(super) fn add(&mut self, id: TraceId, pieces: &[(usize, TraceRows)]) {
        let mut placed = Vec::with_capacity(pieces.len());
        for (input, piece) in pieces {
            let open = self.open.get(input).copied().filter(|at| self.strips[*at as usize].group == piece.group);
            let at = match open {
                Some(at) => at,
                None => {
                    let at = self.strips.len() as u32;
                    let rows = piece.rows.start..piece.rows.start;
                    self.strips.push(Strip { input: *input, group: piece.group, rows });
                    self.open.insert(*input, at);
                    at
                }
            };
            let strip = &mut self.strips[at as usize];
            strip.rows.end = piece.rows.end;
            let from = (piece.rows.start - strip.rows.start) as u32;
            placed.push((at, from..from + piece.rows.len() as u32));
            self.rows += piece.rows.len();
        }
        self.traces.push(Pending { id, pieces: placed });
    }
}

fn all_ids(column: StripColumn) -> Result<Vec<[u8; 8]>> {
    match column.values {
        Values::Ids(all) => Ok(all),
        other if other.len() == 0 => Ok(Vec::new()),
        _ => Err(BadPage("ids of another form").into()),
    }
}

fn all_i32(column: StripColumn) -> Result<Vec<i32>> {
    match column.values {
        Values::I32(all) => Ok(all),
        _ => Err(BadPage("numbers of another form").into()),
    }
}

fn all_i64(column: StripColumn) -> Result<Vec<i64>> {
    match column.values {
        Values::I64(all) => Ok(all),
        _ => Err(BadPage("numbers of another form").into()),
    }
}

impl Deciding {
    fn read(input: &Input, scratch: &Scratch, strip: &Strip) -> Result<Self> {
        let layout = &input.layout;
        let read = |column| StripColumn::of_rows(input, scratch, strip, column);
        let parents = read(layout.parent_span_id)?;
        let parent_rows = match &parents.present {
            Some(rows) => rows.clone(),
            None => (0..strip.rows.len() as u32).collect(),
        };
        let out = Self {
            span_id: all_ids(read(layout.span_id)?)?,
            start: all_i64(read(layout.start_time)?)?,
            duration: all_i64(read(layout.duration_ns)?)?,
            kind: all_i32(read(layout.kind)?)?,
            delta: all_i32(read(layout.parent_delta)?)?,
            subtree: all_i32(read(layout.subtree_size)?)?,
            flags: all_i32(read(layout.row_flags)?)?,
            parents: all_ids(parents)?,
            parent_rows,
        };
        // A structure that points outside would go unseen into the output.
        let is_sane = |row: usize| {
            let (delta, size) = (out.delta[row], out.subtree[row]);
            delta >= 0 && delta as usize <= row && size >= 1 && size as usize <= strip.rows.len() - row
        };
        if (0..strip.rows.len()).all(is_sane) {
            Ok(out)
        } else {
            Err(BadPage("a tree that points outside its trace").into())
        }
    }

    /// Gives back what only laying out needs.
    fn forget_tree(&mut self) {
        (self.delta, self.subtree, self.parent_rows, self.parents) = Default::default();
    }

    fn own_parent(&self, row: u32) -> Option<[u8; 8]> {
        self.parent_rows.binary_search(&row).ok().map(|at| self.parents[at])
    }

    /// The parent id as it was sent; zeros for none.
    fn parent_id(&self, row: u32) -> u64 {
        let at = row as usize;
        if let Some(id) = self.own_parent(row) {
            return u64::from_be_bytes(id);
        }
        let is_placed = self.delta[at] > 0 && self.flags[at] & (flag::ROOT | flag::ZERO_PARENT) == 0;
        if is_placed { u64::from_be_bytes(self.span_id[at - self.delta[at] as usize]) } else { 0 }
    }

    fn node(&self, row: u32) -> Node {
        let at = row as usize;
        Node {
            span_id: u64::from_be_bytes(self.span_id[at]),
            parent_id: self.parent_id(row),
            start: self.start[at] as u64,
            is_server: self.kind[at] == SERVER,
            is_client: self.kind[at] == CLIENT,
            duration: self.duration[at] as u64,
        }
    }

    fn is_expired(&self, row: u32, cutoff: UnixNanos) -> bool {
        (self.start[row as usize] as u64) < cutoff.0
    }

    fn end(&self, at: usize) -> u64 {
        (self.start[at] as u64).wrapping_add(self.duration[at] as u64)
    }
}

/// Which spans go because they are too old: by input, those that start before this. Zero for none.
pub(super) type Expiry<'e> = &'e [UnixNanos];

/// Puts the collected traces in order.
pub(super) fn place(inputs: &[Input], scratch: &Scratch, collected: Collector, expiry: Expiry<'_>) -> Result<Placed> {
    let Collector { strips, traces, rows, .. } = collected;
    let mut deciding = Vec::with_capacity(strips.len());
    for strip in &strips {
        let input = &inputs[strip.input];
        deciding.push(Deciding::read(input, scratch, strip).map_err(|error| input.own(error))?);
    }
    let gone = copies(inputs, scratch, &strips, &deciding, &traces, expiry)?;
    let mut out = Placed { strips, deciding, ..Placed::default() };
    for column in [&mut out.parent_delta, &mut out.subtree_size, &mut out.flags] {
        column.reserve(rows);
    }
    out.traces.reserve(traces.len());
    let mut tree = TreeBuilder::default();
    let (mut nodes, mut found) = (Vec::new(), Vec::new());
    for pending in &traces {
        let cutoff = |strip: u32| expiry[out.strips[strip as usize].input];
        let expires = pending.pieces.iter().any(|(strip, rows)| {
            cutoff(*strip).0 > 0 && rows.clone().any(|row| out.deciding[*strip as usize].is_expired(row, cutoff(*strip)))
        });
        if let ([(strip, rows)], false) = (pending.pieces.as_slice(), expires) {
            out.keep(pending.id, *strip, rows.clone());
            continue;
        }
        nodes.clear();
        found.clear();
        let count = pending.pieces.iter().map(|(_, rows)| rows.len()).sum();
        nodes.reserve_exact(count);
        found.reserve_exact(count);
        for (strip, rows) in &pending.pieces {
            for row in rows.clone() {
                let cutoff = expiry[out.strips[*strip as usize].input];
                if out.deciding[*strip as usize].is_expired(row, cutoff) {
                    out.expired += 1;
                } else if gone.contains(&(*strip, row)) {
                    out.duplicates_removed += 1;
                } else {
                    nodes.push(out.deciding[*strip as usize].node(row));
                    found.push((*strip, row));
                }
            }
        }
        if traces.len() == 1 {
            // It may be very large, and the nodes say it all.
            out.deciding.iter_mut().for_each(Deciding::forget_tree);
        }
        if !nodes.is_empty() {
            tree.index(&nodes);
            tree.lay_out(&nodes);
            out.lay_out(pending.id, &tree, &nodes, &found);
        }
    }
    for of in &mut out.deciding {
        of.forget_tree();
        of.flags = Vec::new();
    }
    Ok(out)
}

impl Placed {
    fn push_row(&mut self, strip: u32, row: u32) {
        self.push_rows(strip, row, 1);
    }

    fn push_rows(&mut self, strip: u32, from: u32, len: u32) {
        match self.runs.last_mut() {
            Some(run) if run.strip == strip && run.from + run.len == from => run.len += len,
            _ => self.runs.push(Run { strip, from, len }),
        }
        self.rows += len as usize;
    }

    /// A trace that stays as it is.
    fn keep(&mut self, id: TraceId, strip: u32, rows: Range<u32>) {
        let first = self.rows as u32;
        let of = &self.deciding[strip as usize];
        let range = rows.start as usize..rows.end as usize;
        let (mut start, mut end, mut root): (u64, u64, Option<usize>) = (u64::MAX, 0, None);
        for at in range.clone() {
            start = start.min(of.start[at] as u64);
            end = end.max(of.end(at));
            if of.flags[at] & flag::ROOT != 0 {
                let earlier = |other: usize| {
                    let key = |at: usize| {
                        let node = of.node(at as u32);
                        (node.start, node.span_id, node.tie())
                    };
                    key(at) < key(other)
                };
                if root.is_none_or(earlier) {
                    root = Some(at);
                }
            }
        }
        self.parent_delta.extend_from_slice(&of.delta[range.clone()]);
        self.subtree_size.extend_from_slice(&of.subtree[range.clone()]);
        self.flags.extend_from_slice(&of.flags[range.clone()]);
        let mut at = of.parent_rows.partition_point(|row| *row < rows.start);
        while at < of.parent_rows.len() && of.parent_rows[at] < rows.end {
            self.with_parent.push(first + of.parent_rows[at] - rows.start);
            self.parents.extend_from_slice(&of.parents[at]);
            at += 1;
        }
        let root = root.map(|at| first + (at - range.start) as u32);
        self.traces.push(PlacedTrace { id, first, root, duration_ns: end.wrapping_sub(start) as i64 });
        self.push_rows(strip, rows.start, rows.end - rows.start);
    }

    /// A trace whose tree is new.
    fn lay_out(&mut self, id: TraceId, tree: &TreeBuilder, nodes: &[Node], found: &[(u32, u32)]) {
        let first = self.rows as u32;
        let layout = &tree.layout;
        let (mut start, mut end, mut root) = (u64::MAX, 0, None);
        for (position, at) in (0u32..).zip(&layout.order) {
            let node = &nodes[*at as usize];
            start = start.min(node.start);
            end = end.max(node.start.wrapping_add(node.duration));
            if layout.root == Some(*at) {
                root = Some(first + position);
            }
            let (strip, row) = found[*at as usize];
            let of = &self.deciding[strip as usize];
            self.flags.push(layout.flags[position as usize] | of.flags[row as usize] & !STRUCTURE);
            let delta = layout.parent_delta[position as usize];
            let above = (delta > 0).then(|| nodes[layout.order[position as usize - delta as usize] as usize].span_id);
            if node.parent_id != 0 && above != Some(node.parent_id) {
                self.with_parent.push(first + position);
                self.parents.extend_from_slice(&node.parent_id.to_be_bytes());
            }
            self.push_row(strip, row);
        }
        self.parent_delta.extend_from_slice(&layout.parent_delta);
        self.subtree_size.extend_from_slice(&layout.subtree_size);
        self.traces.push(PlacedTrace { id, first, root, duration_ns: end.wrapping_sub(start) as i64 });
    }
}

/// Rows that are identical to a row before them, in everything they say.
fn copies(
    inputs: &[Input],
    scratch: &Scratch,
    strips: &[Strip],
    deciding: &[Deciding],
    traces: &[Pending],
    expiry: Expiry<'_>,
) -> Result<HashSet<(u32, u32)>> {
    // Spans of one trace that agree in all that is known so far. Within an input, copies were removed when it was written.
    let mut alike: Vec<Vec<(u32, u32)>> = Vec::new();
    let mut keys = Vec::new();
    for pending in traces.iter().filter(|pending| pending.pieces.len() > 1) {
        keys.clear();
        keys.reserve_exact(pending.pieces.iter().map(|(_, rows)| rows.len()).sum());
        for (strip, rows) in &pending.pieces {
            let of = &deciding[*strip as usize];
            // What goes because of its age must not stand for a copy that stays.
            let stays = |row: &u32| !of.is_expired(*row, expiry[strips[*strip as usize].input]);
            keys.extend(rows.clone().filter(stays).map(|row| (of.span_id[row as usize], (*strip, row))));
        }
        keys.sort_unstable();
        let rest = |(strip, row): (u32, u32)| {
            let (of, at) = (&deciding[strip as usize], row as usize);
            (of.start[at], of.duration[at], of.kind[at])
        };
        for same_id in keys.chunk_by_mut(|a, b| a.0 == b.0).filter(|same| same.len() > 1) {
            same_id.sort_unstable_by_key(|(_, place)| (rest(*place), *place));
            for same in same_id.chunk_by(|a, b| rest(a.1) == rest(b.1)) {
                if same.iter().any(|(_, (strip, _))| *strip != same[0].1.0) {
                    alike.push(same.iter().map(|(_, place)| *place).collect());
                }
            }
        }
    }
    let mut gone = HashSet::new();
    if alike.is_empty() {
        return Ok(gone);
    }
    let mut by_strip: Vec<Vec<u32>> = vec![Vec::new(); strips.len()];
    alike.iter().flatten().for_each(|(strip, row)| by_strip[*strip as usize].push(*row));
    // Two keyed hashes of 64 bits: nobody outside can make two spans meet, and by chance none ever do.
    let hashers = [RandomState::new(), RandomState::new()];
    let mut hashes: HashMap<(u32, u32), [u64; 2]> = HashMap::new();
    for ((number, strip), rows) in (0u32..).zip(strips).zip(&mut by_strip) {
        rows.sort_unstable();
        let of = &deciding[number as usize];
        content_hashes(&inputs[strip.input], scratch, strip, rows, |row, text| {
            let parent = of.parent_id(row);
            hashes.insert((number, row), [0, 1].map(|n: usize| hashers[n].hash_one((parent, text))));
        })
        .map_err(|error| inputs[strip.input].own(error))?;
    }
    for mut same in alike {
        // The one that is not marked as a resend stays, if there is one: nothing need look for copies of it any more.
        same.sort_by_key(|(strip, row)| deciding[*strip as usize].flags[*row as usize] & flag::MAYBE_DUPLICATE);
        let mut seen = HashSet::new();
        gone.extend(same.into_iter().filter(|place| hashes.get(place).is_some_and(|hash| !seen.insert(*hash))));
    }
    Ok(gone)
}
