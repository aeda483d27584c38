//! Reading a range of rows of one column out of bytes already fetched.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::{Encoding, Type as PhysicalType};
use parquet::column::page::{Page, PageReader};
use parquet::errors::ParquetError;
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::page_index::offset_index::OffsetIndexMetaData;
use parquet::file::reader::{ChunkReader, Length};
use parquet::file::serialized_reader::SerializedPageReader;

use super::decode::{BadPage, Hybrid, delta};
use super::encode::code_width;

/// Parts of a file that were fetched.
#[derive(Debug, Default)]
pub(crate) struct Fetched {
    /// Start offset and bytes, ascending, not overlapping.
    parts: Vec<(u64, Bytes)>,
    file_bytes: u64,
}

impl Fetched {
    pub(crate) fn new(mut parts: Vec<(u64, Bytes)>, file_bytes: u64) -> Self {
        parts.sort_unstable_by_key(|(start, _)| *start);
        Self { parts, file_bytes }
    }

    fn get(&self, start: u64, length: usize) -> Option<Bytes> {
        let end = start + length as u64;
        let mut at = self.parts.partition_point(|(s, _)| *s <= start).checked_sub(1)?;
        let (s, bytes) = &self.parts[at];
        let skip = (start - s) as usize;
        if skip + length <= bytes.len() {
            return Some(bytes.slice(skip..skip + length));
        }
        // Spread over neighbouring parts: joined.
        let mut out = Vec::with_capacity(length);
        let mut position = start;
        while position < end {
            let (s, bytes) = self.parts.get(at)?;
            let skip = usize::try_from(position.checked_sub(*s)?).ok()?;
            let rest = bytes.get(skip..).filter(|rest| !rest.is_empty())?;
            let take = rest.len().min((end - position) as usize);
            out.extend_from_slice(&rest[..take]);
            position += take as u64;
            at += 1;
        }
        Some(Bytes::from(out))
    }
}

impl Length for Fetched {
    fn len(&self) -> u64 {
        self.file_bytes
    }
}

impl ChunkReader for Fetched {
    type T = bytes::buf::Reader<Bytes>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        use bytes::Buf;
        // Page readers with page locations ask for exact ranges; only a header probe comes here.
        let at = self.parts.partition_point(|(s, _)| *s <= start).checked_sub(1);
        let part = at.map(|at| &self.parts[at]).filter(|(s, bytes)| start < s + bytes.len() as u64);
        let (s, bytes) = part.ok_or_else(|| ParquetError::EOF(format!("offset {start} was not fetched")))?;
        Ok(bytes.slice((start - s) as usize..).reader())
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        self.get(start, length).ok_or_else(|| ParquetError::EOF(format!("{length} bytes at {start} were not fetched")))
    }
}

/// Values of a range of rows, nulls left out.
#[derive(Debug)]
pub(crate) enum ColumnValues {
    Bytes(Vec<Bytes>),
    I32(Vec<i32>),
    I64(Vec<i64>),
    F64(Vec<f64>),
    Bool(Vec<bool>),
}

impl ColumnValues {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Bytes(all) => all.len(),
            Self::I32(all) => all.len(),
            Self::I64(all) => all.len(),
            Self::F64(all) => all.len(),
            Self::Bool(all) => all.len(),
        }
    }
}

/// A range of rows of a column.
#[derive(Debug)]
pub(crate) struct ColumnRows {
    pub(crate) values: ColumnValues,
    /// Empty if the column has no such level.
    pub(crate) definition: Vec<u8>,
    pub(crate) repetition: Vec<u8>,
}

/// Byte ranges of the file that hold these rows of a column: its dictionary, and the pages the rows are on.
pub(crate) fn ranges(
    group: &RowGroupMetaData,
    column: usize,
    index: &OffsetIndexMetaData,
    rows: &Range<usize>,
) -> Vec<Range<u64>> {
    let chunk = group.column(column);
    let mut out = Vec::new();
    if let Some(dictionary) = chunk.dictionary_page_offset() {
        out.push(dictionary as u64..chunk.data_page_offset() as u64);
    }
    for (at, page) in index.page_locations().iter().enumerate() {
        let on = rows_of_page(index, group.num_rows() as usize, at);
        if on.start < rows.end && rows.start < on.end {
            out.push(page.offset as u64..page.offset as u64 + page.compressed_page_size as u64);
        }
    }
    out
}

/// The rows on a page.
pub(crate) fn rows_of_page(index: &OffsetIndexMetaData, total: usize, page: usize) -> Range<usize> {
    let locations = index.page_locations();
    let end = locations.get(page + 1).map_or(total, |next| next.first_row_index as usize);
    locations[page].first_row_index as usize..end
}

/// Reads rows of a column.
pub(crate) fn read(
    source: &Arc<Fetched>,
    group: &RowGroupMetaData,
    column: usize,
    index: &OffsetIndexMetaData,
    rows: &Range<usize>,
) -> Result<ColumnRows, ParquetError> {
    let chunk = group.column(column);
    let total = group.num_rows() as usize;
    let descriptor = chunk.column_descr();
    let locations = index.page_locations();
    let mut reader = SerializedPageReader::new(Arc::clone(source), chunk, total, Some(locations.clone()))?;
    let (max_definition, max_repetition) = (descriptor.max_def_level() as u32, descriptor.max_rep_level() as u32);
    let mut out = ColumnRows { values: empty(descriptor.physical_type()), definition: Vec::new(), repetition: Vec::new() };
    let mut dictionary: Option<Dictionary> = None;
    if chunk.dictionary_page_offset().is_some()
        && let Some(Page::DictionaryPage { buf, num_values, .. }) = reader.get_next_page()?
    {
        let width = fixed_width(descriptor);
        dictionary = Some(Dictionary::new(buf, num_values as usize, descriptor.physical_type(), width)?);
    }
    for on in (0..locations.len()).map(|page| rows_of_page(index, total, page)) {
        if on.start >= rows.end {
            break;
        }
        if on.end <= rows.start {
            reader.skip_next_page()?;
            continue;
        }
        match reader.get_next_page()?.ok_or(bad(BadPage("fewer pages than the index says")))? {
            Page::DataPageV2 { buf, num_values, encoding, def_levels_byte_len, rep_levels_byte_len, .. } => {
                // A run of levels takes a few bytes whatever it claims to hold: only the footer bounds it.
                if i64::from(num_values) > chunk.num_values() {
                    return Err(bad(BadPage("more values than its chunk has")));
                }
                let want = rows.start.max(on.start) - on.start..rows.end.min(on.end) - on.start;
                let repetition_end = rep_levels_byte_len as usize;
                let values_from = repetition_end + def_levels_byte_len as usize;
                if values_from > buf.len() {
                    return Err(bad(BadPage("levels longer than the page")));
                }
                let slots = if max_repetition == 0 {
                    want.clone()
                } else {
                    let levels =
                        Hybrid::new(&buf[..repetition_end], code_width(max_repetition as usize + 1)).map_err(bad)?;
                    let levels = levels.values(0..num_values as usize).map_err(bad)?;
                    let slots = slots_of_rows(&levels, &want);
                    out.repetition.extend(levels[slots.clone()].iter().map(|level| *level as u8));
                    slots
                };
                let values = if max_definition == 0 {
                    slots
                } else {
                    let width = code_width(max_definition as usize + 1);
                    let levels = Hybrid::new(&buf[repetition_end..values_from], width).map_err(bad)?;
                    let before = levels.count(0..slots.start, max_definition).map_err(bad)?;
                    let from = out.definition.len();
                    levels
                        .visit(slots, |level, times| out.definition.extend(std::iter::repeat_n(level as u8, times)))
                        .map_err(bad)?;
                    let present = out.definition[from..].iter().filter(|l| u32::from(**l) == max_definition).count();
                    before..before + present
                };
                let body = buf.slice(values_from..);
                append(&mut out.values, &body, encoding, values, dictionary.as_ref(), fixed_width(descriptor))?;
            }
            Page::DataPage { .. } | Page::DictionaryPage { .. } => {
                return Err(bad(BadPage("a kind of page that never stands here in this format")));
            }
        }
    }
    Ok(out)
}

fn bad(error: BadPage) -> ParquetError {
    ParquetError::External(Box::new(error))
}

fn fixed_width(descriptor: &parquet::schema::types::ColumnDescriptor) -> usize {
    if descriptor.physical_type() == PhysicalType::FIXED_LEN_BYTE_ARRAY {
        descriptor.type_length().max(0) as usize
    } else {
        0
    }
}

fn empty(physical: PhysicalType) -> ColumnValues {
    match physical {
        PhysicalType::INT32 => ColumnValues::I32(Vec::new()),
        PhysicalType::INT64 => ColumnValues::I64(Vec::new()),
        PhysicalType::DOUBLE => ColumnValues::F64(Vec::new()),
        PhysicalType::BOOLEAN => ColumnValues::Bool(Vec::new()),
        _ => ColumnValues::Bytes(Vec::new()),
    }
}

/// Slots of rows `want` (rows of this page), from the repetition levels of the page.
fn slots_of_rows(levels: &[u32], want: &Range<usize>) -> Range<usize> {
    let mut starts = levels.iter().enumerate().filter(|(_, level)| **level == 0).map(|(at, _)| at);
    let from = starts.nth(want.start).unwrap_or(levels.len());
    if want.is_empty() {
        return from..from;
    }
    let to = starts.nth(want.len() - 1).unwrap_or(levels.len());
    from..to
}

/// A dictionary page, read where it lies.
struct Dictionary {
    buf: Bytes,
    /// Where each entry starts; one more for the end.
    offsets: Vec<u32>,
    prefix: usize,
}

impl Dictionary {
    fn new(buf: Bytes, count: usize, physical: PhysicalType, width: usize) -> Result<Self, ParquetError> {
        let step = match physical {
            PhysicalType::BYTE_ARRAY => 0,
            PhysicalType::FIXED_LEN_BYTE_ARRAY => width,
            PhysicalType::INT32 => 4,
            _ => 8,
        };
        if count > buf.len().max(1) {
            return Err(bad(BadPage("dictionary shorter than its count")));
        }
        let mut offsets = Vec::with_capacity(count + 1);
        let mut at = 0usize;
        for _ in 0..count {
            offsets.push(at as u32);
            at += if step > 0 { step } else { 4 + length_at(&buf, at)? };
        }
        if at > buf.len() {
            return Err(bad(BadPage("dictionary shorter than its count")));
        }
        offsets.push(at as u32);
        Ok(Self { buf, offsets, prefix: if step > 0 { 0 } else { 4 } })
    }

    fn get(&self, code: u32) -> Result<Bytes, ParquetError> {
        let code = code as usize;
        if code + 1 >= self.offsets.len() {
            return Err(bad(BadPage("code beyond the dictionary")));
        }
        Ok(self.buf.slice(self.offsets[code] as usize + self.prefix..self.offsets[code + 1] as usize))
    }
}

fn length_at(buf: &[u8], at: usize) -> Result<usize, ParquetError> {
    let bytes = buf.get(at..at + 4).and_then(|b| b.first_chunk::<4>()).ok_or(bad(BadPage("truncated value")))?;
    Ok(u32::from_le_bytes(*bytes) as usize)
}

fn append(
    out: &mut ColumnValues,
    body: &Bytes,
    encoding: Encoding,
    range: Range<usize>,
    dictionary: Option<&Dictionary>,
    width: usize,
) -> Result<(), ParquetError> {
    if range.is_empty() {
        return Ok(());
    }
    match encoding {
        Encoding::RLE_DICTIONARY => {
            let dictionary = dictionary.ok_or(bad(BadPage("coded page without dictionary")))?;
            let (bits, codes) = body.split_first().ok_or(bad(BadPage("empty coded page")))?;
            for code in Hybrid::new(codes, *bits).map_err(bad)?.values(range).map_err(bad)? {
                let value = dictionary.get(code)?;
                let wide = || value.first_chunk::<8>().copied().ok_or(bad(BadPage("short dictionary value")));
                match out {
                    ColumnValues::Bytes(all) => all.push(value),
                    ColumnValues::I32(all) => {
                        let bytes = value.first_chunk::<4>().ok_or(bad(BadPage("short dictionary value")))?;
                        all.push(i32::from_le_bytes(*bytes));
                    }
                    ColumnValues::I64(all) => all.push(i64::from_le_bytes(wide()?)),
                    ColumnValues::F64(all) => all.push(f64::from_le_bytes(wide()?)),
                    ColumnValues::Bool(_) => return Err(bad(BadPage("coded booleans"))),
                }
            }
            Ok(())
        }
        Encoding::DELTA_BINARY_PACKED => match out {
            ColumnValues::I64(all) => delta(body, range, false).map(|values| all.extend(values)).map_err(bad),
            ColumnValues::I32(all) => {
                delta(body, range, true).map(|values| all.extend(values.into_iter().map(|v| v as i32))).map_err(bad)
            }
            _ => Err(bad(BadPage("delta packing of other than integers"))),
        },
        Encoding::PLAIN => plain(out, body, range, width),
        _ => Err(bad(BadPage("an encoding this format never has"))),
    }
}

fn plain(out: &mut ColumnValues, body: &Bytes, range: Range<usize>, width: usize) -> Result<(), ParquetError> {
    let short = || bad(BadPage("plain page too short"));
    let slice = |step: usize| body.get(range.start * step..range.end * step).ok_or_else(short);
    match out {
        ColumnValues::Bytes(all) if width > 0 => {
            slice(width)?;
            all.extend(range.map(|at| body.slice(at * width..(at + 1) * width)));
        }
        ColumnValues::Bytes(all) => {
            let mut at = 0;
            for index in 0..range.end {
                let len = length_at(body, at)?;
                let end = (at + 4).checked_add(len).filter(|end| *end <= body.len()).ok_or_else(short)?;
                if index >= range.start {
                    all.push(body.slice(at + 4..end));
                }
                at = end;
            }
        }
        ColumnValues::I32(all) => all.extend(slice(4)?.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b))),
        ColumnValues::I64(all) => all.extend(slice(8)?.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b))),
        ColumnValues::F64(all) => all.extend(slice(8)?.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b))),
        ColumnValues::Bool(all) => {
            for at in range {
                let byte = body.get(at / 8).ok_or_else(short)?;
                all.push(byte >> (at % 8) & 1 == 1);
            }
        }
    }
    Ok(())
}
