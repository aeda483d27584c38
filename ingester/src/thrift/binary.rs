//! The binary protocol: big-endian numbers of fixed size.

use super::{Cursor, Field, Input, Kind, Message, ThriftError};

/// The first bytes of a message in strict form.
const VERSION: u32 = 0x8001_0000;

#[derive(Clone, Debug)]
pub(crate) struct Binary<'a>(Cursor<'a>);

impl Binary<'_> {
    fn kind(&self, byte: u8) -> Result<Kind, ThriftError> {
        Ok(match byte {
            2 => Kind::Bool,
            3 => Kind::Byte,
            4 => Kind::Double,
            6 => Kind::I16,
            8 => Kind::I32,
            10 => Kind::I64,
            11 => Kind::Bytes,
            12 => Kind::Struct,
            13 => Kind::Map,
            14 => Kind::Set,
            15 => Kind::List,
            _ => return self.0.fail("an unknown type"),
        })
    }

    fn length(&mut self) -> Result<u64, ThriftError> {
        let length = self.i32()?;
        u64::try_from(length).or_else(|_| self.0.fail("a negative length"))
    }
}

impl<'a> Input<'a> for Binary<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self(Cursor::new(bytes))
    }

    fn cursor(&mut self) -> &mut Cursor<'a> {
        &mut self.0
    }

    fn message(&mut self) -> Result<Message<'a>, ThriftError> {
        let first = u32::from_be_bytes(self.0.array()?);
        let (name, kind) = if first & 0x8000_0000 == 0 {
            // The old form begins with the length of the name.
            (self.0.slice(first.into())?, self.0.byte()?)
        } else if first & 0xffff_0000 == VERSION {
            (self.bytes()?, first as u8)
        } else {
            return self.0.fail("an unknown version");
        };
        self.i32()?;
        Ok(Message { name, kind })
    }

    #[inline]
    fn field(&mut self, _last: &mut i16) -> Result<Option<Field>, ThriftError> {
        let kind = self.0.byte()?;
        if kind == 0 {
            return Ok(None);
        }
        let kind = self.kind(kind)?;
        Ok(Some(Field { kind, id: self.i16()? }))
    }

    fn bool(&mut self) -> Result<bool, ThriftError> {
        self.bool_element()
    }

    fn bool_element(&mut self) -> Result<bool, ThriftError> {
        Ok(self.0.byte()? == 1)
    }

    fn i8(&mut self) -> Result<i8, ThriftError> {
        Ok(self.0.byte()? as i8)
    }

    #[inline]
    fn i16(&mut self) -> Result<i16, ThriftError> {
        Ok(i16::from_be_bytes(self.0.array()?))
    }

    #[inline]
    fn i32(&mut self) -> Result<i32, ThriftError> {
        Ok(i32::from_be_bytes(self.0.array()?))
    }

    #[inline]
    fn i64(&mut self) -> Result<i64, ThriftError> {
        Ok(i64::from_be_bytes(self.0.array()?))
    }

    fn double(&mut self) -> Result<f64, ThriftError> {
        Ok(f64::from_be_bytes(self.0.array()?))
    }

    #[inline]
    fn bytes(&mut self) -> Result<&'a [u8], ThriftError> {
        let length = self.length()?;
        self.0.slice(length)
    }

    fn list(&mut self) -> Result<(Kind, usize), ThriftError> {
        let kind = self.0.byte()?;
        let count = self.length()?;
        let count = self.0.count(count)?;
        // Writers of empty lists name any type, also none.
        let kind = if count == 0 { self.kind(kind).unwrap_or(Kind::Byte) } else { self.kind(kind)? };
        Ok((kind, count))
    }

    fn map(&mut self) -> Result<(Kind, Kind, usize), ThriftError> {
        let (keys, values) = (self.0.byte()?, self.0.byte()?);
        let count = self.length()?;
        match self.0.count(count)? {
            0 => Ok((Kind::Byte, Kind::Byte, 0)),
            count => Ok((self.kind(keys)?, self.kind(values)?, count)),
        }
    }
}
