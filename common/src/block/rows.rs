//! Rows of a row group, column by column: which pages they need, what of it is known, and reading the rest.
//!
//! Owns the two steps of a read. [`plan`] uses only what the cache has, so that a read of warm pages is done there and then;
//! [`RowsPlan::finish`] takes the bytes that were missing. Does not own where bytes come from nor what columns mean.

use std::ops::Range;
use std::sync::Arc;

use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};
use parquet::file::page_index::offset_index::OffsetIndexMetaData;

use super::cache::{Fetched, PartCache};
use super::decode::BadPage;
use super::page::{Chunk, ColumnRows, DataPage, Dictionary, Inflater};

type Result<T> = std::result::Result<T, BadPage>;

/// A column to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Its number in the schema.
    pub(crate) column: usize,
    /// Another member of its list, wanted before it: where that says the lists are empty, this is not read.
    pub(crate) list: Option<usize>,
}

/// One row group of an open block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group<'b> {
    pub(crate) parquet: &'b ParquetMetaData,
    pub(crate) number: usize,
    pub(crate) cache: &'b PartCache,
}

impl<'b> Group<'b> {
    pub(crate) fn metadata(&self) -> &'b RowGroupMetaData {
        self.parquet.row_group(self.number)
    }

    pub(crate) fn rows(&self) -> usize {
        self.metadata().num_rows() as usize
    }

    pub(crate) fn chunk(&self, column: usize) -> Chunk {
        Chunk::of(self.metadata().column(column))
    }

    pub(crate) fn pages(&self, column: usize) -> Result<Pages<'b>> {
        let index = self.parquet.page_index().and_then(|index| index.offset_index(self.number, column));
        Ok(Pages { index: index.ok_or(BadPage("no offset index"))?, rows: self.rows() })
    }

    /// Where the dictionary page of a column lies.
    pub(crate) fn dictionary(&self, column: usize) -> Option<Range<u64>> {
        let chunk = self.metadata().column(column);
        chunk.dictionary_page_offset().map(|start| start as u64..chunk.data_page_offset() as u64)
    }
}

/// The data pages of a column chunk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pages<'b> {
    index: &'b OffsetIndexMetaData,
    rows: usize,
}

impl Pages<'_> {
    pub(crate) fn len(&self) -> usize {
        self.index.page_locations().len()
    }

    /// The rows on a page.
    pub(crate) fn rows(&self, page: usize) -> Range<usize> {
        let all = self.index.page_locations();
        let end = all.get(page + 1).map_or(self.rows, |next| next.first_row_index as usize);
        all[page].first_row_index as usize..end
    }

    /// Where a page lies in the file.
    pub(crate) fn place(&self, page: usize) -> Range<u64> {
        let location = &self.index.page_locations()[page];
        let start = location.offset as u64;
        start..start + location.compressed_page_size.max(0) as u64
    }

    /// The pages that hold these rows.
    pub(crate) fn of_rows(&self, rows: &Range<usize>) -> Range<usize> {
        if rows.is_empty() {
            return 0..0;
        }
        let all = self.index.page_locations();
        let first = all.partition_point(|page| page.first_row_index as usize <= rows.start).saturating_sub(1);
        let end = all.partition_point(|page| (page.first_row_index as usize) < rows.end);
        first..end.max(first)
    }
}

/// A page of a column, and its rows that are wanted, numbered from its first.
#[derive(Debug)]
struct PageRows {
    place: Range<u64>,
    rows: Range<usize>,
    known: Option<Arc<DataPage>>,
}

/// What is left to do for a column.
#[derive(Debug)]
struct Rest {
    wanted: Wanted,
    chunk: Chunk,
    pages: Vec<PageRows>,
    dictionary: Option<(Range<u64>, Option<Arc<Dictionary>>)>,
}

/// A read of some rows, as far as the cache allows.
#[derive(Debug, Default)]
pub(crate) struct RowsPlan {
    /// By column; `None` where nothing is wanted, or still missing.
    done: Vec<Option<ColumnRows>>,
    rest: Vec<Rest>,
    /// What is missing of the file.
    pub(crate) ranges: Vec<Range<u64>>,
    /// Bytes of the pages and dictionaries that hold the wanted rows, known or not.
    pub(crate) bytes: u64,
}

/// Reads what the cache has of `rows` and tells what is missing. `wanted` names the first member of a list before the others.
pub(crate) fn plan(group: Group<'_>, wanted: &[Wanted], rows: &Range<usize>) -> Result<RowsPlan> {
    let mut out = RowsPlan::default();
    out.done.resize_with(group.metadata().num_columns(), || None);
    for &wanted in wanted {
        let pages = group.pages(wanted.column)?;
        let dictionary = group.dictionary(wanted.column);
        let on = pages.of_rows(rows);
        let length = |place: &Range<u64>| place.end.saturating_sub(place.start);
        out.bytes += dictionary.as_ref().map_or(0, length) + on.clone().map(|page| length(&pages.place(page))).sum::<u64>();
        if out.skips(wanted) {
            continue;
        }
        let page = |page| {
            let (place, has) = (pages.place(page), pages.rows(page));
            let rows = rows.start.max(has.start) - has.start..rows.end.min(has.end) - has.start;
            PageRows { known: group.cache.data(place.start), place, rows }
        };
        let pages: Vec<PageRows> = on.map(page).collect();
        let mut rest = Rest { wanted, chunk: group.chunk(wanted.column), pages, dictionary: None };
        let is_known = rest.pages.iter().all(|page| page.known.is_some());
        let column = if is_known { Some(rest.read(|_| Err(BadPage("not known")))?) } else { None };
        if let Some(place) = dictionary
            && column.as_ref().is_none_or(ColumnRows::is_coded)
        {
            let known = group.cache.dictionary(place.start);
            rest.dictionary = Some((place, known));
        }
        out.add(rest, column)?;
    }
    Ok(out)
}

impl RowsPlan {
    /// Whether a column is of lists that are known to be empty.
    fn skips(&self, wanted: Wanted) -> bool {
        let list = wanted.list.and_then(|list| self.done.get(list)).and_then(Option::as_ref);
        list.is_some_and(|list| list.definition.iter().all(|level| *level == 0))
    }

    /// Notes a column: as done, if nothing of it is missing.
    fn add(&mut self, rest: Rest, column: Option<ColumnRows>) -> Result<()> {
        let unknown = rest.pages.iter().filter(|page| page.known.is_none()).map(|page| page.place.clone());
        self.ranges.extend(unknown);
        match (column, &rest.dictionary) {
            (Some(mut column), Some((_, Some(dictionary)))) => {
                column.explain(dictionary, &rest.chunk)?;
                self.done[rest.wanted.column] = Some(column);
                return Ok(());
            }
            (Some(column), None) if !column.is_coded() => {
                self.done[rest.wanted.column] = Some(column);
                return Ok(());
            }
            (_, Some((place, None))) => self.ranges.push(place.clone()),
            (None, _) => {}
            (Some(_), None) => return Err(BadPage("coded page without dictionary")),
        }
        self.rest.push(rest);
        Ok(())
    }

    /// Whether the cache had everything.
    pub(crate) fn is_done(&self) -> bool {
        self.rest.is_empty()
    }

    /// Reads the rest out of what was fetched, and keeps its pages. Returns columns by number; those of empty lists are missing.
    pub(crate) fn finish(mut self, fetched: &Fetched, cache: &PartCache) -> Result<Vec<Option<ColumnRows>>> {
        let mut inflater = Inflater::default();
        let get = |place: &Range<u64>| fetched.get(place.clone()).ok_or(BadPage("its bytes were not fetched"));
        for mut rest in std::mem::take(&mut self.rest) {
            if self.skips(rest.wanted) {
                continue;
            }
            let chunk = rest.chunk;
            let mut column = rest.read(|place| {
                let page = Arc::new(DataPage::read(&get(place)?, &chunk, &mut inflater)?);
                cache.keep_data(place.start, &page);
                Ok(page)
            })?;
            if column.is_coded() {
                let dictionary = match rest.dictionary.ok_or(BadPage("coded page without dictionary"))? {
                    (_, Some(known)) => known,
                    (place, None) => {
                        let read = Arc::new(Dictionary::read(&get(&place)?, &chunk, &mut inflater)?);
                        cache.keep_dictionary(place.start, &read);
                        read
                    }
                };
                column.explain(&dictionary, &chunk)?;
            }
            self.done[rest.wanted.column] = Some(column);
        }
        Ok(self.done)
    }
}

impl Rest {
    fn read(&mut self, mut get: impl FnMut(&Range<u64>) -> Result<Arc<DataPage>>) -> Result<ColumnRows> {
        let mut out = ColumnRows::new();
        for part in &mut self.pages {
            let page = match &part.known {
                Some(known) => Arc::clone(known),
                None => get(&part.place)?,
            };
            page.rows(&self.chunk, part.rows.clone(), &mut out)?;
        }
        Ok(out)
    }
}
