//! The compact protocol: varints, zigzag, field numbers as steps, and doubles in little-endian.

use super::{Cursor, Field, Input, Kind, Message, ThriftError};

/// The first byte of a message.
pub(crate) const PROTOCOL: u8 = 0x82;
const VERSION: u8 = 1;

#[derive(Clone, Debug)]
pub(crate) struct Compact<'a> {
    cursor: Cursor<'a>,
    /// The bool that the last field's head was.
    bool: bool,
}

impl Compact<'_> {
    fn kind(&self, nibble: u8) -> Result<Kind, ThriftError> {
        Ok(match nibble {
            1 | 2 => Kind::Bool,
            3 => Kind::Byte,
            4 => Kind::I16,
            5 => Kind::I32,
            6 => Kind::I64,
            7 => Kind::Double,
            8 => Kind::Bytes,
            9 => Kind::List,
            10 => Kind::Set,
            11 => Kind::Map,
            12 => Kind::Struct,
            _ => return self.cursor.fail("an unknown type"),
        })
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, ThriftError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.cursor.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        self.cursor.fail("a number over 10 bytes")
    }

    #[inline]
    fn zigzag(&mut self) -> Result<i64, ThriftError> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// Lengths are 32 bits; one with the highest set would be negative to others.
    fn length(&mut self) -> Result<u64, ThriftError> {
        let length = self.varint()?;
        if length > i32::MAX as u64 { self.cursor.fail("a length out of range") } else { Ok(length) }
    }
}

impl<'a> Input<'a> for Compact<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { cursor: Cursor::new(bytes), bool: false }
    }

    fn cursor(&mut self) -> &mut Cursor<'a> {
        &mut self.cursor
    }

    fn message(&mut self) -> Result<Message<'a>, ThriftError> {
        if self.cursor.byte()? != PROTOCOL {
            return self.cursor.fail("no message of the compact protocol");
        }
        let head = self.cursor.byte()?;
        if head & 0x1f != VERSION {
            return self.cursor.fail("an unknown version");
        }
        self.varint()?;
        Ok(Message { name: self.bytes()?, kind: head >> 5 })
    }

    #[inline]
    fn field(&mut self, last: &mut i16) -> Result<Option<Field>, ThriftError> {
        let head = self.cursor.byte()?;
        if head == 0 {
            return Ok(None);
        }
        let kind = self.kind(head & 15)?;
        self.bool = head & 15 == 1;
        let id = match head >> 4 {
            0 => self.i16()?,
            step => last.wrapping_add(i16::from(step)),
        };
        *last = id;
        Ok(Some(Field { kind, id }))
    }

    fn bool(&mut self) -> Result<bool, ThriftError> {
        Ok(self.bool)
    }

    fn bool_element(&mut self) -> Result<bool, ThriftError> {
        Ok(self.cursor.byte()? == 1)
    }

    fn i8(&mut self) -> Result<i8, ThriftError> {
        Ok(self.cursor.byte()? as i8)
    }

    #[inline]
    fn i16(&mut self) -> Result<i16, ThriftError> {
        let value = self.zigzag()?;
        i16::try_from(value).or_else(|_| self.cursor.fail("a number over 16 bits"))
    }

    #[inline]
    fn i32(&mut self) -> Result<i32, ThriftError> {
        let value = self.zigzag()?;
        i32::try_from(value).or_else(|_| self.cursor.fail("a number over 32 bits"))
    }

    #[inline]
    fn i64(&mut self) -> Result<i64, ThriftError> {
        self.zigzag()
    }

    fn double(&mut self) -> Result<f64, ThriftError> {
        Ok(f64::from_le_bytes(self.cursor.array()?))
    }

    #[inline]
    fn bytes(&mut self) -> Result<&'a [u8], ThriftError> {
        let length = self.length()?;
        self.cursor.slice(length)
    }

    fn list(&mut self) -> Result<(Kind, usize), ThriftError> {
        let head = self.cursor.byte()?;
        let count = if head >> 4 == 15 { self.length()? } else { u64::from(head >> 4) };
        let count = self.cursor.count(count)?;
        let kind = if count == 0 { self.kind(head & 15).unwrap_or(Kind::Byte) } else { self.kind(head & 15)? };
        Ok((kind, count))
    }

    fn map(&mut self) -> Result<(Kind, Kind, usize), ThriftError> {
        let count = self.length()?;
        let count = self.cursor.count(count)?;
        if count == 0 {
            return Ok((Kind::Byte, Kind::Byte, 0));
        }
        let kinds = self.cursor.byte()?;
        Ok((self.kind(kinds >> 4)?, self.kind(kinds & 15)?, count))
    }
}
