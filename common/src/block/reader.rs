//! The block reader: opens a block with one read from its end, and reads rows through a cache of pages and file segments.
//!
//! Owns: parsed footers, finding a trace in a block, and where decoding runs: rows of pages that are known, if few, where they
//! are wanted; all else on blocking threads, never on the I/O runtime. Does not own: which blocks exist (the manifest) or what
//! to look for (the querier).

use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::try_join_all;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::errors::ParquetError;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData};
use parquet::file::page_index::column_index::ColumnIndexMetaData;

use super::cache::{BlockCache, Fetched, PartCache};
use super::decode::BadPage;
use super::filter::TraceIdFilter;
use super::layout::Layout;
use super::meta::BlockMeta;
use super::page::{Inflater, TraceIdPage};
use super::part::BlockPart;
use super::rows::{self, Group};
use super::schema::{FORMAT_VERSION, metadata_key};
use super::spans::{self, Columns};
use super::summary::Summary;
use crate::columns::Part;
use crate::id::{TenantId, TraceId};
use crate::manifest::BlockEntry;
use crate::model::StoredSpan;
use crate::source::{Found, Opened, Source, SourceError};
use crate::store::paths::{BlockObject, TenantPaths};
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

impl BlockLocation {
    /// Of a block that a manifest names.
    pub fn of(tenant: &TenantId, entry: &BlockEntry) -> Self {
        let paths = TenantPaths::new(tenant);
        Self {
            parquet: paths.block(entry.id, BlockObject::Spans),
            filter: paths.block(entry.id, BlockObject::Filter),
            bytes: entry.size_bytes,
            tail_bytes: u64::from(entry.footer_bytes),
        }
    }

    /// Reads the trace-id filter.
    pub async fn open_filter(&self, store: &Arc<dyn ObjectStore>) -> Result<TraceIdFilter, SourceError> {
        let bytes = async { store.get(&self.filter).await?.bytes().await }.await;
        let bytes = bytes.map_err(|e| store_error(&self.filter, e))?;
        TraceIdFilter::from_bytes(&bytes).map_err(|e| damaged(&self.filter, e))
    }

    async fn tail(&self, store: &Arc<dyn ObjectStore>) -> Result<Bytes, SourceError> {
        let from = self.bytes.saturating_sub(self.tail_bytes.max(8));
        match store.get_range(&self.parquet, from..self.bytes).await {
            Ok(bytes) => Ok(bytes),
            Err(object_store::Error::NotFound { .. }) => Err(SourceError::Gone { what: self.parquet.to_string() }),
            Err(error) => match store.head(&self.parquet).await {
                // Trying again does not make it longer.
                Ok(found) if found.size != self.bytes => {
                    Err(damaged(&self.parquet, format!("it has {} bytes instead of {}", found.size, self.bytes)))
                }
                _ => Err(store_error(&self.parquet, error)),
            },
        }
    }
}

/// An open block.
pub struct BlockReader {
    store: Arc<dyn ObjectStore>,
    cache: PartCache,
    location: BlockLocation,
    meta: BlockMeta,
    parquet: Arc<ParquetMetaData>,
    layout: Layout,
    /// `None`: whoever asks for a trace has asked the filter before.
    filter: Option<TraceIdFilter>,
    /// Parsed when first asked for.
    summary: OnceLock<Arc<Summary>>,
}

impl std::fmt::Debug for BlockReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BlockReader({}, {} rows)", self.meta.origin.id, self.meta.rows)
    }
}

pub(super) fn store_error(what: &Path, error: object_store::Error) -> SourceError {
    match error {
        object_store::Error::NotFound { .. } => SourceError::Gone { what: what.to_string() },
        other => SourceError::Unreadable { what: what.to_string(), why: other.to_string() },
    }
}

pub(super) fn damaged(what: &Path, why: impl std::fmt::Display) -> SourceError {
    SourceError::Damaged { what: what.to_string(), why: why.to_string() }
}

impl BlockReader {
    /// Opens a block: its footer, page indexes and trace-id filter.
    pub async fn open(
        store: Arc<dyn ObjectStore>,
        cache: Arc<BlockCache>,
        location: BlockLocation,
    ) -> Result<Self, SourceError> {
        let (tail, filter) = futures::join!(location.tail(&store), location.open_filter(&store));
        Self::new(store, &cache, location, &tail?, Some(filter?))
    }

    /// Opens a block without its trace-id filter, in one request. A trace is then looked for in the page index and pages of
    /// trace ids, which is exact and costs reads.
    pub async fn open_footer(
        store: Arc<dyn ObjectStore>,
        cache: Arc<BlockCache>,
        location: BlockLocation,
    ) -> Result<Self, SourceError> {
        let tail = location.tail(&store).await?;
        Self::new(store, &cache, location, &tail, None)
    }

    fn new(
        store: Arc<dyn ObjectStore>,
        cache: &Arc<BlockCache>,
        location: BlockLocation,
        tail: &Bytes,
        filter: Option<TraceIdFilter>,
    ) -> Result<Self, SourceError> {
        let (parquet, meta) = parse_tail(tail, location.bytes).map_err(|e| damaged(&location.parquet, e))?;
        let layout = Layout::of(parquet.file_metadata().schema_descr()).map_err(|e| damaged(&location.parquet, e))?;
        Ok(Self {
            store,
            cache: cache.of_block(meta.origin.id),
            location,
            meta,
            parquet: Arc::new(parquet),
            layout,
            filter,
            summary: OnceLock::new(),
        })
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

    /// The summary, parsed once.
    pub fn summary_shared(&self) -> Result<Arc<Summary>, SourceError> {
        if let Some(known) = self.summary.get() {
            return Ok(Arc::clone(known));
        }
        let parsed = Arc::new(self.summary()?);
        Ok(Arc::clone(self.summary.get_or_init(|| parsed)))
    }

    pub(super) fn cache(&self) -> &PartCache {
        &self.cache
    }

    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Bytes this reader holds on the heap, beside the cache.
    pub fn heap_bytes(&self) -> usize {
        let summary = key_value(&self.parquet, metadata_key::SUMMARY).map_or(0, str::len);
        let filter = self.filter.as_ref().map_or(0, TraceIdFilter::heap_bytes);
        filter + self.parquet.memory_size() + self.layout.heap_bytes() + summary
    }

    /// Every span of the block, trace by trace as stored: for verification and tests.
    pub async fn all_spans(self: &Arc<Self>) -> Result<Vec<StoredSpan>, SourceError> {
        let mut out = Vec::new();
        for group in 0..self.parquet.num_row_groups() {
            let rows = 0..self.parquet.row_group(group).num_rows() as usize;
            out.extend(self.read_rows(group, rows, None).await?.0);
        }
        Ok(out)
    }

    /// Some rows of a row group as spans; they must be whole traces. For readers with less memory than a row group takes.
    pub async fn spans(self: &Arc<Self>, group: usize, rows: Range<usize>) -> Result<Vec<StoredSpan>, SourceError> {
        Ok(self.read_rows(group, rows, None).await?.0)
    }

    pub(super) fn group(&self, number: usize) -> Group<'_> {
        Group { parquet: &self.parquet, number, cache: &self.cache }
    }

    pub(super) fn damaged(&self, why: impl std::fmt::Display) -> SourceError {
        damaged(&self.location.parquet, why)
    }

    /// Pages of the trace-id column that may hold `id`.
    fn candidate_pages(&self, group: Group<'_>, id: TraceId) -> Result<Range<usize>, BadPage> {
        let pages = group.pages(self.layout.trace_id)?.len();
        let index = self.parquet.page_index().and_then(|index| index.column_index(group.number, self.layout.trace_id));
        let Some(ColumnIndexMetaData::FIXED_LEN_BYTE_ARRAY(bounds)) = index else { return Ok(0..pages) };
        let holds = |page: &usize| {
            let (min, max) = (bounds.min_value(*page), bounds.max_value(*page));
            min.is_none_or(|min| min <= &id.0[..]) && max.is_none_or(|max| max >= &id.0[..])
        };
        let Some(first) = (0..pages).find(holds) else { return Ok(0..0) };
        Ok(first..(first..pages).take_while(holds).last().unwrap_or(first) + 1)
    }

    pub(super) async fn fetch(&self, ranges: &[Range<u64>]) -> Result<Fetched, SourceError> {
        let location = &self.location;
        let fetched = self.cache.fetch(&self.store, &location.parquet, location.bytes, ranges).await;
        fetched.map_err(|e| store_error(&location.parquet, e))
    }

    /// Decodes: here if it is `little`, else on a blocking thread.
    async fn decode<T: Send + 'static>(
        self: &Arc<Self>,
        little: bool,
        work: impl FnOnce(&Self) -> Result<T, ParquetError> + Send + 'static,
    ) -> Result<T, SourceError> {
        // A panic comes from bytes that a decoder did not expect: trying again would not help.
        let panicked = || self.damaged("its decoder panicked");
        if little {
            let done = std::panic::catch_unwind(AssertUnwindSafe(|| work(self))).map_err(|_| panicked())?;
            return done.map_err(|e| self.damaged(e));
        }
        let this = Arc::clone(self);
        match tokio::task::spawn_blocking(move || work(&this)).await {
            Ok(done) => done.map_err(|e| self.damaged(e)),
            Err(e) if e.is_panic() => Err(panicked()),
            Err(e) => Err(SourceError::Unreadable { what: self.location.parquet.to_string(), why: e.to_string() }),
        }
    }

    /// Rows of a row group as spans, and the stored bytes they took. The rows must be whole traces, or one trace with this id.
    async fn read_rows(
        self: &Arc<Self>,
        group: usize,
        rows: Range<usize>,
        trace_id: Option<TraceId>,
    ) -> Result<(Vec<StoredSpan>, u64), SourceError> {
        let little = rows.len() <= LITTLE_ROWS;
        let (count, wanted) = (rows.len(), self.layout.wanted(trace_id.is_none()));
        let mut plan = self.decode(little, move |this| Ok(rows::plan(this.group(group), &wanted, &rows)?)).await?;
        let (bytes, ranges) = (plan.bytes, std::mem::take(&mut plan.ranges));
        let fetched = if ranges.is_empty() { Fetched::default() } else { self.fetch(&ranges).await? };
        let little = little && plan.is_done();
        let spans = self.decode(little, move |this| {
            let read = plan.finish(&fetched, &this.cache)?;
            let schema = this.parquet.file_metadata().schema_descr();
            spans::build(Columns { layout: &this.layout, schema, rows: count, trace_id, read })
        });
        Ok((spans.await?, bytes))
    }

    /// Rows of a trace in a row group.
    async fn rows_of_trace(self: &Arc<Self>, number: usize, id: TraceId) -> Result<Range<usize>, SourceError> {
        let (group, column) = (self.group(number), self.layout.trace_id);
        let candidates = self.candidate_pages(group, id).map_err(|e| self.damaged(e))?;
        let pages = group.pages(column).map_err(|e| self.damaged(e))?;
        let place = |page| pages.place(page);
        let mut known: Vec<_> = candidates.clone().map(|page| self.cache.trace_ids(place(page).start)).collect();
        let of_page = |(page, _): &(usize, &Option<_>)| place(*page);
        let missing: Vec<Range<u64>> =
            candidates.clone().zip(&known).filter(|(_, known)| known.is_none()).map(|found| of_page(&found)).collect();
        if !missing.is_empty() {
            let fetched = self.fetch(&missing).await?;
            let places: Vec<Range<u64>> = candidates.clone().map(place).collect();
            let little = missing.len() <= LITTLE_PAGES;
            let read = self.decode(little, move |this| {
                let (chunk, mut inflater) = (this.group(number).chunk(column), Inflater::default());
                for (known, place) in known.iter_mut().zip(places).filter(|(known, _)| known.is_none()) {
                    let raw = fetched.get(place.clone()).ok_or(BadPage("its bytes were not fetched"))?;
                    let page = Arc::new(TraceIdPage::read(&raw, &chunk, &mut inflater)?);
                    this.cache.keep_trace_ids(place.start, &page);
                    *known = Some(page);
                }
                Ok(known)
            });
            known = read.await?;
        }
        let mut found = 0..0;
        for (page, ids) in candidates.zip(known.into_iter().flatten()) {
            let (on, has) = (pages.rows(page), ids.rows_of(id));
            if has.is_empty() {
                continue;
            }
            let (from, to) = (on.start + has.start, on.start + has.end);
            if to > on.end || (!found.is_empty() && found.end != from) {
                return Err(self.damaged("trace ids out of order"));
            }
            found = if found.is_empty() { from..to } else { found.start..to };
        }
        Ok(found)
    }

    async fn find_in_group(self: &Arc<Self>, group: usize, id: TraceId) -> Result<Found, SourceError> {
        let rows = self.rows_of_trace(group, id).await?;
        if rows.is_empty() {
            return Ok(Found::default());
        }
        let (spans, inspected_bytes) = self.read_rows(group, rows, Some(id)).await?;
        Ok(Found { spans, inspected_bytes })
    }
}

/// So many rows of pages that are known are decoded at once, where they are wanted: below a millisecond.
const LITTLE_ROWS: usize = 200;

/// So many pages of trace ids are inflated at once, where they are wanted.
const LITTLE_PAGES: usize = 2;

fn key_value<'m>(metadata: &'m ParquetMetaData, key: &str) -> Result<&'m str, ParquetError> {
    let all = metadata.file_metadata().key_value_metadata();
    let found = all.and_then(|all| all.iter().find(|kv| kv.key == key)).and_then(|kv| kv.value.as_deref());
    found.ok_or_else(|| ParquetError::General(format!("not a block: its footer has no `{key}`")))
}

/// The summary in a footer.
pub(super) fn summary_of(metadata: &ParquetMetaData) -> Result<Summary, ParquetError> {
    let text = key_value(metadata, metadata_key::SUMMARY)?;
    serde_json::from_str(text).map_err(|e| ParquetError::General(format!("`{}`: {e}", metadata_key::SUMMARY)))
}

/// Parses a block's footer and page indexes out of the end of the file.
pub(super) fn parse_tail(tail: &Bytes, file_bytes: u64) -> Result<(ParquetMetaData, BlockMeta), ParquetError> {
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
    let columns = metadata.file_metadata().schema_descr().num_columns();
    for (at, group) in metadata.row_groups().iter().enumerate() {
        if group.num_columns() != columns {
            return bad("columns of a row group");
        }
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
pub fn tail_length(file: &Bytes) -> Result<u64, ParquetError> {
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

    fn stored_bytes(&self) -> u64 {
        self.location.bytes
    }

    async fn open(&self) -> Result<Opened, SourceError> {
        let summary = self.summary_shared()?;
        let parts = BlockPart::all(self, &tokio::runtime::Handle::current());
        Ok(Opened::Block { parts: parts.into_iter().map(|part| Arc::new(part) as Arc<dyn Part>).collect(), summary })
    }

    async fn find_trace(&self, id: TraceId) -> Result<Found, SourceError> {
        let mut found = Found::default();
        if self.filter.as_ref().is_some_and(|filter| !filter.may_contain(id)) {
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
