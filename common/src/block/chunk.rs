//! One column chunk: from a column's values in memory to encoded pages and the metadata the parquet crate needs to adopt them.
//!
//! Owns the choice of encoding per chunk and of compression per page. Does not own the footer, which the parquet crate writes.
//! Pages begin and end at row boundaries. Columns without levels have data pages of version 2, compressed where that saves a
//! tenth; columns with levels have version 1, because only there are levels compressed too, which saves 2 bytes a span.
//!
//! Codes are packed to whole bytes where that ends up smaller after zstd (it finds repeating traces only at byte boundaries:
//! measured 3.6 against 4.4 bytes a span), else to as few bits as they need.

use std::cell::Cell;
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::{CompressionCodec, Encoding, Type as PhysicalType};
use parquet::bloom_filter::Sbbf;
use parquet::column::page::{CompressedPage, Page, PageWriter};
use parquet::column::writer::ColumnCloseResult;
use parquet::data_type::{AsBytes, ByteArray, FixedLenByteArray};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{ColumnChunkMetaData, ColumnIndexBuilder, OffsetIndexBuilder};
use parquet::file::statistics::Statistics;
use parquet::file::writer::{SerializedPageWriter, TrackedWrite};
use parquet::schema::types::ColumnDescPtr;

use super::bitmap::Bitmap;
use super::encode;

/// zstd level of plain numbers.
const NUMBERS_LEVEL: i32 = 3;
/// Values per page: few enough that a point read decodes little, enough that headers and the offset index stay small.
const PAGE_VALUES: usize = 8192;
/// Rows per page, where most of them have no value or all the same.
const MAX_PAGE_ROWS: usize = 65_536;
/// Values of a page before compression: wide strings are cut by bytes first.
const PAGE_BYTES: usize = 128 * 1024;

/// A chunk's values, nulls left out.
#[derive(Debug)]
pub(crate) enum Values<'a> {
    /// Codes into a dictionary of byte strings.
    Coded {
        codes: &'a [u32],
        dictionary: &'a [&'a [u8]],
    },
    Bytes(&'a [&'a [u8]]),
    /// Values of `width` bytes, one after the other.
    Fixed {
        width: usize,
        bytes: &'a [u8],
    },
    I32(&'a [i32]),
    I64(&'a [i64]),
    F64(&'a [f64]),
    Bool(&'a [bool]),
}

impl Values<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Coded { codes, .. } => codes.len(),
            Self::Bytes(values) => values.len(),
            Self::Fixed { width, bytes } => bytes.len() / width,
            Self::I32(values) => values.len(),
            Self::I64(values) => values.len(),
            Self::F64(values) => values.len(),
            Self::Bool(values) => values.len(),
        }
    }
}

/// Where values stand.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Levels<'a> {
    /// In every row.
    Required,
    /// In the rows whose bit is set.
    Optional(&'a Bitmap),
    /// As definition and repetition level of every slot say.
    Nested { definition: &'a [u8], repetition: &'a [u8] },
}

/// What else the chunk gets.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Extras {
    /// Minimum and maximum of the chunk in the footer.
    pub(crate) statistics: bool,
    /// Minimum and maximum of each page in the column index.
    pub(crate) page_statistics: bool,
    /// The values rise from row to row: their differences are smaller than any dictionary.
    pub(crate) ascending: bool,
    /// A split-block bloom filter over the distinct values, with this false positive rate.
    pub(crate) filter: Option<f64>,
}

/// Encodes chunks; keeps the compressor between them.
pub(crate) struct ChunkEncoder {
    zstd: zstd::bulk::Compressor<'static>,
    /// For plain numbers, of which the first level finds too little.
    numbers: zstd::bulk::Compressor<'static>,
    /// Presence bits of one page.
    bits: Vec<u8>,
}

impl std::fmt::Debug for ChunkEncoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ChunkEncoder")
    }
}

/// How the values of a chunk are laid out.
enum Plan<'a> {
    Dictionary { codes: std::borrow::Cow<'a, [u32]>, count: usize, page: Vec<u8>, packing: Cell<Option<u8>> },
    Delta,
    Plain,
}

impl ChunkEncoder {
    pub(crate) fn new(level: i32) -> Result<Self> {
        let compressor = |level| zstd::bulk::Compressor::new(level).map_err(external);
        Ok(Self { zstd: compressor(level)?, numbers: compressor(level.max(NUMBERS_LEVEL))?, bits: Vec::new() })
    }

    /// Encodes a column of `rows` rows. Returns its bytes and what [`SerializedRowGroupWriter::append_column`] wants to know.
    ///
    /// [`SerializedRowGroupWriter::append_column`]: parquet::file::writer::SerializedRowGroupWriter::append_column
    pub(crate) fn encode(
        &mut self,
        column: &ColumnDescPtr,
        rows: usize,
        levels: Levels<'_>,
        values: &Values<'_>,
        extras: Extras,
    ) -> Result<(Bytes, ColumnCloseResult)> {
        let plan = if extras.ascending { Plan::Delta } else { self.plan(values, column)? };
        let mut out = TrackedWrite::new(Vec::new());
        let mut uncompressed = 0;
        let mut dictionary_offset = None;
        let encoding = match &plan {
            Plan::Dictionary { .. } => Encoding::RLE_DICTIONARY,
            Plan::Delta => Encoding::DELTA_BINARY_PACKED,
            Plan::Plain => Encoding::PLAIN,
        };
        if let Plan::Dictionary { count, page, .. } = &plan {
            dictionary_offset = Some(0);
            // Dictionary pages have no flag of their own, so they are always compressed.
            let buf = Bytes::from(self.compress(page)?);
            let dictionary =
                Page::DictionaryPage { buf, num_values: *count as u32, encoding: Encoding::PLAIN, is_sorted: false };
            let spec = SerializedPageWriter::new(&mut out).write_page(CompressedPage::new(dictionary, page.len()))?;
            uncompressed += spec.uncompressed_size;
        }
        let data_offset = out.bytes_written() as i64;
        let mut offsets = OffsetIndexBuilder::new();
        let mut index = extras.page_statistics.then(|| ColumnIndexBuilder::new(column.physical_type()));
        let slots = match levels {
            Levels::Required => values.len(),
            Levels::Optional(_) => rows,
            Levels::Nested { definition, .. } => definition.len(),
        };
        let mut pages = PageCutter::new(rows, slots, levels, column.max_def_level(), page_rows(values, &plan, rows));
        while let Some(part) = pages.next() {
            let page = self.data_page(column, &part, levels, values, &plan, encoding)?;
            let spec = SerializedPageWriter::new(&mut out).write_page(page)?;
            uncompressed += spec.uncompressed_size;
            offsets.append_row_count(part.rows as i64);
            offsets.append_offset_and_size(spec.offset as i64, spec.compressed_size as i32);
            if let Some(index) = &mut index {
                let (min, max) = page_bounds(values, part.values.clone());
                let nulls = part.slots.len() - part.values.len();
                index.append(part.values.is_empty(), min, max, nulls as i64, None);
            }
        }
        let compressed = out.bytes_written() as i64;
        let mut metadata = ColumnChunkMetaData::builder(Arc::clone(column))
            .set_compression_codec(CompressionCodec::ZSTD)
            .set_encodings(match encoding {
                Encoding::RLE_DICTIONARY => vec![Encoding::PLAIN, Encoding::RLE, Encoding::RLE_DICTIONARY],
                other => vec![Encoding::RLE, other],
            })
            .set_num_values(slots as i64)
            .set_total_compressed_size(compressed)
            .set_total_uncompressed_size(uncompressed as i64)
            .set_data_page_offset(data_offset)
            .set_dictionary_page_offset(dictionary_offset);
        if extras.statistics
            && let Some(statistics) = statistics(values, slots - values.len())
        {
            metadata = metadata.set_statistics(statistics);
        }
        let close = ColumnCloseResult {
            bytes_written: compressed as u64,
            rows_written: rows as u64,
            metadata: metadata.build()?,
            bloom_filter: extras.filter.map(|fpp| filter(values, fpp)).transpose()?,
            column_index: index.filter(ColumnIndexBuilder::valid).map(ColumnIndexBuilder::build).transpose()?,
            offset_index: Some(offsets.build()),
        };
        Ok((Bytes::from(out.into_inner()?), close))
    }

    /// How to lay out a chunk's values: decided by its first page where that must be tried.
    fn plan<'a>(&mut self, values: &Values<'a>, column: &ColumnDescPtr) -> Result<Plan<'a>> {
        let plan = plan(values, column);
        let first = 0..values.len().min(PAGE_VALUES);
        let (Plan::Delta, Values::I64(_), 64..) = (&plan, values, first.len()) else { return Ok(plan) };
        let (mut delta, mut plain) = (Vec::new(), Vec::new());
        encode_plain(values, &Plan::Delta, first.clone(), &mut delta);
        encode_plain(values, &Plan::Plain, first, &mut plain);
        // Where values jump, as start times do from trace to trace, the largest difference sets the width of all near it. Plain
        // values take longer to read: they must be worth it.
        let delta = self.compress(&delta)?.len().min(delta.len());
        let pays = self.numbers.compress(&plain).map_err(external)?.len() * 100 < delta * 97;
        Ok(if pays { Plan::Plain } else { plan })
    }

    fn compress(&mut self, bytes: &[u8]) -> Result<Vec<u8>> {
        self.zstd.compress(bytes).map_err(external)
    }

    fn data_page(
        &mut self,
        column: &ColumnDescPtr,
        part: &PagePart,
        levels: Levels<'_>,
        values: &Values<'_>,
        plan: &Plan<'_>,
        encoding: Encoding,
    ) -> Result<CompressedPage> {
        let mut buf = Vec::new();
        match levels {
            Levels::Required => {}
            Levels::Optional(present) => prefixed(&mut buf, |buf| {
                present.bytes(part.slots.clone(), &mut self.bits);
                encode::hybrid_bits(&self.bits, part.rows, buf);
            }),
            Levels::Nested { definition, repetition } => {
                for (all, max) in [(repetition, column.max_rep_level()), (definition, column.max_def_level())] {
                    let width = encode::code_width(max as usize + 1);
                    prefixed(&mut buf, |buf| encode::hybrid(&all[part.slots.clone()], width, buf));
                }
            }
        }
        let head = buf.len();
        self.encode_values(values, plan, part.values.clone(), &mut buf)?;
        let uncompressed_size = buf.len();
        let is_plain_number = matches!((plan, values), (Plan::Plain, Values::I64(_)));
        if head > 0 {
            let buf = if is_plain_number { self.numbers.compress(&buf).map_err(external)? } else { self.compress(&buf)? };
            let buf = Bytes::from(buf);
            let page = Page::DataPage {
                buf,
                num_values: part.slots.len() as u32,
                encoding,
                def_level_encoding: Encoding::RLE,
                rep_level_encoding: Encoding::RLE,
                statistics: None,
            };
            return Ok(CompressedPage::new(page, uncompressed_size));
        }
        // A page that does not shrink by a tenth is not worth inflating.
        let compressed = match is_plain_number {
            _ if buf.len() <= 64 => None,
            true => Some(self.numbers.compress(&buf).map_err(external)?),
            false => Some(self.compress(&buf)?),
        };
        let is_compressed = compressed.as_ref().is_some_and(|c| c.len() * 10 < buf.len() * 9);
        let page = Page::DataPageV2 {
            buf: Bytes::from(compressed.filter(|_| is_compressed).unwrap_or(buf)),
            num_values: part.slots.len() as u32,
            encoding,
            num_nulls: 0,
            num_rows: part.rows as u32,
            def_levels_byte_len: 0,
            rep_levels_byte_len: 0,
            is_compressed,
            statistics: None,
        };
        Ok(CompressedPage::new(page, uncompressed_size))
    }

    /// Appends a page's values to its levels.
    fn encode_values(
        &mut self,
        values: &Values<'_>,
        plan: &Plan<'_>,
        range: std::ops::Range<usize>,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let Plan::Dictionary { codes, count, packing, .. } = plan else {
            encode_plain(values, plan, range, out);
            return Ok(());
        };
        let codes = &codes[range];
        let bits = match packing.get() {
            Some(bits) => bits,
            None => {
                let bits = self.better_packing(codes, encode::code_width(*count))?;
                packing.set(Some(bits));
                bits
            }
        };
        out.push(bits);
        encode::hybrid(codes, bits, out);
        Ok(())
    }

    /// Bits per code that a chunk's first page comes out smallest with: as few as needed, or whole bytes.
    fn better_packing(&mut self, codes: &[u32], bits: u8) -> Result<u8> {
        let whole = bits.next_multiple_of(8);
        if whole == bits || bits <= 1 || whole > 16 || codes.len() < 64 {
            return Ok(bits);
        }
        let (mut tight, mut aligned) = (Vec::new(), Vec::new());
        encode::hybrid(codes, bits, &mut tight);
        encode::hybrid(codes, whole, &mut aligned);
        let tight = self.compress(&tight)?.len().min(tight.len());
        // Codes of whole bytes take longer to inflate: they must be worth it.
        Ok(if self.compress(&aligned)?.len() * 20 < tight * 19 { whole } else { bits })
    }
}

fn external(error: std::io::Error) -> ParquetError {
    ParquetError::External(Box::new(error))
}

/// Appends levels with their length in front, as data pages of version 1 have them.
fn prefixed(buf: &mut Vec<u8>, levels: impl FnOnce(&mut Vec<u8>)) {
    let length_at = buf.len();
    buf.extend_from_slice(&[0; 4]);
    levels(buf);
    let length = (buf.len() - length_at - 4) as u32;
    buf[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
}

/// Rows per page, so that it has about [`PAGE_VALUES`] values and [`PAGE_BYTES`] bytes: a multiple of 64, so that pages begin at
/// whole words of a [`Bitmap`].
fn page_rows(values: &Values<'_>, plan: &Plan<'_>, rows: usize) -> usize {
    let bytes = match values {
        Values::Bytes(values) => values.iter().map(|v| v.len() + 4).sum::<usize>(),
        Values::Fixed { bytes, .. } => bytes.len(),
        Values::Coded { codes, .. } => codes.len() * 2,
        _ => values.len() * 8,
    };
    if matches!(plan, Plan::Dictionary { count: 0..=1, .. }) {
        return MAX_PAGE_ROWS;
    }
    let by_bytes = rows * PAGE_BYTES / bytes.max(1);
    let by_values = rows * PAGE_VALUES / values.len().max(1);
    by_bytes.min(by_values).clamp(64, MAX_PAGE_ROWS) / 64 * 64
}

/// A page's share of a chunk.
#[derive(Debug)]
struct PagePart {
    rows: usize,
    slots: std::ops::Range<usize>,
    values: std::ops::Range<usize>,
}

struct PageCutter<'a> {
    rows_left: usize,
    page_rows: usize,
    slot: usize,
    slots: usize,
    value: usize,
    levels: Levels<'a>,
    max_definition: u8,
}

impl<'a> PageCutter<'a> {
    fn new(rows: usize, slots: usize, levels: Levels<'a>, max_definition: i16, page_rows: usize) -> Self {
        Self { rows_left: rows, page_rows, slot: 0, slots, value: 0, levels, max_definition: max_definition as u8 }
    }

    fn next(&mut self) -> Option<PagePart> {
        if self.rows_left == 0 {
            return None;
        }
        let rows = self.page_rows.min(self.rows_left);
        self.rows_left -= rows;
        let from = self.slot;
        let to = match self.levels {
            Levels::Required | Levels::Optional(_) => from + rows,
            Levels::Nested { .. } if self.rows_left == 0 => self.slots,
            Levels::Nested { repetition, .. } => {
                // A row starts where nothing repeats: the page ends before the row after its last.
                let starts = repetition[from..].iter().enumerate().filter(|(_, level)| **level == 0);
                from + starts.map(|(at, _)| at).nth(rows).unwrap_or(self.slots - from)
            }
        };
        let present = match self.levels {
            Levels::Required => to - from,
            Levels::Optional(present) => present.count(from..to),
            Levels::Nested { definition, .. } => {
                definition[from..to].iter().filter(|level| **level == self.max_definition).count()
            }
        };
        let part = PagePart { rows, slots: from..to, values: self.value..self.value + present };
        self.slot = to;
        self.value += present;
        Some(part)
    }
}

/// The most entries a dictionary may have for `values` values to be worth it: from 40 % on, plain text compresses better.
pub(crate) fn dictionary_pays(distinct: usize, values: usize) -> bool {
    distinct * 5 <= values * 2 || distinct <= 16
}

fn plan<'a>(values: &Values<'a>, column: &ColumnDescPtr) -> Plan<'a> {
    match values {
        Values::Coded { codes, dictionary } => {
            let mut page = Vec::with_capacity(dictionary.iter().map(|v| v.len() + 4).sum());
            let fixed = column.physical_type() == PhysicalType::FIXED_LEN_BYTE_ARRAY;
            for value in *dictionary {
                if !fixed {
                    page.extend_from_slice(&(value.len() as u32).to_le_bytes());
                }
                page.extend_from_slice(value);
            }
            Plan::Dictionary {
                codes: std::borrow::Cow::Borrowed(codes),
                count: dictionary.len(),
                page,
                packing: Cell::new(None),
            }
        }
        Values::I32(values) => number_plan(values, |v| v.to_le_bytes()).unwrap_or(Plan::Delta),
        Values::I64(values) => number_plan(values, |v| v.to_le_bytes()).unwrap_or(Plan::Delta),
        Values::F64(values) => {
            let bits: Vec<u64> = values.iter().map(|v| v.to_bits()).collect();
            match number_plan(&bits, |v| v.to_le_bytes()) {
                Some(Plan::Dictionary { codes, count, page, packing }) => {
                    Plan::Dictionary { codes: std::borrow::Cow::Owned(codes.into_owned()), count, page, packing }
                }
                _ => Plan::Plain,
            }
        }
        Values::Bytes(_) | Values::Fixed { .. } | Values::Bool(_) => Plan::Plain,
    }
}

/// A dictionary over numbers, if few enough are distinct. Looks at a prefix first: most columns decide there.
fn number_plan<'a, T: Copy + Eq + std::hash::Hash, const N: usize>(
    values: &[T],
    bytes: impl Fn(T) -> [u8; N],
) -> Option<Plan<'a>> {
    use std::collections::HashMap;
    if values.is_empty() {
        return Some(Plan::Dictionary { codes: Vec::new().into(), count: 0, page: Vec::new(), packing: Cell::new(None) });
    }
    let limit = (values.len() / 8).clamp(16, 1 << 16);
    let mut codes = Vec::with_capacity(values.len());
    let mut page = Vec::new();
    let mut known: HashMap<T, u32, foldhash::fast::RandomState> = HashMap::default();
    let mut last: Option<(T, u32)> = None;
    for value in values {
        if let Some((before, code)) = last
            && before == *value
        {
            codes.push(code);
            continue;
        }
        let next = known.len() as u32;
        let code = *known.entry(*value).or_insert_with(|| {
            page.extend_from_slice(&bytes(*value));
            next
        });
        if known.len() > limit {
            return None;
        }
        last = Some((*value, code));
        codes.push(code);
    }
    Some(Plan::Dictionary { codes: codes.into(), count: known.len(), page, packing: Cell::new(None) })
}

/// Everything but codes.
fn encode_plain(values: &Values<'_>, plan: &Plan<'_>, range: std::ops::Range<usize>, out: &mut Vec<u8>) {
    match (plan, values) {
        (Plan::Delta, Values::I64(values)) => encode::delta(&values[range], false, out),
        (Plan::Delta, Values::I32(values)) => {
            let wide: Vec<i64> = values[range].iter().map(|v| i64::from(*v)).collect();
            encode::delta(&wide, true, out);
        }
        (_, Values::Bytes(values)) => {
            for value in &values[range] {
                out.extend_from_slice(&(value.len() as u32).to_le_bytes());
                out.extend_from_slice(value);
            }
        }
        (_, Values::Fixed { width, bytes }) => out.extend_from_slice(&bytes[range.start * width..range.end * width]),
        (_, Values::F64(values)) => values[range].iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes())),
        (_, Values::I32(values)) => values[range].iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes())),
        (_, Values::I64(values)) => values[range].iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes())),
        (_, Values::Bool(values)) => {
            for eight in values[range].chunks(8) {
                out.push(eight.iter().enumerate().fold(0, |byte, (bit, set)| byte | u8::from(*set) << bit));
            }
        }
        // Codes always come with a dictionary plan.
        (_, Values::Coded { .. }) => {}
    }
}

fn bounds_of<T: Copy + PartialOrd>(values: &[T]) -> Option<(T, T)> {
    let first = *values.first()?;
    Some(
        values
            .iter()
            .fold((first, first), |(min, max), v| (if *v < min { *v } else { min }, if *v > max { *v } else { max })),
    )
}

fn page_bounds(values: &Values<'_>, range: std::ops::Range<usize>) -> (Vec<u8>, Vec<u8>) {
    let bytes = match values {
        Values::I64(values) => bounds_of(&values[range]).map(|(a, b)| (a.to_le_bytes().to_vec(), b.to_le_bytes().to_vec())),
        Values::I32(values) => bounds_of(&values[range]).map(|(a, b)| (a.to_le_bytes().to_vec(), b.to_le_bytes().to_vec())),
        Values::Fixed { width, bytes } => {
            let chunks: Vec<&[u8]> = bytes[range.start * width..range.end * width].chunks(*width).collect();
            bounds_of(&chunks).map(|(a, b)| (a.to_vec(), b.to_vec()))
        }
        _ => None,
    };
    bytes.unwrap_or_default()
}

fn statistics(values: &Values<'_>, nulls: usize) -> Option<Statistics> {
    let nulls = Some(nulls as u64);
    match values {
        Values::I64(values) => {
            bounds_of(values).map(|(min, max)| Statistics::int64(Some(min), Some(max), None, nulls, false))
        }
        Values::I32(values) => {
            bounds_of(values).map(|(min, max)| Statistics::int32(Some(min), Some(max), None, nulls, false))
        }
        Values::Fixed { width, bytes } => {
            let chunks: Vec<&[u8]> = bytes.chunks(*width).collect();
            let (min, max) = bounds_of(&chunks)?;
            let value = |b: &[u8]| Some(FixedLenByteArray::from(ByteArray::from(b.to_vec())));
            Some(Statistics::fixed_len_byte_array(value(min), value(max), None, nulls, false))
        }
        _ => None,
    }
}

fn filter(values: &Values<'_>, fpp: f64) -> Result<Sbbf> {
    let distinct: &[&[u8]] = match values {
        Values::Coded { dictionary, .. } => dictionary,
        Values::Bytes(values) => values,
        _ => &[],
    };
    let mut filter = Sbbf::new_with_ndv_fpp(distinct.len() as u64, fpp)?;
    for value in distinct {
        filter.insert(value.as_bytes());
    }
    filter.fold_to_target_fpp(fpp);
    Ok(filter)
}
