//! Merging blocks: several block files in, one out, in memory that does not grow with them.
//!
//! Owns: the order of the output's rows, which identical spans go, columns chosen again from all inputs, filters and summary made
//! anew. Does not own which blocks are merged, how files come here and where the output goes, nor the manifest. Pure computation
//! on local bytes, meant for a CPU thread; nothing it makes exists for anyone until a manifest version names it.
//!
//! Traces of all inputs are walked in order of their ids and collected to row groups. For each, first the order is found
//! (`place`), reading only ids, times and tree; then one column after the other is put together from all inputs and written
//! (`column`, `write`). A trace that lies in one input keeps its rows; one that lies in several is laid out anew. Attributes whose
//! key has a column on one side only move between column and rest (`attrs`).
//!
//! Memory: a row group has at most [`MergeSettings::row_group_rows`] rows and [`GROUP_BYTES`] in its widest column, unless a single
//! trace is larger. Beside the columns being written there are footers, dictionaries up to a bound, and trace ids by the page.

mod attrs;
mod bytes;
mod column;
mod copies;
mod dictionary;
mod input;
mod place;
mod put;
mod totals;
mod write;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashSet};
use std::io::Write;
use std::ops::ControlFlow;
use std::sync::Arc;

use parquet::errors::ParquetError;
use parquet::file::writer::SerializedFileWriter;

use super::attrs::choose_keys;
use super::chunk::ChunkEncoder;
use super::emit::Emitter;
use super::filter::TraceIdFilter;
use super::gather::Dictionaries;
use super::meta::{BlockMeta, BlockOrigin};
use super::row_group::group_schema;
use super::schema::{self, TypedKeys};
use super::summary::KeySummary;
use super::writer::{WriteError, describe_in_footer, properties};
use crate::id::{BlockId, TraceId};
use crate::time::UnixNanos;
use input::{Input, Scratch, TraceCursor, TraceRows};
use place::Collector;
use totals::Totals;
use write::{GroupWriter, Mappings};

pub use bytes::FileBytes;

/// Rows in a row group of a merged block: few enough that a trace's pages lie within some megabytes, enough that dictionaries pay.
pub const MERGED_ROW_GROUP_ROWS: usize = 128 * 1024;

/// Bytes of the widest column of a row group, inflated.
const GROUP_BYTES: usize = 32 << 20;

/// A block to be merged: its whole file and what its manifest entry says of the file's end.
#[derive(Clone, Debug)]
pub struct MergeInput {
    pub id: BlockId,
    pub file: FileBytes,
    pub tail_bytes: u64,
}

/// What a merge does beside merging.
#[derive(Clone, Debug)]
pub struct MergeSettings {
    /// zstd level of pages.
    pub zstd_level: i32,
    pub row_group_rows: usize,
    /// Traces that are left out.
    pub dropped: Arc<HashSet<TraceId>>,
    /// Spans go whose start and receive time are both before this. Receive times are known by block only.
    pub expired_before: UnixNanos,
}

impl Default for MergeSettings {
    fn default() -> Self {
        Self { zstd_level: 1, row_group_rows: MERGED_ROW_GROUP_ROWS, dropped: Arc::default(), expired_before: UnixNanos(0) }
    }
}

/// What became of the inputs.
#[derive(Debug)]
pub struct Merged {
    /// `None` if no span is left: nothing of use was written.
    pub block: Option<MergedBlock>,
    pub rows_in: u64,
    pub duplicates_removed: u64,
    pub expired: u64,
    /// Spans of traces that were to be left out.
    pub dropped: u64,
}

/// A finished block whose file went to the writer.
#[derive(Debug)]
pub struct MergedBlock {
    pub meta: BlockMeta,
    /// The sidecar with the trace-id filter.
    pub filter: ::bytes::Bytes,
    /// Bytes from the page indexes to the end of the file.
    pub tail_bytes: u64,
    pub file_bytes: u64,
}

/// Why there is no output. Inputs are never changed.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// Trying again with this block will not help.
    #[error("block {block} cannot be read: {why}")]
    Input { block: BlockId, why: String },
    #[error(transparent)]
    Output(#[from] WriteError),
    #[error("stopped")]
    Stopped,
}

impl From<ParquetError> for MergeError {
    fn from(error: ParquetError) -> Self {
        match error {
            ParquetError::External(source) => match source.downcast::<InInput>() {
                Ok(found) => Self::Input { block: found.block, why: found.why },
                Err(source) => Self::Output(ParquetError::External(source).into()),
            },
            other => Self::Output(other.into()),
        }
    }
}

/// An error that came from an input's bytes, on its way up.
#[derive(Debug, thiserror::Error)]
#[error("block {block}: {why}")]
struct InInput {
    block: BlockId,
    why: String,
}

/// Merges blocks of one tenant into `sink`, which gets the output's file from its first byte to its last. `progress` is told how many
/// rows of the inputs are done, and may stop the merge.
pub fn merge<W: Write + Send>(
    inputs: &[MergeInput],
    origin: BlockOrigin,
    settings: &MergeSettings,
    sink: W,
    mut progress: impl FnMut(u64) -> ControlFlow<()>,
) -> Result<Merged, MergeError> {
    let open = |(number, input): (u32, &MergeInput)| {
        Input::open(number, input.id, input.file.clone(), input.tail_bytes)
            .map_err(|why| MergeError::Input { block: input.id, why: why.to_string() })
    };
    let inputs = (0u32..).zip(inputs).map(open).collect::<Result<Vec<Input>, _>>()?;
    let keys = choose(&inputs);
    let mappings: Vec<Mappings> = inputs.iter().map(|input| Mappings::new(input, &keys)).collect();
    let scratch = Scratch::default();
    let traces = count_traces(&inputs, &scratch, settings)?;
    let rows_in = inputs.iter().map(|input| input.meta.rows).sum();
    let expiry: Vec<UnixNanos> = inputs
        .iter()
        .map(|input| {
            let is_old = input.meta.received_max < settings.expired_before && input.meta.origin.window.is_some();
            if is_old { settings.expired_before } else { UnixNanos(0) }
        })
        .collect();

    let mut filter = TraceIdFilter::empty(traces).map_err(WriteError::from)?;
    let mut file = SerializedFileWriter::new(sink, schema::parquet_schema(&keys)?, Arc::new(properties()))?;
    let mut encoder = ChunkEncoder::new(settings.zstd_level)?;
    let mut dictionaries = Dictionaries::default();
    let schema = group_schema(&keys)?;
    let mut totals = Totals::new(&keys);
    let mut merged = Merged { block: None, rows_in, duplicates_removed: 0, expired: 0, dropped: 0 };
    let mut bounds: Option<(TraceId, TraceId)> = None;
    let (mut rows, mut written_traces, mut done) = (0u64, 0u64, 0u64);

    let mut walk = Walk::new(&inputs, &scratch)?;
    loop {
        let collected = walk.collect(settings, &mut merged.dropped)?;
        if collected.traces.is_empty() {
            break;
        }
        let passed: u64 = collected.rows as u64;
        let mut placed = place::place(&inputs, &scratch, collected, &expiry)?;
        merged.duplicates_removed += placed.duplicates_removed;
        merged.expired += placed.expired;
        if let (Some(first), Some(last)) = (placed.traces.first(), placed.traces.last()) {
            bounds = Some((bounds.map_or(first.id, |(min, _)| min), last.id));
            rows += placed.rows as u64;
            written_traces += placed.traces.len() as u64;
            placed.traces.iter().for_each(|trace| filter.add(trace.id));
            let mut group = file.next_row_group()?;
            let out = Emitter {
                encoder: &mut encoder,
                dictionaries: &mut dictionaries,
                schema: Arc::clone(&schema),
                group: &mut group,
                rows: placed.rows,
                next: 0,
            };
            let writer = GroupWriter {
                inputs: &inputs,
                mappings: &mappings,
                scratch: &scratch,
                keys: &keys,
                deciding: std::mem::take(&mut placed.deciding),
                placed: &placed,
                totals: &mut totals,
                out,
            };
            writer.write().map_err(|error| match error {
                WriteError::Parquet(error) => MergeError::from(error),
                other => MergeError::Output(other),
            })?;
            group.close()?;
        }
        walk.forget_passed();
        done += passed;
        if progress(done).is_break() {
            return Err(MergeError::Stopped);
        }
    }
    let Some((min_trace_id, max_trace_id)) = bounds else { return Ok(merged) };
    let before: u64 = inputs.iter().map(|input| input.meta.duplicates_removed).sum();
    // Every word of the inputs counts, also about blocks that are long gone: see `manifest::rebuild`.
    let mut replaces: Vec<BlockId> = origin.inputs.clone();
    replaces.extend(inputs.iter().flat_map(|input| input.meta.origin.replaces.iter().copied()));
    replaces.sort_unstable();
    replaces.dedup();
    let meta = BlockMeta {
        origin: BlockOrigin { replaces, ..origin },
        rows,
        traces: written_traces,
        events: totals.events,
        links: totals.links,
        duplicates_removed: before + merged.duplicates_removed,
        range: totals.range,
        min_start: totals.starts.min,
        max_start: totals.starts.max,
        min_trace_id,
        max_trace_id,
        received_max: inputs.iter().map(|input| input.meta.received_max).max().unwrap_or_default(),
    };
    let summary = totals.summary(&keys);
    describe_in_footer(&mut file, &meta, &summary)?;
    let parquet = file.finish()?;
    let file_bytes = file.bytes_written() as u64;
    let chunks = parquet.row_groups().iter().flat_map(|group| group.columns());
    let first = chunks.filter_map(|chunk| {
        chunk.column_index_range().into_iter().chain(chunk.offset_index_range()).map(|range| range.start).min()
    });
    let tail_bytes = first.min().map_or(file_bytes, |start| file_bytes - start);
    merged.block = Some(MergedBlock { meta, filter: filter.to_bytes().into(), tail_bytes, file_bytes });
    Ok(merged)
}

/// The columns of the output: as of a block written from all spans of the inputs.
fn choose(inputs: &[Input]) -> TypedKeys {
    type Of = fn(&Input) -> &Vec<KeySummary>;
    let choose = |of: Of, items: usize| {
        let mut counts: BTreeMap<&str, [u32; 5]> = BTreeMap::new();
        for known in inputs.iter().flat_map(of) {
            let sum = counts.entry(&known.key).or_default();
            sum.iter_mut().zip(known.counts).for_each(|(sum, count)| *sum = sum.saturating_add(count));
        }
        choose_keys(counts.iter().map(|(key, kinds)| (*key, kinds)), items)
    };
    let items = |of: fn(&BlockMeta) -> u64| -> usize { inputs.iter().map(|input| of(&input.meta) as usize).sum() };
    TypedKeys {
        span: choose(|input| &input.summary.span, items(|meta| meta.rows)),
        event: choose(|input| &input.summary.event, items(|meta| meta.events)),
        link: choose(|input| &input.summary.link, items(|meta| meta.links)),
    }
}

/// Distinct traces of all inputs that will be in the output: the filter must know before the first one.
fn count_traces(inputs: &[Input], scratch: &Scratch, settings: &MergeSettings) -> Result<usize, MergeError> {
    let mut walk = Walk::new(inputs, scratch)?;
    let mut count = 0;
    while let Some((id, _)) = walk.next()? {
        count += usize::from(!settings.dropped.contains(&id));
    }
    Ok(count)
}

/// Walks the traces of all inputs together, in order of their ids.
struct Walk<'a> {
    inputs: &'a [Input],
    scratch: &'a Scratch,
    cursors: Vec<TraceCursor>,
    /// The next trace of each input.
    next: Vec<Option<TraceRows>>,
    heap: BinaryHeap<Reverse<(TraceId, usize)>>,
    /// Pieces of the last trace.
    pieces: Vec<(usize, TraceRows)>,
    /// By input: the row group that was read last.
    groups: Vec<usize>,
}

impl<'a> Walk<'a> {
    fn new(inputs: &'a [Input], scratch: &'a Scratch) -> Result<Self, MergeError> {
        let mut walk = Self {
            inputs,
            scratch,
            cursors: inputs.iter().map(|_| TraceCursor::new()).collect(),
            next: inputs.iter().map(|_| None).collect(),
            heap: BinaryHeap::with_capacity(inputs.len()),
            pieces: Vec::new(),
            groups: vec![0; inputs.len()],
        };
        (0..inputs.len()).try_for_each(|at| walk.advance(at))?;
        Ok(walk)
    }

    fn advance(&mut self, input: usize) -> Result<(), MergeError> {
        let of = &self.inputs[input];
        self.next[input] = self.cursors[input].next(of, self.scratch).map_err(|error| of.own(error))?;
        if let Some(found) = &self.next[input] {
            self.heap.push(Reverse((found.id, input)));
        }
        Ok(())
    }

    /// The next trace; its pieces are in `self.pieces`. With it the bytes its rows take in the widest column.
    fn next(&mut self) -> Result<Option<(TraceId, usize)>, MergeError> {
        let Some(Reverse((id, _))) = self.heap.peek().copied() else { return Ok(None) };
        self.pieces.clear();
        let mut bytes = 0;
        while let Some(Reverse((_, input))) = self.heap.peek().copied().filter(|Reverse((next, _))| *next == id) {
            self.heap.pop();
            if let Some(piece) = self.next[input].take() {
                bytes += piece.rows.len() * self.inputs[input].widest_row(piece.group);
                self.pieces.push((input, piece));
            }
            self.advance(input)?;
        }
        Ok(Some((id, bytes)))
    }

    /// Traces for the next row group.
    fn collect(&mut self, settings: &MergeSettings, dropped: &mut u64) -> Result<Collector, MergeError> {
        let mut out = Collector::default();
        let mut bytes = 0;
        while let Some(id) = self.heap.peek().map(|Reverse((id, _))| *id) {
            let of = |input: usize| self.next[input].as_ref().map_or(0, |piece| piece.rows.len());
            let coming: usize =
                self.heap.iter().filter(|Reverse((next, _))| *next == id).map(|Reverse((_, input))| of(*input)).sum();
            if !out.traces.is_empty() && (out.rows + coming > settings.row_group_rows || bytes > GROUP_BYTES) {
                break;
            }
            let Some((id, widest)) = self.next()? else { break };
            if settings.dropped.contains(&id) {
                *dropped += self.pieces.iter().map(|(_, piece)| piece.rows.len() as u64).sum::<u64>();
                continue;
            }
            bytes += widest;
            out.add(id, &self.pieces);
        }
        Ok(out)
    }

    /// Dictionaries of row groups that no later trace needs.
    fn forget_passed(&mut self) {
        for (at, input) in self.inputs.iter().enumerate() {
            let now = self.next[at].as_ref().map_or(input.parquet.num_row_groups(), |piece| piece.group);
            for passed in self.groups[at]..now {
                self.scratch.forget(input, passed);
            }
            self.groups[at] = now;
        }
    }
}
