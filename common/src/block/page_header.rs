//! Page headers, read: the few fields of Parquet's Thrift structs that reading a page needs.
//!
//! Written here because the parquet crate only hands out pages with a decompressor made anew for each column. Fields that are
//! not known are skipped; a header that is cut, endless or nested too deep is an error.

use super::decode::{BadPage, varint, zigzag};

type Result<T> = std::result::Result<T, BadPage>;

/// What a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageKind {
    Dictionary,
    /// Levels and values compressed together.
    V1,
    /// Without levels: this format writes it for required columns only.
    V2 {
        is_compressed: bool,
    },
}

/// How values are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    Plain,
    Delta,
    Codes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageHeader {
    pub(crate) kind: PageKind,
    pub(crate) encoding: Encoding,
    /// Values with nulls; entries of a dictionary.
    pub(crate) values: usize,
    /// Bytes of the page after decompression, as it claims.
    pub(crate) inflated_bytes: usize,
    pub(crate) stored_bytes: usize,
}

/// Types of Thrift's compact protocol.
mod wire {
    pub(super) const TRUE: u8 = 1;
    pub(super) const FALSE: u8 = 2;
    pub(super) const I8: u8 = 3;
    pub(super) const I16: u8 = 4;
    pub(super) const I64: u8 = 6;
    pub(super) const DOUBLE: u8 = 7;
    pub(super) const BINARY: u8 = 8;
    pub(super) const LIST: u8 = 9;
    pub(super) const SET: u8 = 10;
    pub(super) const STRUCT: u8 = 12;
}

/// Structs in structs: a header has two levels, statistics one more.
const MAX_DEPTH: usize = 8;

struct Thrift<'a> {
    buf: &'a [u8],
    at: usize,
}

impl Thrift<'_> {
    fn byte(&mut self) -> Result<u8> {
        let byte = *self.buf.get(self.at).ok_or(BadPage("header is cut"))?;
        self.at += 1;
        Ok(byte)
    }

    fn varint(&mut self) -> Result<u64> {
        varint(self.buf, &mut self.at)
    }

    fn integer(&mut self) -> Result<i64> {
        zigzag(self.buf, &mut self.at)
    }

    fn size(&mut self) -> Result<usize> {
        usize::try_from(self.integer()?)
            .ok()
            .filter(|n| *n <= i32::MAX as usize)
            .ok_or(BadPage("negative size in its header"))
    }

    /// The next field of a struct: id and type; `None` at its end.
    fn field(&mut self, last: &mut i64) -> Result<Option<(i64, u8)>> {
        let head = self.byte()?;
        if head == 0 {
            return Ok(None);
        }
        *last = match head >> 4 {
            0 => self.integer()?,
            delta => last.checked_add(i64::from(delta)).ok_or(BadPage("field id in its header"))?,
        };
        Ok(Some((*last, head & 15)))
    }

    fn jump(&mut self, bytes: u64) -> Result<()> {
        let end = usize::try_from(bytes).ok().and_then(|bytes| self.at.checked_add(bytes));
        self.at = end.filter(|end| *end <= self.buf.len()).ok_or(BadPage("header is cut"))?;
        Ok(())
    }

    fn skip(&mut self, of: u8, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(BadPage("header is nested too deep"));
        }
        match of {
            wire::TRUE | wire::FALSE => Ok(()),
            wire::I8 => self.jump(1),
            wire::I16..=wire::I64 => self.varint().map(drop),
            wire::DOUBLE => self.jump(8),
            wire::BINARY => {
                let length = self.varint()?;
                self.jump(length)
            }
            wire::LIST | wire::SET => {
                let head = self.byte()?;
                let count = if head >> 4 == 15 { self.varint()? } else { u64::from(head >> 4) };
                for _ in 0..count {
                    // A boolean in a list takes a byte, so every element moves on.
                    if matches!(head & 15, wire::TRUE | wire::FALSE) {
                        self.jump(1)?
                    } else {
                        self.skip(head & 15, depth + 1)?
                    }
                }
                Ok(())
            }
            wire::STRUCT => {
                let mut last = 0;
                while let Some((_, of)) = self.field(&mut last)? {
                    self.skip(of, depth + 1)?;
                }
                Ok(())
            }
            _ => Err(BadPage("a type its header never has")),
        }
    }
}

/// Fields of the struct that tells one kind of page.
#[derive(Default)]
struct Details {
    values: Option<usize>,
    encoding: Option<i64>,
    level_encodings: [Option<i64>; 2],
    level_bytes: usize,
    is_plain: bool,
}

const DICTIONARY: i64 = 7;
const V1: i64 = 5;
const V2: i64 = 8;

fn details(thrift: &mut Thrift<'_>, kind: i64) -> Result<Details> {
    let mut out = Details::default();
    let mut last = 0;
    while let Some((id, of)) = thrift.field(&mut last)? {
        match (kind, id) {
            (_, 1) => out.values = Some(thrift.size()?),
            (V1 | DICTIONARY, 2) | (V2, 4) => out.encoding = Some(thrift.integer()?),
            (V1, 3) => out.level_encodings[0] = Some(thrift.integer()?),
            (V1, 4) => out.level_encodings[1] = Some(thrift.integer()?),
            (V2, 5 | 6) => out.level_bytes = out.level_bytes.saturating_add(thrift.size()?),
            (V2, 7) => out.is_plain = of == wire::FALSE,
            _ => thrift.skip(of, 0)?,
        }
    }
    Ok(out)
}

impl PageHeader {
    /// Reads a header at the start of `buf`; returns it and its length.
    pub(crate) fn read(buf: &[u8]) -> Result<(Self, usize)> {
        let mut thrift = Thrift { buf, at: 0 };
        let (mut kind, mut inflated, mut stored, mut found) = (None, None, None, None);
        let mut last = 0;
        while let Some((id, of)) = thrift.field(&mut last)? {
            match id {
                1 => kind = Some(thrift.integer()?),
                2 => inflated = Some(thrift.size()?),
                3 => stored = Some(thrift.size()?),
                V1 | DICTIONARY | V2 => found = Some((id, details(&mut thrift, id)?)),
                _ => thrift.skip(of, 0)?,
            }
        }
        let incomplete = BadPage("header without what it must have");
        let (id, details) = found.ok_or(incomplete)?;
        let kind = match (kind, id) {
            (Some(2), DICTIONARY) => PageKind::Dictionary,
            (Some(0), V1) if details.level_encodings.iter().all(|e| *e == Some(RLE)) => PageKind::V1,
            (Some(3), V2) if details.level_bytes == 0 => PageKind::V2 { is_compressed: !details.is_plain },
            _ => return Err(BadPage("a kind of page that never stands here in this format")),
        };
        let encoding = match details.encoding {
            Some(0) => Encoding::Plain,
            Some(5) => Encoding::Delta,
            Some(8) => Encoding::Codes,
            _ => return Err(BadPage("an encoding this format never has")),
        };
        let header = Self {
            kind,
            encoding,
            values: details.values.ok_or(incomplete)?,
            inflated_bytes: inflated.ok_or(incomplete)?,
            stored_bytes: stored.ok_or(incomplete)?,
        };
        Ok((header, thrift.at))
    }
}

/// Parquet's number of the encoding of levels.
const RLE: i64 = 3;

#[cfg(test)]
mod tests {
    use parquet::basic::Encoding as Theirs;
    use parquet::column::page::{CompressedPage, Page, PageWriter};
    use parquet::file::writer::{SerializedPageWriter, TrackedWrite};
    use proptest::prelude::*;

    use super::*;

    fn written(page: Page, inflated: usize) -> Vec<u8> {
        let mut out = TrackedWrite::new(Vec::new());
        SerializedPageWriter::new(&mut out).write_page(CompressedPage::new(page, inflated)).unwrap();
        out.into_inner().unwrap()
    }

    #[test]
    fn reads_what_the_parquet_crate_writes() {
        let buf = bytes::Bytes::from_static(b"abc");
        let v1 = Page::DataPage {
            buf: buf.clone(),
            num_values: 7,
            encoding: Theirs::RLE_DICTIONARY,
            def_level_encoding: Theirs::RLE,
            rep_level_encoding: Theirs::RLE,
            statistics: None,
        };
        let bytes = written(v1, 99);
        let (header, length) = PageHeader::read(&bytes).unwrap();
        let expected =
            PageHeader { kind: PageKind::V1, encoding: Encoding::Codes, values: 7, inflated_bytes: 99, stored_bytes: 3 };
        assert_eq!((header, &bytes[length..]), (expected, &b"abc"[..]));
        for is_compressed in [false, true] {
            let v2 = Page::DataPageV2 {
                buf: buf.clone(),
                num_values: 300,
                encoding: Theirs::DELTA_BINARY_PACKED,
                num_nulls: 0,
                num_rows: 300,
                def_levels_byte_len: 0,
                rep_levels_byte_len: 0,
                is_compressed,
                statistics: None,
            };
            let (header, _) = PageHeader::read(&written(v2, 3)).unwrap();
            assert_eq!((header.kind, header.encoding), (PageKind::V2 { is_compressed }, Encoding::Delta));
            assert_eq!(header.values, 300);
        }
        let dictionary = Page::DictionaryPage { buf, num_values: 2, encoding: Theirs::PLAIN, is_sorted: false };
        let (header, _) = PageHeader::read(&written(dictionary, 40)).unwrap();
        assert_eq!((header.kind, header.values, header.inflated_bytes), (PageKind::Dictionary, 2, 40));
    }

    proptest! {
        #[test]
        fn damage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = PageHeader::read(&bytes);
        }

        #[test]
        fn nesting_never_overflows(byte in prop::sample::select(vec![0x1cu8, 0x19, 0xfc, 0x9c, 0x1a]), n in 1usize..100_000) {
            let _ = PageHeader::read(&vec![byte; n]);
        }
    }
}
