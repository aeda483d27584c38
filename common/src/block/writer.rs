//! The block writer: batches of spans in, the bytes of a block and of its trace-id filter out.
//!
//! Owns the choice of typed columns and the order of columns and rows. Does not own object names, uploads or the manifest:
//! nothing it makes exists for anyone until a manifest version names it. Pure computation, meant for a CPU thread.

use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{BloomFilterPosition, WriterProperties, WriterVersion};
use parquet::file::writer::SerializedFileWriter;

use super::attrs::KeyCounts;
use super::filter::{BadFilter, TraceIdFilter};
use super::gather::Global;
use super::meta::{BlockMeta, BlockOrigin};
use super::order::{Ordered, RowRef, order};
use super::row_group::RowGroupWriter;
use super::schema::{self, TypedKeys, metadata_key};
use super::summary::{AttributeCollector, Summary};
use crate::batch::SpanBatch;
use crate::caps::MAX_ROW_GROUP_ROWS;
use crate::id::TraceId;
use crate::model::typed_json::{self, TypedJsonError};
use crate::time::{TimeRange, UnixNanos};

/// A block could not be written: always a bug or exhausted memory, never the sender's fault.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("encoding a block: {0}")]
    Parquet(#[from] ParquetError),
    #[error("encoding a block: {0}")]
    TypedJson(#[from] TypedJsonError),
    #[error("encoding a block: {0}")]
    Json(#[from] serde_json::Error),
    #[error("encoding a block: {0}")]
    Filter(#[from] BadFilter),
}

/// Spans for one block.
#[derive(Debug)]
pub struct BlockInput {
    pub batches: Vec<Arc<SpanBatch>>,
    /// By batch: which rows belong to this block; `None` for all.
    pub rows: Vec<Option<Vec<u32>>>,
}

/// A finished block.
#[derive(Debug)]
pub struct Block {
    pub meta: BlockMeta,
    /// The Parquet file.
    pub parquet: Bytes,
    /// The sidecar with the trace-id filter.
    pub filter: Bytes,
    /// Bytes from the page indexes to the end of the file, so that one read from the end opens the block.
    pub tail_bytes: u64,
}

/// How blocks are written.
#[derive(Clone, Copy, Debug)]
pub struct WriterOptions {
    /// zstd level of pages: 1 to 22. Higher costs CPU and saves little.
    pub zstd_level: i32,
    pub row_group_rows: usize,
}

impl Default for WriterOptions {
    fn default() -> Self {
        Self { zstd_level: 1, row_group_rows: MAX_ROW_GROUP_ROWS }
    }
}

/// Writes a block. `input` must hold at least one row.
pub fn write_block(input: &BlockInput, origin: BlockOrigin, options: WriterOptions) -> Result<Block, WriteError> {
    write_ordered(&input.batches, &order_rows(input)?, origin, options)
}

pub(super) fn order_rows(input: &BlockInput) -> Result<Ordered, WriteError> {
    let batches = &input.batches[..];
    let mut selected = Vec::new();
    for (batch, rows) in input.rows.iter().enumerate() {
        let batch_number = batch as u32;
        match rows {
            None => selected.extend((0..batches[batch].len() as u32).map(|row| RowRef { batch: batch_number, row })),
            Some(rows) => selected.extend(rows.iter().map(|row| RowRef { batch: batch_number, row: *row })),
        }
    }
    Ok(order(batches, &selected)?)
}

pub(super) fn write_ordered(
    batches: &[Arc<SpanBatch>],
    ordered: &Ordered,
    origin: BlockOrigin,
    options: WriterOptions,
) -> Result<Block, WriteError> {
    let mut global = Global::new(batches);
    let counts = count_keys(batches, &ordered.rows, &mut global);
    let (events, links) = count_list_items(batches, &ordered.rows);
    let keys = TypedKeys {
        span: counts.span.choose(ordered.rows.len(), &global),
        event: counts.event.choose(events, &global),
        link: counts.link.choose(links, &global),
    };
    let meta = describe(batches, ordered, origin);

    let schema = schema::parquet_schema(&keys)?;
    let properties = WriterProperties::builder()
        .set_writer_version(WriterVersion::PARQUET_2_0)
        .set_compression(Compression::ZSTD(Default::default()))
        .set_created_by(format!("spanhouse version {}", env!("CARGO_PKG_VERSION")))
        .set_bloom_filter_position(BloomFilterPosition::End)
        .build();
    let mut file = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties))?;
    let mut groups = RowGroupWriter::new(batches, ordered, &keys, options)?;
    for range in row_groups(ordered, options.row_group_rows) {
        let mut group = file.next_row_group()?;
        groups.write(range, &mut global, &mut group)?;
        group.close()?;
    }
    let mut summary = Summary::default();
    groups.summarise(&counts, &keys, &global, &mut summary);
    summarise_resources(batches, &ordered.rows, &mut summary)?;
    let mut put = |key: &str, value: String| file.append_key_value_metadata(KeyValue::new(key.to_owned(), value));
    put(metadata_key::FORMAT, schema::FORMAT_VERSION.to_string());
    put(metadata_key::BLOCK, serde_json::to_string(&meta)?);
    put(metadata_key::SUMMARY, serde_json::to_string(&summary)?);
    let parquet = file.into_inner()?;

    let ids = ordered.traces.iter().map(|trace| trace_of(batches, ordered.rows[trace.first as usize]));
    let filter = TraceIdFilter::build(ids, ordered.traces.len())?.to_bytes();
    let parquet = Bytes::from(parquet);
    let tail_bytes = super::reader::tail_length(&parquet)?;
    Ok(Block { meta, parquet, filter: Bytes::from(filter), tail_bytes })
}

fn trace_of(batches: &[Arc<SpanBatch>], row: RowRef) -> TraceId {
    batches[row.batch as usize].rows[row.row as usize].trace_id
}

pub(super) struct Counts {
    pub(super) span: KeyCounts,
    pub(super) event: KeyCounts,
    pub(super) link: KeyCounts,
}

fn count_keys(batches: &[Arc<SpanBatch>], rows: &[RowRef], global: &mut Global<'_>) -> Counts {
    let mut counts = Counts { span: KeyCounts::default(), event: KeyCounts::default(), link: KeyCounts::default() };
    // Local symbols first: one addition an attribute, one look-up a key and batch.
    let mut local: Vec<Vec<[u32; 5]>> = batches.iter().map(|b| vec![[0; 5]; key_bound(b)]).collect();
    for row in rows {
        let local = &mut local[row.batch as usize];
        for attr in batches[row.batch as usize].attrs_of(row.row as usize) {
            local[attr.key.index()][attr.kind as usize] += 1;
        }
    }
    for (batch, local) in local.iter().enumerate() {
        for (key, kinds) in local.iter().enumerate().filter(|(_, kinds)| **kinds != [0; 5]) {
            let key = global.symbol(batch as u32, crate::batch::Sym(key as u32));
            for (kind, count) in super::KINDS.iter().zip(kinds).filter(|(_, count)| **count > 0) {
                counts.span.add(key, *kind, *count);
            }
        }
    }
    for row in rows {
        let batch = &batches[row.batch as usize];
        let (first, events) = batch.events_of(row.row as usize);
        for event in first..first + events.len() {
            for attr in batch.event_attrs_of(event) {
                counts.event.add(global.symbol(row.batch, attr.key), attr.kind, 1);
            }
        }
        let (first, links) = batch.links_of(row.row as usize);
        for link in first..first + links.len() {
            for attr in batch.link_attrs_of(link) {
                counts.link.add(global.symbol(row.batch, attr.key), attr.kind, 1);
            }
        }
    }
    counts
}

/// One more than the largest symbol used as an attribute key.
fn key_bound(batch: &SpanBatch) -> usize {
    batch.attrs.iter().map(|attr| attr.key.index() + 1).max().unwrap_or(0)
}

fn count_list_items(batches: &[Arc<SpanBatch>], rows: &[RowRef]) -> (usize, usize) {
    rows.iter().fold((0, 0), |(events, links), row| {
        let batch = &batches[row.batch as usize];
        (events + batch.events_of(row.row as usize).1.len(), links + batch.links_of(row.row as usize).1.len())
    })
}

fn describe(batches: &[Arc<SpanBatch>], ordered: &Ordered, origin: BlockOrigin) -> BlockMeta {
    const SIGNED: u64 = 1 << 63;
    let (mut range, mut starts) = (TimeRange::EMPTY, TimeRange::EMPTY);
    for row in &ordered.rows {
        let row = &batches[row.batch as usize].rows[row.row as usize];
        if row.start < SIGNED {
            range.include(UnixNanos(row.start));
            starts.include(UnixNanos(row.start));
        }
        if row.end < SIGNED {
            range.include(UnixNanos(row.end));
        }
    }
    let mut used: Vec<u32> = ordered.rows.iter().map(|r| r.batch).collect();
    used.dedup();
    let received_max = used.iter().map(|b| batches[*b as usize].received_max).max().unwrap_or_default();
    let at = |trace: Option<&super::order::TraceFacts>| {
        trace.map_or(TraceId::default(), |t| trace_of(batches, ordered.rows[t.first as usize]))
    };
    BlockMeta {
        origin,
        rows: ordered.rows.len() as u64,
        traces: ordered.traces.len() as u64,
        duplicates_removed: ordered.duplicates_removed,
        range,
        min_start: starts.min,
        max_start: starts.max,
        min_trace_id: at(ordered.traces.first()),
        max_trace_id: at(ordered.traces.last()),
        received_max,
    }
}

/// Ranges of traces, each at most `most` rows unless a single trace is larger.
fn row_groups(ordered: &Ordered, most: usize) -> Vec<std::ops::Range<usize>> {
    let mut groups = Vec::new();
    let end_of = |trace: usize| ordered.traces.get(trace + 1).map_or(ordered.rows.len(), |next| next.first as usize);
    let (mut from, mut first_row) = (0, 0);
    for trace in 0..ordered.traces.len() {
        if end_of(trace) - first_row > most && trace > from {
            groups.push(from..trace);
            from = trace;
            first_row = ordered.traces[trace].first as usize;
        }
    }
    groups.push(from..ordered.traces.len());
    groups
}

fn summarise_resources(batches: &[Arc<SpanBatch>], rows: &[RowRef], summary: &mut Summary) -> Result<(), WriteError> {
    let mut used: Vec<(Vec<bool>, Vec<bool>)> =
        batches.iter().map(|b| (vec![false; b.resources.len()], vec![false; b.scopes.len()])).collect();
    for row in rows {
        let used = &mut used[row.batch as usize];
        let row = &batches[row.batch as usize].rows[row.row as usize];
        used.0[row.resource as usize] = true;
        used.1[row.scope as usize] = true;
    }
    let (mut resources, mut scopes) = (std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
    for (batch, (resource_used, scope_used)) in batches.iter().zip(&used) {
        for (entry, _) in batch.resources.iter().zip(resource_used).filter(|(_, used)| **used) {
            resources.insert(batch.strings.text(entry.json));
        }
        for (json, _) in batch.scopes.iter().zip(scope_used).filter(|(_, used)| **used) {
            scopes.insert(batch.strings.text(*json));
        }
    }
    let mut collector = AttributeCollector::default();
    for json in resources {
        collector.add(&typed_json::parse_resource(json)?.attributes);
    }
    summary.resource = collector.finish();
    let mut collector = AttributeCollector::default();
    for json in scopes {
        collector.add(&typed_json::parse_scope(json)?.attributes);
    }
    summary.scope = collector.finish();
    Ok(())
}
