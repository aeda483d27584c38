//! The block writer: batches of spans in, the bytes of a block and of its trace-id filter out.
//!
//! Owns the choice of typed columns and the order of columns and rows. Does not own object names, uploads or the manifest:
//! nothing it makes exists for anyone until a manifest version names it. Pure computation, meant for a CPU thread.

use std::io::Write;
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
use super::order::{BlockRow, Ordered, has, order};
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
    let mut global = Global::new(&input.batches);
    let ordered = order(&input.batches, &input.rows, &mut global)?;
    write_ordered(&input.batches, &ordered, &mut global, origin, options)
}

pub(super) fn write_ordered(
    batches: &[Arc<SpanBatch>],
    ordered: &Ordered,
    global: &mut Global<'_>,
    origin: BlockOrigin,
    options: WriterOptions,
) -> Result<Block, WriteError> {
    let counts = count_keys(batches, &ordered.rows, global);
    let keys = TypedKeys {
        span: counts.span.choose(ordered.rows.len(), global),
        event: counts.event.choose(counts.events, global),
        link: counts.link.choose(counts.links, global),
    };
    let meta = describe(batches, ordered, &counts, origin);

    let schema = schema::parquet_schema(&keys)?;
    let mut file = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties()))?;
    let mut groups = RowGroupWriter::new(batches, ordered, &keys, options)?;
    for range in row_groups(ordered, options.row_group_rows) {
        let mut group = file.next_row_group()?;
        groups.write(range, global, &mut group)?;
        group.close()?;
    }
    let mut summary = Summary::default();
    groups.summarise(&counts, &keys, global, &mut summary);
    summarise_resources(&ordered.rows, global, &mut summary)?;
    describe_in_footer(&mut file, &meta, &summary)?;
    let parquet = file.into_inner()?;

    let ids = ordered.traces.iter().map(|trace| ordered.rows[trace.first as usize].trace_id);
    let filter = TraceIdFilter::build(ids, ordered.traces.len())?.to_bytes();
    let parquet = Bytes::from(parquet);
    let tail_bytes = super::reader::tail_length(&parquet)?;
    Ok(Block { meta, parquet, filter: Bytes::from(filter), tail_bytes })
}

/// How every block's file is written.
pub(super) fn properties() -> WriterProperties {
    WriterProperties::builder()
        .set_writer_version(WriterVersion::PARQUET_2_0)
        .set_compression(Compression::ZSTD(Default::default()))
        .set_created_by(format!("spanhouse version {}", env!("CARGO_PKG_VERSION")))
        .set_bloom_filter_position(BloomFilterPosition::End)
        .build()
}

/// What a block says of itself, as key-value metadata of its file.
pub(super) fn describe_in_footer<W: Write + Send>(
    file: &mut SerializedFileWriter<W>,
    meta: &BlockMeta,
    summary: &Summary,
) -> Result<(), WriteError> {
    let mut put = |key: &str, value: String| file.append_key_value_metadata(KeyValue::new(key.to_owned(), value));
    put(metadata_key::FORMAT, schema::FORMAT_VERSION.to_string());
    put(metadata_key::BLOCK, serde_json::to_string(meta)?);
    put(metadata_key::SUMMARY, serde_json::to_string(summary)?);
    Ok(())
}

pub(super) struct Counts {
    pub(super) span: KeyCounts,
    pub(super) event: KeyCounts,
    pub(super) link: KeyCounts,
    /// Events and links in the block.
    events: usize,
    links: usize,
}

fn count_keys(batches: &[Arc<SpanBatch>], rows: &[BlockRow], global: &mut Global<'_>) -> Counts {
    // Items by batch and shape first: one addition an item, whatever attributes it has.
    let none = || batches.iter().map(|batch| vec![0; batch.shapes.len()]).collect::<Vec<Vec<u32>>>();
    let (mut span_shapes, mut event_shapes, mut link_shapes) = (none(), none(), none());
    let (mut event_count, mut link_count) = (0, 0);
    for row in rows {
        span_shapes[row.batch as usize][row.shape.index()] += 1;
        if row.has(has::EVENTS | has::LINKS) {
            let (batch, at) = row.source(batches);
            for event in batch.events_of(at).1 {
                event_shapes[row.batch as usize][event.attrs.shape.index()] += 1;
                event_count += 1;
            }
            for link in batch.links_of(at).1 {
                link_shapes[row.batch as usize][link.attrs.shape.index()] += 1;
                link_count += 1;
            }
        }
    }
    let mut sum = |items: Vec<Vec<u32>>| {
        let mut counts = KeyCounts::default();
        for ((number, batch), items) in (0..).zip(batches).zip(items) {
            counts.add(number, &batch.shapes, items, global);
        }
        counts
    };
    Counts {
        span: sum(span_shapes),
        event: sum(event_shapes),
        link: sum(link_shapes),
        events: event_count,
        links: link_count,
    }
}

fn describe(batches: &[Arc<SpanBatch>], ordered: &Ordered, counts: &Counts, origin: BlockOrigin) -> BlockMeta {
    const SIGNED: u64 = 1 << 63;
    let (mut range, mut starts) = (TimeRange::EMPTY, TimeRange::EMPTY);
    let mut used = vec![false; batches.len()];
    for row in &ordered.rows {
        used[row.batch as usize] = true;
        if row.start < SIGNED {
            range.include(UnixNanos(row.start));
            starts.include(UnixNanos(row.start));
        }
        if row.end < SIGNED {
            range.include(UnixNanos(row.end));
        }
    }
    let used = batches.iter().zip(used).filter(|(_, used)| *used);
    let received_max = used.map(|(batch, _)| batch.received_max).max().unwrap_or_default();
    let trace_of = |row: Option<&BlockRow>| row.map_or(TraceId::default(), |row| row.trace_id);
    BlockMeta {
        origin,
        rows: ordered.rows.len() as u64,
        traces: ordered.traces.len() as u64,
        events: counts.events as u64,
        links: counts.links as u64,
        duplicates_removed: ordered.duplicates_removed,
        range,
        min_start: starts.min,
        max_start: starts.max,
        min_trace_id: trace_of(ordered.rows.first()),
        max_trace_id: trace_of(ordered.rows.last()),
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

fn summarise_resources(rows: &[BlockRow], global: &Global<'_>, summary: &mut Summary) -> Result<(), WriteError> {
    let texts = |pick: fn(&BlockRow) -> u32| {
        let mut seen = vec![false; global.strings().len()];
        rows.iter().for_each(|row| seen[pick(row) as usize] = true);
        let mut texts: Vec<&str> =
            seen.iter().zip(0..).filter(|(seen, _)| **seen).map(|(_, symbol)| global.text(symbol)).collect();
        texts.sort_unstable();
        texts
    };
    let mut collector = AttributeCollector::default();
    for json in texts(|row| row.resource) {
        collector.add(&typed_json::parse_resource(json)?.attributes);
    }
    summary.resource = collector.finish();
    let mut collector = AttributeCollector::default();
    for json in texts(|row| row.scope) {
        collector.add(&typed_json::parse_scope(json)?.attributes);
    }
    summary.scope = collector.finish();
    Ok(())
}
