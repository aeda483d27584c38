//! Pages out of a file's bytes: inflated, checked and ready to read a few rows of.
//!
//! Owns what is kept of a page between reads: dictionaries, data pages, and the ids of trace-id pages. Does not own where pages
//! lie nor which rows are wanted. Sizes that a damaged header claims never decide what is allocated: bytes that are there do.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::{Compression, Type as PhysicalType};
use parquet::file::metadata::ColumnChunkMetaData;

use super::decode::{BadPage, Hybrid, Mark};
use super::delta::Delta;
use super::encode::code_width;
use super::page_header::{Encoding, PageHeader, PageKind};
use crate::id::TraceId;

type Result<T> = std::result::Result<T, BadPage>;

/// Inflates pages, with one decompressor for all of a read: making one costs as much as a small page.
#[derive(Default)]
pub(crate) struct Inflater(Option<zstd::bulk::Decompressor<'static>>);

/// More than zstd makes of a byte in any page of this format; what claims more is inflated in steps.
const USUAL_RATIO: usize = 64;

impl Inflater {
    fn inflate(&mut self, stored: &[u8], size: usize) -> Result<Vec<u8>> {
        const BAD: BadPage = BadPage("does not decompress");
        let zstd = match &mut self.0 {
            Some(zstd) => zstd,
            slot => slot.insert(zstd::bulk::Decompressor::new().map_err(|_| BAD)?),
        };
        let mut room = size.min(stored.len().saturating_mul(USUAL_RATIO).max(64 * 1024));
        loop {
            let mut out = Vec::with_capacity(room);
            match zstd.decompress_to_buffer(stored, &mut out) {
                Ok(_) if out.len() == size => {
                    out.shrink_to_fit();
                    return Ok(out);
                }
                Ok(_) => return Err(BadPage("another size than its header says")),
                Err(_) if room < size => room = size.min(room.saturating_mul(8)),
                Err(_) => return Err(BAD),
            }
        }
    }
}

/// What the schema and the footer say of a column chunk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chunk {
    pub(crate) physical: PhysicalType,
    /// Bytes of a value of fixed width, else 0.
    pub(crate) width: usize,
    pub(crate) max_definition: u8,
    pub(crate) max_repetition: u8,
    /// Values and nulls of the whole chunk.
    slots: usize,
    /// Of all its pages, inflated: no page can have more.
    bytes: usize,
    is_zstd: bool,
}

impl Chunk {
    pub(crate) fn of(chunk: &ColumnChunkMetaData) -> Self {
        let descriptor = chunk.column_descr();
        let physical = descriptor.physical_type();
        let width = match physical {
            PhysicalType::FIXED_LEN_BYTE_ARRAY => descriptor.type_length().max(1) as usize,
            PhysicalType::INT32 => 4,
            PhysicalType::INT64 | PhysicalType::DOUBLE => 8,
            _ => 0,
        };
        Self {
            physical,
            width,
            max_definition: descriptor.max_def_level() as u8,
            max_repetition: descriptor.max_rep_level() as u8,
            slots: usize::try_from(chunk.num_values()).unwrap_or(0),
            bytes: usize::try_from(chunk.uncompressed_size()).unwrap_or(0),
            is_zstd: matches!(chunk.compression(), Compression::ZSTD(_)),
        }
    }

    fn is_narrow(&self) -> bool {
        self.physical == PhysicalType::INT32
    }
}

/// The header of the page at the start of `raw`, and its bytes inflated.
fn open(raw: &[u8], chunk: &Chunk, inflater: &mut Inflater) -> Result<(PageHeader, Bytes)> {
    let (header, length) = PageHeader::read(raw)?;
    let stored = raw[length..].get(..header.stored_bytes).ok_or(BadPage("longer than its place in the file"))?;
    let is_plain = header.kind == PageKind::V2 { is_compressed: false };
    if is_plain || stored.is_empty() {
        return if header.inflated_bytes == stored.len() {
            // Copied: a slice would keep the whole read alive.
            Ok((header, Bytes::copy_from_slice(stored)))
        } else {
            Err(BadPage("another size than its header says"))
        };
    }
    if header.inflated_bytes > chunk.bytes {
        return Err(BadPage("more bytes than its chunk has"));
    }
    if !chunk.is_zstd {
        return Err(BadPage("a codec this format never has"));
    }
    Ok((header, inflater.inflate(stored, header.inflated_bytes)?.into()))
}

/// A dictionary page: the distinct values of a chunk by code.
#[derive(Debug)]
pub(crate) struct Dictionary {
    body: Bytes,
    places: Places,
}

#[derive(Debug)]
enum Places {
    /// Values of this width, one after the other.
    Every(usize),
    /// Where each value starts; one more for the end. A length of four bytes stands before each.
    At(Vec<u32>),
}

impl Dictionary {
    /// Reads the dictionary page at the start of `raw`.
    pub(crate) fn read(raw: &[u8], chunk: &Chunk, inflater: &mut Inflater) -> Result<Self> {
        let (header, body) = open(raw, chunk, inflater)?;
        if header.kind != PageKind::Dictionary || header.encoding != Encoding::Plain {
            return Err(BadPage("no dictionary where one must be"));
        }
        let short = BadPage("dictionary shorter than its count");
        if header.values > body.len() || u32::try_from(body.len()).is_err() {
            return if header.values == 0 { Ok(Self { body, places: Places::At(vec![0]) }) } else { Err(short) };
        }
        if chunk.width > 0 {
            let fits = header.values.checked_mul(chunk.width) == Some(body.len());
            return if fits { Ok(Self { body, places: Places::Every(chunk.width) }) } else { Err(short) };
        }
        let mut places = Vec::with_capacity(header.values + 1);
        let mut at = 0usize;
        for _ in 0..header.values {
            places.push(at as u32);
            at = value_at(&body, at)?.end;
        }
        places.push(at as u32);
        Ok(Self { body, places: Places::At(places) })
    }

    /// Of texts, equal ones or not; `None` if they are too many for its numbers.
    fn of_texts(texts: &[Bytes]) -> Option<Self> {
        let size = texts.iter().map(|text| text.len() + 4).sum();
        u32::try_from(size).ok()?;
        let (mut body, mut places) = (Vec::with_capacity(size), Vec::with_capacity(texts.len() + 1));
        for text in texts {
            places.push(body.len() as u32);
            body.extend_from_slice(&(text.len() as u32).to_le_bytes());
            body.extend_from_slice(text);
        }
        places.push(body.len() as u32);
        Some(Self { body: body.into(), places: Places::At(places) })
    }

    /// How many values it has.
    pub(crate) fn len(&self) -> usize {
        match &self.places {
            Places::Every(width) => self.body.len() / width,
            Places::At(places) => places.len().saturating_sub(1),
        }
    }

    /// The value of a code.
    pub(crate) fn get(&self, code: u32) -> Option<&[u8]> {
        let code = code as usize;
        match &self.places {
            Places::Every(width) => self.body.get(code * width..(code + 1) * width),
            Places::At(places) => self.body.get(*places.get(code)? as usize + 4..*places.get(code + 1)? as usize),
        }
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        let places = match &self.places {
            Places::Every(_) => 0,
            Places::At(places) => places.capacity() * size_of::<u32>(),
        };
        self.body.len() + places
    }
}

/// Where the value lies whose length stands at `at`.
fn value_at(buf: &[u8], at: usize) -> Result<Range<usize>> {
    let length = buf.get(at..).and_then(|rest| rest.first_chunk::<4>()).ok_or(BadPage("truncated value"))?;
    let from = at + 4;
    let end = from.checked_add(u32::from_le_bytes(*length) as usize).filter(|end| *end <= buf.len());
    Ok(from..end.ok_or(BadPage("truncated value"))?)
}

/// A data page, inflated.
#[derive(Debug)]
pub(crate) struct DataPage {
    body: Bytes,
    repetition: Levels,
    definition: Levels,
    /// Values and nulls.
    slots: usize,
    values: Bytes,
    form: Form,
}

/// Levels of one kind in a page's body.
#[derive(Debug, Default)]
struct Levels {
    place: Range<usize>,
    width: u8,
    /// The level that is counted: that of a new row, or of a value that is there.
    chosen: u8,
    marks: Vec<Mark>,
}

impl Levels {
    /// Reads the levels that begin at `at` with their length, which is moved past them. Without any if `max` is 0.
    fn read(body: &[u8], at: &mut usize, max: u8, chosen: u8) -> Result<Self> {
        if max == 0 {
            return Ok(Self::default());
        }
        let place = value_at(body, *at).map_err(|_| BadPage("levels longer than the page"))?;
        *at = place.end;
        let mut out = Self { place, width: code_width(usize::from(max) + 1), chosen, marks: Vec::new() };
        out.marks = out.of(body)?.marks()?;
        Ok(out)
    }

    fn of<'b>(&'b self, body: &'b [u8]) -> Result<Hybrid<'b>> {
        Ok(Hybrid::new(&body[self.place.clone()], self.width, u32::from(self.chosen))?.with_marks(&self.marks))
    }
}

/// How values are found in a page.
#[derive(Debug)]
enum Form {
    Codes {
        bits: u8,
        marks: Vec<Mark>,
    },
    Delta(Delta),
    Fixed,
    Booleans,
    /// The place of every [`MARK_EVERY`]th value: a value's place depends on all before it.
    Texts(Vec<u32>),
}

const MARK_EVERY: usize = 64;

/// Values of a range of rows as they were stored, nulls left out.
#[derive(Debug)]
pub(crate) enum Values {
    /// To be looked up in the chunk's dictionary.
    Codes(Vec<u32>),
    Bytes(Vec<Bytes>),
    /// Of eight bytes each, as ids of spans.
    Ids(Vec<[u8; 8]>),
    I32(Vec<i32>),
    I64(Vec<i64>),
    F64(Vec<f64>),
    Bool(Vec<bool>),
}

impl Values {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Codes(all) => all.len(),
            Self::Bytes(all) => all.len(),
            Self::Ids(all) => all.len(),
            Self::I32(all) => all.len(),
            Self::I64(all) => all.len(),
            Self::F64(all) => all.len(),
            Self::Bool(all) => all.len(),
        }
    }

    /// Its codes, if that is what it has; one without values has none of another form.
    fn codes(&mut self, room: usize) -> Option<&mut Vec<u32>> {
        if self.len() == 0 {
            *self = Self::Codes(Vec::with_capacity(room));
        }
        if let Self::Codes(all) = self { Some(all) } else { None }
    }

    /// The same of whole numbers.
    fn ints(&mut self, room: usize) -> Option<&mut Vec<i64>> {
        if self.len() == 0 {
            *self = Self::I64(Vec::with_capacity(room));
        }
        if let Self::I64(all) = self { Some(all) } else { None }
    }

    fn append(&mut self, more: Self) -> Result<()> {
        match (&mut *self, more) {
            (Self::Codes(all), Self::Codes(more)) => all.extend(more),
            (Self::Bytes(all), Self::Bytes(more)) => all.extend(more),
            (Self::Ids(all), Self::Ids(more)) => all.extend(more),
            (Self::I32(all), Self::I32(more)) => all.extend(more),
            (Self::I64(all), Self::I64(more)) => all.extend(more),
            (Self::F64(all), Self::F64(more)) => all.extend(more),
            (Self::Bool(all), Self::Bool(more)) => all.extend(more),
            (_, more) if more.len() == 0 => {}
            (all, more) if all.len() == 0 => *all = more,
            _ => return Err(BadPage("another encoding than the pages before it")),
        }
        Ok(())
    }
}

/// Some rows of a column.
#[derive(Debug)]
pub(crate) struct ColumnRows {
    pub(crate) values: Values,
    /// What codes mean; present if there are any.
    pub(crate) dictionary: Option<Arc<Dictionary>>,
    /// Empty if the column has no such level, or if `present` says it all.
    pub(crate) definition: Vec<u8>,
    pub(crate) repetition: Vec<u8>,
    /// Of columns that have at most one value a row, where asked for: rows read, and which of them have one.
    pub(crate) present: Option<(u32, Vec<u32>)>,
    /// How many values there will be, if that is known.
    room: usize,
}

impl ColumnRows {
    pub(crate) fn new() -> Self {
        let values = Values::Codes(Vec::new());
        Self { values, dictionary: None, definition: Vec::new(), repetition: Vec::new(), present: None, room: 0 }
    }

    /// For so many rows of a column that has at most one value a row.
    pub(crate) fn flat(rows: usize, chunk: &Chunk) -> Self {
        let room = if chunk.max_definition == 0 { rows } else { 0 };
        Self { present: Some((0, Vec::new())), room, ..Self::new() }
    }

    /// Puts texts one after the other, each with a code of its own: twelve bytes a text besides its own instead of the forty that one
    /// alone takes. For whoever holds very many.
    pub(crate) fn pack(&mut self) {
        if let Values::Bytes(texts) = &self.values
            && let Some(packed) = Dictionary::of_texts(texts)
        {
            self.values = Values::Codes((0..texts.len() as u32).collect());
            self.dictionary = Some(Arc::new(packed));
        }
    }

    /// Whether values are codes that a dictionary must explain.
    pub(crate) fn is_coded(&self) -> bool {
        matches!(&self.values, Values::Codes(codes) if !codes.is_empty())
    }

    /// Puts the dictionary to the codes; numbers are looked up at once. Afterwards every code has a value.
    pub(crate) fn explain(&mut self, dictionary: &Arc<Dictionary>, chunk: &Chunk) -> Result<()> {
        let Values::Codes(codes) = &self.values else { return Ok(()) };
        // The largest one, and not the first that is too large: that is found many at a time.
        if codes.iter().copied().max().is_some_and(|most| most as usize >= dictionary.len()) {
            return Err(BadPage("code beyond the dictionary"));
        }
        const SHORT: BadPage = BadPage("short dictionary value");
        // Few distinct numbers stand for many: each is read once.
        fn table<const N: usize, T>(dictionary: &Dictionary, read: fn([u8; N]) -> T) -> Result<Vec<T>> {
            let value = |code| dictionary.get(code).and_then(|v| v.first_chunk::<N>()).map(|v| read(*v)).ok_or(SHORT);
            (0..dictionary.len() as u32).map(value).collect()
        }
        fn all<T: Copy>(codes: &[u32], table: &[T]) -> Vec<T> {
            codes.iter().map(|code| table[*code as usize]).collect()
        }
        self.values = match chunk.physical {
            PhysicalType::INT32 => Values::I32(all(codes, &table(dictionary, i32::from_le_bytes)?)),
            PhysicalType::INT64 => Values::I64(all(codes, &table(dictionary, i64::from_le_bytes)?)),
            PhysicalType::DOUBLE => Values::F64(all(codes, &table(dictionary, f64::from_le_bytes)?)),
            PhysicalType::BYTE_ARRAY | PhysicalType::FIXED_LEN_BYTE_ARRAY => {
                self.dictionary = Some(Arc::clone(dictionary));
                return Ok(());
            }
            _ => return Err(BadPage("coded booleans")),
        };
        Ok(())
    }
}

impl DataPage {
    /// Reads the data page at the start of `raw`.
    pub(crate) fn read(raw: &[u8], chunk: &Chunk, inflater: &mut Inflater) -> Result<Self> {
        let (header, body) = open(raw, chunk, inflater)?;
        // A run of levels takes a few bytes whatever it claims to hold: only the footer bounds it.
        if header.values > chunk.slots {
            return Err(BadPage("more values than its chunk has"));
        }
        let has_levels = chunk.max_definition > 0 || chunk.max_repetition > 0;
        match header.kind {
            PageKind::V1 if has_levels => {}
            PageKind::V2 { .. } if !has_levels => {}
            _ => return Err(BadPage("a kind of page that never stands here in this format")),
        }
        let mut at = 0;
        let repetition = Levels::read(&body, &mut at, chunk.max_repetition, 0)?;
        let definition = Levels::read(&body, &mut at, chunk.max_definition, chunk.max_definition)?;
        let mut values = body.slice(at..);
        let form = match header.encoding {
            Encoding::Codes => {
                let bits = values.first().copied();
                // A page of nulls only may have nothing here.
                values = values.slice(usize::from(bits.is_some())..);
                let bits = bits.unwrap_or(0);
                Form::Codes { bits, marks: Hybrid::new(&values, bits, 0)?.marks()? }
            }
            Encoding::Delta => match chunk.physical {
                PhysicalType::INT32 | PhysicalType::INT64 => {
                    Form::Delta(Delta::new(&values, header.values, chunk.is_narrow())?)
                }
                _ => return Err(BadPage("delta packing of other than integers")),
            },
            Encoding::Plain if chunk.width > 0 => Form::Fixed,
            Encoding::Plain if chunk.physical == PhysicalType::BOOLEAN => Form::Booleans,
            Encoding::Plain => Form::Texts(marks(&values)?),
        };
        Ok(Self { body, repetition, definition, slots: header.values, values, form })
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        let form = match &self.form {
            Form::Delta(delta) => delta.heap_bytes(),
            Form::Texts(marks) => marks.capacity() * size_of::<u32>(),
            Form::Codes { marks, .. } => marks.capacity() * size_of::<Mark>(),
            Form::Fixed | Form::Booleans => 0,
        };
        let levels = (self.repetition.marks.capacity() + self.definition.marks.capacity()) * size_of::<Mark>();
        self.body.len() + form + levels + size_of::<Self>()
    }

    /// Appends rows of this page, numbered from its first, to `out`.
    pub(crate) fn rows(&self, chunk: &Chunk, rows: Range<usize>, out: &mut ColumnRows) -> Result<()> {
        let mut slots = rows;
        if chunk.max_repetition > 0 {
            let levels = self.repetition.of(&self.body)?;
            slots = levels.select(slots.start, self.slots)?..levels.select(slots.end, self.slots)?;
            levels.visit(slots.clone(), |level, times| out.repetition.extend(std::iter::repeat_n(level as u8, times)))?;
        }
        if slots.end > self.slots {
            return Err(BadPage("fewer values than rows"));
        }
        let mut values = slots.clone();
        if chunk.max_definition > 0 {
            let max = u32::from(chunk.max_definition);
            let levels = self.definition.of(&self.body)?;
            let mut present = 0;
            match &mut out.present {
                Some((rows, all)) if chunk.max_definition == 1 => {
                    let before = all.len();
                    levels.positions(slots.clone(), *rows, all)?;
                    *rows += slots.len() as u32;
                    present = all.len() - before;
                }
                _ => levels.visit(slots.clone(), |level, times| {
                    out.definition.extend(std::iter::repeat_n(level as u8, times));
                    present += if level == max { times } else { 0 };
                })?,
            }
            // Where nothing is there, what was before does not matter.
            let before = if present == 0 { 0 } else { levels.count(slots.start)? };
            values = before..before + present;
        }
        if values.is_empty() {
            return Ok(());
        }
        // Numbers and codes go where they stay; a column of many pages is not copied twice.
        match (&self.form, chunk.physical) {
            (Form::Codes { bits, marks }, _) => {
                if let Some(all) = out.values.codes(out.room) {
                    return Hybrid::new(&self.values, *bits, 0)?.with_marks(marks).append(values, all);
                }
            }
            (Form::Delta(delta), PhysicalType::INT64) => {
                if let Some(all) = out.values.ints(out.room) {
                    return delta.append(&self.values, values, false, all);
                }
            }
            (Form::Fixed, PhysicalType::INT64) => {
                if let Some(all) = out.values.ints(out.room) {
                    all.extend(self.fixed(chunk, values)?.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)));
                    return Ok(());
                }
            }
            _ => {}
        }
        out.values.append(self.values(chunk, values)?)
    }

    /// The bytes of values of fixed width.
    fn fixed(&self, chunk: &Chunk, range: Range<usize>) -> Result<&[u8]> {
        const SHORT: BadPage = BadPage("plain page too short");
        let end = range.end.checked_mul(chunk.width).ok_or(SHORT)?;
        self.values.get(range.start * chunk.width..end).ok_or(SHORT)
    }

    fn values(&self, chunk: &Chunk, range: Range<usize>) -> Result<Values> {
        const SHORT: BadPage = BadPage("plain page too short");
        let values = &self.values;
        Ok(match &self.form {
            Form::Codes { bits, marks } => Values::Codes(Hybrid::new(values, *bits, 0)?.with_marks(marks).values(range)?),
            Form::Delta(delta) => {
                let wide = delta.values(values, range, chunk.is_narrow())?;
                if chunk.is_narrow() { Values::I32(wide.into_iter().map(|v| v as i32).collect()) } else { Values::I64(wide) }
            }
            Form::Fixed => {
                let part = self.fixed(chunk, range.clone())?;
                match chunk.physical {
                    PhysicalType::INT32 => {
                        Values::I32(part.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b)).collect())
                    }
                    PhysicalType::INT64 => {
                        Values::I64(part.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect())
                    }
                    PhysicalType::DOUBLE => {
                        Values::F64(part.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect())
                    }
                    _ if chunk.width == 8 => Values::Ids(part.as_chunks::<8>().0.to_vec()),
                    _ => {
                        let place = |at| at * chunk.width..(at + 1) * chunk.width;
                        Values::Bytes(range.map(|at| values.slice(place(at))).collect())
                    }
                }
            }
            Form::Booleans => {
                if range.end.div_ceil(8) > values.len() {
                    return Err(SHORT);
                }
                Values::Bool(range.map(|at| values[at / 8] >> (at % 8) & 1 == 1).collect())
            }
            Form::Texts(marks) => {
                let mut at = *marks.get(range.start / MARK_EVERY).ok_or(SHORT)? as usize;
                let mut out = Vec::with_capacity(range.len().min(1 << 20));
                for number in range.start / MARK_EVERY * MARK_EVERY..range.end {
                    let place = value_at(values, at)?;
                    at = place.end;
                    if number >= range.start {
                        out.push(values.slice(place));
                    }
                }
                Values::Bytes(out)
            }
        })
    }
}

/// Places of every [`MARK_EVERY`]th text.
fn marks(values: &[u8]) -> Result<Vec<u32>> {
    if u32::try_from(values.len()).is_err() {
        return Err(BadPage("over 4 GiB"));
    }
    let (mut out, mut at, mut count) = (Vec::new(), 0, 0usize);
    while at < values.len() {
        if count.is_multiple_of(MARK_EVERY) {
            out.push(at as u32);
        }
        at = value_at(values, at)?.end;
        count += 1;
    }
    out.shrink_to_fit();
    Ok(out)
}

/// The ids on a page of the trace-id column, each once: a trace's rows are neighbours.
#[derive(Debug)]
pub(crate) struct TraceIdPage {
    ids: Vec<TraceId>,
    /// First row of each; one more for the end.
    starts: Vec<u32>,
}

impl TraceIdPage {
    pub(crate) fn read(raw: &[u8], chunk: &Chunk, inflater: &mut Inflater) -> Result<Self> {
        const BAD: BadPage = BadPage("trace ids of another form");
        let (header, body) = open(raw, chunk, inflater)?;
        let is_plain = matches!(header.kind, PageKind::V2 { .. }) && header.encoding == Encoding::Plain;
        let (all, rest) = body.as_chunks::<16>();
        if !is_plain || chunk.width != 16 || !rest.is_empty() || all.len() != header.values || header.values > chunk.slots {
            return Err(BAD);
        }
        let (mut ids, mut starts): (Vec<TraceId>, Vec<u32>) = (Vec::new(), Vec::new());
        for (row, id) in all.iter().enumerate() {
            if ids.last().is_none_or(|last| last.0 != *id) {
                ids.push(TraceId(*id));
                starts.push(row as u32);
            }
        }
        starts.push(u32::try_from(all.len()).map_err(|_| BAD)?);
        ids.shrink_to_fit();
        starts.shrink_to_fit();
        Ok(Self { ids, starts })
    }

    /// The ids with the first row of each on the page.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (TraceId, u32)> + '_ {
        self.ids.iter().copied().zip(self.starts.iter().copied())
    }

    /// Rows of the page that belong to the trace.
    pub(crate) fn rows_of(&self, id: TraceId) -> Range<usize> {
        match self.ids.binary_search(&id) {
            Ok(at) => self.starts[at] as usize..self.starts[at + 1] as usize,
            Err(_) => 0..0,
        }
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        self.ids.capacity() * size_of::<TraceId>() + self.starts.capacity() * size_of::<u32>() + size_of::<Self>()
    }
}

#[cfg(test)]
mod tests;
