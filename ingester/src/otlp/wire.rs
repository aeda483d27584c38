//! Protobuf's wire format: a bounded reader over borrowed bytes, and writing into a buffer.
//!
//! Accepts and rejects exactly what prost does (a property test holds the two together), so that a message which passed here
//! decodes everywhere. Format: <https://protobuf.dev/programming-guides/encoding/>.

pub(crate) use spanhouse_common::varint::{put_varint, varint_len};

/// The bytes are not the protobuf message they claim to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed protobuf at byte {at}: {what}")]
pub struct Malformed {
    /// Offset in the innermost message that was being read.
    pub at: usize,
    pub what: &'static str,
}

/// How a field's payload is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WireType {
    Varint,
    Fixed64,
    Bytes,
    StartGroup,
    EndGroup,
    Fixed32,
}

/// A field's number and wire type.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tag {
    pub(crate) number: u32,
    pub(crate) wire: WireType,
    /// Where the tag itself begins, for keeping an unknown field as it was.
    pub(crate) at: usize,
}

/// Groups nested deeper than this are malformed: prost's recursion limit.
const MAX_GROUP_DEPTH: u32 = 90;

#[derive(Debug, Clone)]
pub(crate) struct Reader<'a> {
    buf: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(buf: &'a [u8]) -> Self {
        Self { buf, at: 0 }
    }

    fn fail<T>(&self, what: &'static str) -> Result<T, Malformed> {
        Err(Malformed { at: self.at, what })
    }

    #[inline]
    pub(crate) fn varint(&mut self) -> Result<u64, Malformed> {
        match self.buf.get(self.at) {
            Some(&byte) if byte < 0x80 => {
                self.at += 1;
                Ok(u64::from(byte))
            }
            _ => self.long_varint(),
        }
    }

    fn long_varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0u64;
        for count in 0..10 {
            let Some(&byte) = self.buf.get(self.at + count) else {
                return self.fail("truncated varint");
            };
            value |= u64::from(byte & 0x7f) << (count * 7);
            if byte < 0x80 {
                if count == 9 && byte > 1 {
                    return self.fail("varint over 64 bits");
                }
                self.at += count + 1;
                return Ok(value);
            }
        }
        self.fail("varint over 10 bytes")
    }

    /// The next field's tag; `None` at the end of the message.
    #[inline]
    pub(crate) fn tag(&mut self) -> Result<Option<Tag>, Malformed> {
        if self.at == self.buf.len() {
            return Ok(None);
        }
        let at = self.at;
        let key = self.varint()?;
        if key > u64::from(u32::MAX) {
            return self.fail("field number out of range");
        }
        let wire = match key & 7 {
            0 => WireType::Varint,
            1 => WireType::Fixed64,
            2 => WireType::Bytes,
            3 => WireType::StartGroup,
            4 => WireType::EndGroup,
            5 => WireType::Fixed32,
            _ => return self.fail("unknown wire type"),
        };
        let number = (key >> 3) as u32;
        if number == 0 {
            return self.fail("field number 0");
        }
        Ok(Some(Tag { number, wire, at }))
    }

    #[inline]
    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let len = self.varint()?;
        let rest = self.buf.len() - self.at;
        if len > rest as u64 {
            return self.fail("length beyond the end of the message");
        }
        let value = &self.buf[self.at..self.at + len as usize];
        self.at += len as usize;
        Ok(value)
    }

    #[inline]
    pub(crate) fn fixed64(&mut self) -> Result<u64, Malformed> {
        match self.buf[self.at..].first_chunk::<8>() {
            Some(bytes) => {
                self.at += 8;
                Ok(u64::from_le_bytes(*bytes))
            }
            None => self.fail("truncated fixed64"),
        }
    }

    #[inline]
    pub(crate) fn fixed32(&mut self) -> Result<u32, Malformed> {
        match self.buf[self.at..].first_chunk::<4>() {
            Some(bytes) => {
                self.at += 4;
                Ok(u32::from_le_bytes(*bytes))
            }
            None => self.fail("truncated fixed32"),
        }
    }

    // A known field with another wire type than its own is malformed, as in prost.

    #[inline]
    pub(crate) fn bytes_of(&mut self, tag: Tag) -> Result<&'a [u8], Malformed> {
        if tag.wire == WireType::Bytes { self.bytes() } else { self.fail("wrong wire type, expected bytes") }
    }

    #[inline]
    pub(crate) fn varint_of(&mut self, tag: Tag) -> Result<u64, Malformed> {
        if tag.wire == WireType::Varint { self.varint() } else { self.fail("wrong wire type, expected varint") }
    }

    #[inline]
    pub(crate) fn fixed64_of(&mut self, tag: Tag) -> Result<u64, Malformed> {
        if tag.wire == WireType::Fixed64 { self.fixed64() } else { self.fail("wrong wire type, expected fixed64") }
    }

    #[inline]
    pub(crate) fn fixed32_of(&mut self, tag: Tag) -> Result<u32, Malformed> {
        if tag.wire == WireType::Fixed32 { self.fixed32() } else { self.fail("wrong wire type, expected fixed32") }
    }

    #[inline]
    pub(crate) fn text_of(&mut self, tag: Tag) -> Result<&'a str, Malformed> {
        let at = self.at;
        let bytes = self.bytes_of(tag)?;
        std::str::from_utf8(bytes).map_err(|_| Malformed { at, what: "text is not UTF-8" })
    }

    /// Skips an unknown field and returns it whole, tag included.
    pub(crate) fn unknown(&mut self, tag: Tag) -> Result<&'a [u8], Malformed> {
        self.skip(tag, 0)?;
        Ok(&self.buf[tag.at..self.at])
    }

    fn skip(&mut self, tag: Tag, depth: u32) -> Result<(), Malformed> {
        match tag.wire {
            WireType::Varint => self.varint().map(drop),
            WireType::Fixed64 => self.fixed64().map(drop),
            WireType::Bytes => self.bytes().map(drop),
            WireType::Fixed32 => self.fixed32().map(drop),
            WireType::EndGroup => self.fail("group ends that never began"),
            WireType::StartGroup => {
                if depth >= MAX_GROUP_DEPTH {
                    return self.fail("groups nested too deep");
                }
                loop {
                    match self.tag()? {
                        Some(inner) if inner.wire == WireType::EndGroup => {
                            return if inner.number == tag.number {
                                Ok(())
                            } else {
                                self.fail("group ends under another number")
                            };
                        }
                        Some(inner) => self.skip(inner, depth + 1)?,
                        None => return self.fail("group without end"),
                    }
                }
            }
        }
    }
}

pub(crate) const VARINT: u32 = 0;
pub(crate) const FIXED64: u32 = 1;
pub(crate) const LENGTH_DELIMITED: u32 = 2;
pub(crate) const FIXED32: u32 = 5;

#[inline]
pub(crate) fn put_tag(number: u32, wire_type: u32, out: &mut Vec<u8>) {
    put_varint(u64::from(number << 3 | wire_type), out);
}

/// Appends a length-delimited field.
#[inline]
pub(crate) fn put_bytes(number: u32, value: &[u8], out: &mut Vec<u8>) {
    put_tag(number, LENGTH_DELIMITED, out);
    put_varint(value.len() as u64, out);
    out.extend_from_slice(value);
}

#[inline]
pub(crate) fn put_fixed64(number: u32, value: u64, out: &mut Vec<u8>) {
    put_tag(number, FIXED64, out);
    out.extend_from_slice(&value.to_le_bytes());
}

#[inline]
pub(crate) fn put_fixed32(number: u32, value: u32, out: &mut Vec<u8>) {
    put_tag(number, FIXED32, out);
    out.extend_from_slice(&value.to_le_bytes());
}

/// Begins a message of unknown length inside another; [`end_message`] takes what this returns.
#[inline]
pub(crate) fn begin_message(number: u32, out: &mut Vec<u8>) -> usize {
    put_tag(number, LENGTH_DELIMITED, out);
    out.push(0);
    out.len() - 1
}

/// Writes the length of a message that began at `at`. It was guessed to take one byte; a longer message is moved.
#[inline]
pub(crate) fn end_message(at: usize, out: &mut Vec<u8>) {
    let len = out.len() - at - 1;
    if len < 0x80 {
        out[at] = len as u8;
        return;
    }
    let mut prefix = [0; 10];
    let mut bytes = 0;
    let mut rest = len;
    while rest > 0 {
        prefix[bytes] = rest as u8 & 0x7f | if rest >= 0x80 { 0x80 } else { 0 };
        rest >>= 7;
        bytes += 1;
    }
    out.splice(at..=at, prefix[..bytes].iter().copied());
}

impl From<Malformed> for crate::pipeline::IngestError {
    fn from(error: Malformed) -> Self {
        Self::Malformed(error.to_string())
    }
}
