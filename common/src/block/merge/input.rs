//! One input of a merge: its footer, its traces in order, and its columns strip by strip.
//!
//! Owns reading pages and dictionaries out of the file. Dictionaries are kept between strips while there is room for them: a
//! strip is a fraction of a row group, and each would inflate the whole dictionary again.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use parquet::basic::Type as PhysicalType;
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;

use super::super::cache::{BlockCache, PartCache};
use super::super::decode::BadPage;
use super::super::layout::Layout;
use super::super::meta::BlockMeta;
use super::super::page::{Chunk, ColumnRows, DataPage, Dictionary, Inflater, TraceIdPage};
use super::super::reader::{parse_tail, summary_of};
use super::super::rows::Group;
use super::super::summary::Summary;
use super::InInput;
use super::bytes::FileBytes;
use crate::batch::ValueKind;
use crate::id::{BlockId, TraceId};

pub(super) type Result<T> = std::result::Result<T, ParquetError>;

/// Dictionaries of all inputs together take at most this much between strips. What does not fit is inflated again.
const KEPT_DICTIONARIES_BYTES: usize = 32 << 20;

/// Dictionaries that are kept, first come first served: strips take turns through all of them, and evicting the oldest would
/// evict each before it is used again.
#[derive(Debug, Default)]
pub(super) struct Kept {
    bytes: usize,
    /// By input and place in its file.
    dictionaries: HashMap<(u32, u64), Arc<Dictionary>, foldhash::fast::RandomState>,
}

/// An open input.
pub(super) struct Input {
    number: u32,
    id: BlockId,
    file: FileBytes,
    pub(super) parquet: ParquetMetaData,
    pub(super) meta: BlockMeta,
    pub(super) layout: Layout,
    pub(super) summary: Summary,
    cache: PartCache,
}

/// What reading takes along, one for all inputs.
#[derive(Default)]
pub(super) struct Scratch {
    pub(super) inflater: RefCell<Inflater>,
    kept: RefCell<Kept>,
}

fn read_error(error: std::io::Error) -> ParquetError {
    ParquetError::External(Box::new(error))
}

impl Input {
    /// Opens a file of which nothing is trusted but that it is there. `tail_bytes` is what its manifest entry says.
    pub(super) fn open(number: u32, id: BlockId, file: FileBytes, tail_bytes: u64) -> Result<Self> {
        let length = file.len();
        let tail = file.read(length.saturating_sub(tail_bytes.max(8))..length).map_err(read_error)?;
        let (parquet, meta) = parse_tail(&tail, length)?;
        let layout = Layout::of(parquet.file_metadata().schema_descr())?;
        let summary = summary_of(&parquet)?;
        // Keeps nothing: pages are read in order, once or twice.
        let cache = BlockCache::new(0).of_block(meta.origin.id);
        Ok(Self { number, id, file, parquet, meta, layout, summary, cache })
    }

    /// Marks an error as one of this input, unless it is the local disk's: only a place beyond the end is the file's own fault.
    pub(super) fn own(&self, error: ParquetError) -> ParquetError {
        if let ParquetError::External(source) = &error
            && source.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() != std::io::ErrorKind::UnexpectedEof)
        {
            return error;
        }
        ParquetError::External(Box::new(InInput { block: self.id, why: error.to_string() }))
    }

    pub(super) fn group(&self, number: usize) -> Group<'_> {
        Group { parquet: &self.parquet, number, cache: &self.cache }
    }

    fn raw(&self, place: Range<u64>) -> Result<bytes::Bytes> {
        self.file.read(place).map_err(read_error)
    }

    /// Appends rows of a column to `out`, which is empty. Codes come with their dictionary.
    pub(super) fn read(
        &self,
        scratch: &Scratch,
        group: usize,
        column: usize,
        rows: Range<usize>,
        mut out: ColumnRows,
    ) -> Result<(ColumnRows, Chunk)> {
        let group = self.group(group);
        let chunk = group.chunk(column);
        let pages = group.pages(column)?;
        for page in pages.of_rows(&rows) {
            let has = pages.rows(page);
            let wanted = rows.start.max(has.start) - has.start..rows.end.min(has.end) - has.start;
            let raw = self.raw(pages.place(page))?;
            let data = DataPage::read(&raw, &chunk, &mut scratch.inflater.borrow_mut())?;
            data.rows(&chunk, wanted, &mut out)?;
        }
        if out.is_coded() {
            let place = group.dictionary(column).ok_or(BadPage("coded page without dictionary"))?;
            let dictionary = self.dictionary(scratch, place, &chunk)?;
            out.explain(&dictionary, &chunk)?;
        }
        Ok((out, chunk))
    }

    fn dictionary(&self, scratch: &Scratch, place: Range<u64>, chunk: &Chunk) -> Result<Arc<Dictionary>> {
        let key = (self.number, place.start);
        if let Some(known) = scratch.kept.borrow().dictionaries.get(&key) {
            return Ok(Arc::clone(known));
        }
        let raw = self.raw(place)?;
        let read = Arc::new(Dictionary::read(&raw, chunk, &mut scratch.inflater.borrow_mut())?);
        let mut kept = scratch.kept.borrow_mut();
        let bytes = read.heap_bytes();
        if kept.bytes + bytes <= KEPT_DICTIONARIES_BYTES {
            kept.bytes += bytes;
            kept.dictionaries.insert(key, Arc::clone(&read));
        }
        Ok(read)
    }

    /// The kind of value a typed column has.
    pub(super) fn kind_of(&self, column: usize) -> ValueKind {
        match self.parquet.file_metadata().schema_descr().column(column).physical_type() {
            PhysicalType::INT64 => ValueKind::Int,
            PhysicalType::DOUBLE => ValueKind::Double,
            PhysicalType::BOOLEAN => ValueKind::Bool,
            _ => ValueKind::Str,
        }
    }

    /// Bytes a row takes in the widest column of a row group, inflated: what bounds how many rows are merged at once.
    pub(super) fn widest_row(&self, group: usize) -> usize {
        let group = self.group(group).metadata();
        let widest = group.columns().iter().map(|chunk| chunk.uncompressed_size().max(0)).max().unwrap_or(0);
        (widest / group.num_rows().max(1)) as usize + 1
    }
}

impl Scratch {
    /// Forgets dictionaries of row groups of an input that were passed.
    pub(super) fn forget(&self, input: &Input, passed_group: usize) {
        let group = input.group(passed_group).metadata();
        let mut kept = self.kept.borrow_mut();
        let starts = group.columns().iter().filter_map(|chunk| chunk.dictionary_page_offset());
        for start in starts {
            if let Some(gone) = kept.dictionaries.remove(&(input.number, start as u64)) {
                kept.bytes -= gone.heap_bytes();
            }
        }
    }
}

/// Rows of one trace in an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TraceRows {
    pub(super) id: TraceId,
    pub(super) group: usize,
    pub(super) rows: Range<usize>,
}

/// Walks the traces of an input in order, a page of ids at a time.
pub(super) struct TraceCursor {
    group: usize,
    page: usize,
    ids: Vec<(TraceId, usize)>,
    at: usize,
    /// The last id given out: they must ascend over the whole file.
    last: Option<TraceId>,
}

impl TraceCursor {
    pub(super) fn new() -> Self {
        Self { group: 0, page: 0, ids: Vec::new(), at: 0, last: None }
    }

    /// The next trace, or none at the end.
    pub(super) fn next(&mut self, input: &Input, scratch: &Scratch) -> Result<Option<TraceRows>> {
        while self.at == self.ids.len() {
            if !self.read_page(input, scratch)? {
                return Ok(None);
            }
        }
        let (id, start) = self.ids[self.at];
        let group = self.group;
        // A trace ends where another one begins, be that on a later page; the row group ends it too.
        let end = loop {
            self.at += 1;
            if let Some((other, start)) = self.ids.get(self.at) {
                if *other != id {
                    break *start;
                }
                continue;
            }
            let pages = input.group(group).pages(input.layout.trace_id)?.len();
            if self.page >= pages {
                break input.group(group).rows();
            }
            self.read_page(input, scratch)?;
            if self.ids.first().is_some_and(|(first, _)| *first != id) {
                break self.ids[0].1;
            }
        };
        if self.last.is_some_and(|last| last >= id) {
            return Err(BadPage("trace ids out of order").into());
        }
        self.last = Some(id);
        if self.at == self.ids.len() && self.page >= input.group(group).pages(input.layout.trace_id)?.len() {
            (self.group, self.page) = (group + 1, 0);
            self.ids.clear();
            self.at = 0;
        }
        if start >= end || end > input.group(group).rows() {
            return Err(BadPage("rows of a trace").into());
        }
        Ok(Some(TraceRows { id, group, rows: start..end }))
    }

    /// Reads the next page of the row group, or the first one of the next group. `self.at` is 0 afterwards.
    fn read_page(&mut self, input: &Input, scratch: &Scratch) -> Result<bool> {
        if self.group >= input.parquet.num_row_groups() {
            return Ok(false);
        }
        let group = input.group(self.group);
        let pages = group.pages(input.layout.trace_id)?;
        let raw = input.raw(pages.place(self.page))?;
        let chunk = group.chunk(input.layout.trace_id);
        let read = TraceIdPage::read(&raw, &chunk, &mut scratch.inflater.borrow_mut())?;
        let first = pages.rows(self.page).start;
        self.ids.clear();
        self.ids.extend(read.iter().map(|(id, row)| (id, first + row as usize)));
        self.at = 0;
        self.page += 1;
        if self.ids.is_empty() { Err(BadPage("a page without trace ids").into()) } else { Ok(true) }
    }
}
