//! The block reader: opens a block with one read from its end, and reads rows through a cache of file segments.
//!
//! Owns: parsed footers, finding a trace in a block, turning rows into spans. Does not own: which blocks exist (the manifest)
//! or what to look for (the querier). Decoding runs on blocking threads, never on the I/O runtime.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::try_join_all;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::errors::ParquetError;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData};
use parquet::file::page_index::column_index::ColumnIndexMetaData;
use parquet::file::page_index::offset_index::OffsetIndexMetaData;

use super::cache::SegmentCache;
use super::column::{self, ColumnValues, Fetched};
use super::filter::TraceIdFilter;
use super::meta::BlockMeta;
use super::schema::{FORMAT_VERSION, metadata_key};
use super::spans::{self, Leaf};
use super::summary::Summary;
use crate::id::TraceId;
use crate::model::StoredSpan;
use crate::source::{Found, Source, SourceError};
use crate::time::TimeRange;

/// Where a block's objects are.
#[derive(Clone, Debug)]
pub struct BlockLocation {
    pub parquet: Path,
    pub filter: Path,
    pub bytes: u64,
    /// From the footer's start, page indexes included, to the end of the file.
    pub tail_bytes: u64,
}

/// An open block.
pub struct BlockReader {
    store: Arc<dyn ObjectStore>,
    cache: Arc<SegmentCache>,
    location: BlockLocation,
    meta: BlockMeta,
    parquet: Arc<ParquetMetaData>,
    filter: TraceIdFilter,
    cache_key: u64,
}

impl std::fmt::Debug for BlockReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BlockReader({}, {} rows)", self.meta.origin.id, self.meta.rows)
    }
}

fn store_error(what: &Path, error: object_store::Error) -> SourceError {
    match error {
        object_store::Error::NotFound { .. } => SourceError::Gone { what: what.to_string() },
        other => SourceError::Unreadable { what: what.to_string(), why: other.to_string() },
    }
}

fn damaged(what: &Path, why: impl std::fmt::Display) -> SourceError {
    SourceError::Damaged { what: what.to_string(), why: why.to_string() }
}

impl BlockReader {
    /// Opens a block: its footer, page indexes and trace-id filter.
    pub async fn open(
        store: Arc<dyn ObjectStore>,
        cache: Arc<SegmentCache>,
        location: BlockLocation,
    ) -> Result<Self, SourceError> {
        let tail_from = location.bytes.saturating_sub(location.tail_bytes.max(8));
        let (tail, filter) = futures::join!(store.get_range(&location.parquet, tail_from..location.bytes), async {
            store.get(&location.filter).await?.bytes().await
        },);
        let tail = tail.map_err(|e| store_error(&location.parquet, e))?;
        let filter = filter.map_err(|e| store_error(&location.filter, e))?;
        let filter = TraceIdFilter::from_bytes(&filter).map_err(|e| damaged(&location.filter, e))?;
        let (parquet, meta) = parse_tail(&tail, location.bytes).map_err(|e| damaged(&location.parquet, e))?;
        let cache_key = cache.next_key();
        Ok(Self { store, cache, location, meta, parquet: Arc::new(parquet), filter, cache_key })
    }

    pub fn meta(&self) -> &BlockMeta {
        &self.meta
    }

    /// The parsed Parquet footer.
    pub fn parquet(&self) -> &ParquetMetaData {
        &self.parquet
    }

    pub fn summary(&self) -> Result<Summary, SourceError> {
        let text = key_value(&self.parquet, metadata_key::SUMMARY).map_err(|e| damaged(&self.location.parquet, e))?;
        serde_json::from_str(text).map_err(|e| damaged(&self.location.parquet, e))
    }

    /// Bytes this reader holds on the heap, beside the cache.
    pub fn heap_bytes(&self) -> usize {
        self.filter.heap_bytes() + self.parquet.memory_size()
    }

    /// Every span of the block, trace by trace as stored: for verification and tests.
    pub async fn all_spans(self: &Arc<Self>) -> Result<Vec<StoredSpan>, SourceError> {
        let mut out = Vec::new();
        for group in 0..self.parquet.num_row_groups() {
            let rows = 0..self.parquet.row_group(group).num_rows() as usize;
            out.extend(self.read_rows(group, rows).await?.0);
        }
        Ok(out)
    }

    fn index(&self, group: usize, column: usize) -> Result<&OffsetIndexMetaData, ParquetError> {
        let index = self.parquet.page_index().and_then(|index| index.offset_index(group, column));
        index.ok_or_else(|| ParquetError::General("block without offset index".into()))
    }

    /// Pages of the trace-id column that may hold `id`, as a range of rows.
    fn candidate_rows(&self, group: usize, id: TraceId) -> Result<Range<usize>, ParquetError> {
        let rows = self.parquet.row_group(group).num_rows() as usize;
        let column = self.parquet.page_index().and_then(|index| index.column_index(group, TRACE_ID_COLUMN));
        let Some(ColumnIndexMetaData::FIXED_LEN_BYTE_ARRAY(bounds)) = column else { return Ok(0..rows) };
        let index = self.index(group, TRACE_ID_COLUMN)?;
        let pages = index.page_locations().len();
        let holds = |page: usize| {
            let (min, max) = (bounds.min_value(page), bounds.max_value(page));
            min.is_none_or(|min| min <= &id.0[..]) && max.is_none_or(|max| max >= &id.0[..])
        };
        let first = (0..pages).find(|page| holds(*page));
        let Some(first) = first else { return Ok(0..0) };
        let last = (first..pages).take_while(|page| holds(*page)).last().unwrap_or(first);
        let start = column::rows_of_page(index, rows, first).start;
        Ok(start..column::rows_of_page(index, rows, last).end)
    }

    async fn fetch(&self, ranges: Vec<Range<u64>>) -> Result<Arc<Fetched>, SourceError> {
        let parts = self
            .cache
            .fetch(self.cache_key, &self.store, &self.location.parquet, self.location.bytes, ranges)
            .await
            .map_err(|e| store_error(&self.location.parquet, e))?;
        Ok(Arc::new(Fetched::new(parts, self.location.bytes)))
    }

    /// Decodes on a blocking thread.
    async fn decode<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, ParquetError> + Send + 'static,
    ) -> Result<T, SourceError> {
        let this = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || work(&this)).await;
        let done = done.map_err(|e| {
            let (what, why) = (self.location.parquet.to_string(), e.to_string());
            // A panic comes from bytes that a decoder did not expect: trying again would not help.
            if e.is_panic() { SourceError::Damaged { what, why } } else { SourceError::Unreadable { what, why } }
        })?;
        done.map_err(|e| damaged(&self.location.parquet, e))
    }

    /// Rows of a row group as spans, and the encoded bytes they took. The rows must be whole traces.
    async fn read_rows(self: &Arc<Self>, group: usize, rows: Range<usize>) -> Result<(Vec<StoredSpan>, u64), SourceError> {
        let mut ranges = Vec::new();
        let metadata = self.parquet.row_group(group);
        for column in 0..metadata.num_columns() {
            let index = self.index(group, column).map_err(|e| damaged(&self.location.parquet, e))?;
            ranges.extend(column::ranges(metadata, column, index, &rows));
        }
        let bytes = ranges.iter().map(|r| r.end - r.start).sum();
        let fetched = self.fetch(ranges).await?;
        let spans = self
            .decode(move |this| {
                let metadata = this.parquet.row_group(group);
                let mut leaves = Vec::with_capacity(metadata.num_columns());
                for column in 0..metadata.num_columns() {
                    let read = column::read(&fetched, metadata, column, this.index(group, column)?, &rows)?;
                    let descriptor = metadata.column(column).column_descr();
                    leaves.push(Leaf {
                        path: descriptor.path().parts().to_vec(),
                        max_definition: descriptor.max_def_level() as u8,
                        rows: read,
                    });
                }
                spans::build(leaves, rows.len())
            })
            .await?;
        Ok((spans, bytes))
    }

    async fn find_in_group(self: &Arc<Self>, group: usize, id: TraceId) -> Result<Found, SourceError> {
        let candidates = self.candidate_rows(group, id).map_err(|e| damaged(&self.location.parquet, e))?;
        if candidates.is_empty() {
            return Ok(Found::default());
        }
        let index = self.index(group, TRACE_ID_COLUMN).map_err(|e| damaged(&self.location.parquet, e))?;
        let ranges = column::ranges(self.parquet.row_group(group), TRACE_ID_COLUMN, index, &candidates);
        let fetched = self.fetch(ranges).await?;
        let rows = self
            .decode(move |this| {
                let metadata = this.parquet.row_group(group);
                let index = this.index(group, TRACE_ID_COLUMN)?;
                let ids = column::read(&fetched, metadata, TRACE_ID_COLUMN, index, &candidates)?;
                let ColumnValues::Bytes(ids) = ids.values else {
                    return Err(ParquetError::General("trace ids of another type".into()));
                };
                let from = ids.partition_point(|other| other[..] < id.0[..]);
                let count = ids[from..].iter().take_while(|other| other[..] == id.0[..]).count();
                Ok(candidates.start + from..candidates.start + from + count)
            })
            .await?;
        if rows.is_empty() {
            return Ok(Found::default());
        }
        let (spans, inspected_bytes) = self.read_rows(group, rows).await?;
        Ok(Found { spans, inspected_bytes })
    }
}

/// Position of the trace-id column in the schema.
const TRACE_ID_COLUMN: usize = 0;

fn key_value<'m>(metadata: &'m ParquetMetaData, key: &str) -> Result<&'m str, ParquetError> {
    let all = metadata.file_metadata().key_value_metadata();
    let found = all.and_then(|all| all.iter().find(|kv| kv.key == key)).and_then(|kv| kv.value.as_deref());
    found.ok_or_else(|| ParquetError::General(format!("not a block: its footer has no `{key}`")))
}

/// Parses a block's footer and page indexes out of the end of the file.
fn parse_tail(tail: &Bytes, file_bytes: u64) -> Result<(ParquetMetaData, BlockMeta), ParquetError> {
    let mut reader = ParquetMetaDataReader::new().with_page_index_policy(PageIndexPolicy::Required);
    reader.try_parse_sized(tail, file_bytes)?;
    let metadata = reader.finish()?;
    let format = key_value(&metadata, metadata_key::FORMAT)?;
    if format != FORMAT_VERSION.to_string() {
        let text =
            format!("block format {format} is not known to this version, which reads format {FORMAT_VERSION}; upgrade");
        return Err(ParquetError::General(text));
    }
    let meta: BlockMeta = serde_json::from_str(key_value(&metadata, metadata_key::BLOCK)?)
        .map_err(|e| ParquetError::General(format!("`{}`: {e}", metadata_key::BLOCK)))?;
    check_layout(&metadata, &meta, file_bytes)?;
    Ok((metadata, meta))
}

/// Checks what reading relies on, so that a damaged footer is an error here and not a panic or an endless allocation later:
/// rows add up, chunks and pages lie inside the file, and every page has its place in both indexes.
fn check_layout(metadata: &ParquetMetaData, meta: &BlockMeta, file_bytes: u64) -> Result<(), ParquetError> {
    let bad = |what: &str| Err(ParquetError::General(format!("footer is damaged: {what}")));
    let rows_of = |group: &RowGroupMetaData| u64::try_from(group.num_rows()).ok();
    let rows = metadata.row_groups().iter().try_fold(0u64, |sum, group| sum.checked_add(rows_of(group)?));
    if rows != Some(meta.rows) || meta.rows > u64::from(u32::MAX) {
        return bad("rows of its row groups");
    }
    let inside = |from: i64, length: i64| {
        let end =
            u64::try_from(from).ok().zip(u64::try_from(length).ok()).and_then(|(from, length)| from.checked_add(length));
        end.is_some_and(|end| end <= file_bytes)
    };
    for (at, group) in metadata.row_groups().iter().enumerate() {
        for (column, chunk) in group.columns().iter().enumerate() {
            let first = chunk.dictionary_page_offset().unwrap_or(chunk.data_page_offset());
            if first > chunk.data_page_offset() || !inside(first, chunk.compressed_size()) {
                return bad("place of a column");
            }
            let index = metadata.page_index().and_then(|index| index.offset_index(at, column));
            let Some(pages) = index.map(|index| index.page_locations()) else { return bad("no offset index") };
            let starts =
                pages.first().is_some_and(|page| page.first_row_index == 0 && page.offset == chunk.data_page_offset());
            let ascends = pages.is_sorted_by(|a, b| a.first_row_index < b.first_row_index && a.offset < b.offset);
            let ends = pages.last().is_some_and(|page| page.first_row_index < group.num_rows());
            if !starts || !ascends || !ends || !pages.iter().all(|p| inside(p.offset, i64::from(p.compressed_page_size))) {
                return bad("offset index");
            }
            let bounds = metadata.page_index().and_then(|index| index.column_index(at, column));
            if let Some(ColumnIndexMetaData::FIXED_LEN_BYTE_ARRAY(bounds)) = bounds
                && bounds.num_pages() != pages.len() as u64
            {
                return bad("column index");
            }
        }
    }
    Ok(())
}

/// Length of the part of a finished file that [`BlockReader::open`] wants to read first.
pub(super) fn tail_length(file: &Bytes) -> Result<u64, ParquetError> {
    let (metadata, _) = parse_tail(file, file.len() as u64)?;
    let chunks = metadata.row_groups().iter().flat_map(|group| group.columns());
    let first =
        chunks.filter_map(|c| c.column_index_range().into_iter().chain(c.offset_index_range()).map(|r| r.start).min());
    let footer = file.len().checked_sub(8).and_then(|at| file[at..].first_chunk::<4>());
    let footer = footer.map_or(0, |bytes| u64::from(u32::from_le_bytes(*bytes)) + 8);
    Ok(first.min().map_or(footer, |start| file.len() as u64 - start))
}

#[async_trait]
impl Source for Arc<BlockReader> {
    fn name(&self) -> String {
        self.meta.origin.id.to_string()
    }

    fn time_range(&self) -> TimeRange {
        // Spans with times from 2^63 on are in outlier blocks, whose range leaves them out: no hint may exclude those.
        if self.meta.origin.window.is_none() { TimeRange::ALL } else { self.meta.range }
    }

    fn is_live(&self) -> bool {
        false
    }

    async fn find_trace(&self, id: TraceId) -> Result<Found, SourceError> {
        let mut found = Found::default();
        if !self.filter.may_contain(id) {
            return Ok(found);
        }
        // A trace never straddles row groups, so at most one has it; the page index decides without reading.
        let groups = (0..self.parquet.num_row_groups()).map(|group| self.find_in_group(group, id));
        for part in try_join_all(groups).await? {
            found.spans.extend(part.spans);
            found.inspected_bytes += part.inspected_bytes;
        }
        Ok(found)
    }
}
