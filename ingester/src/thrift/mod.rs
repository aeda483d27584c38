//! Thrift: bounded readers for the binary and the compact protocol behind one trait, and writers for clients and tests.
//!
//! Owns: both encodings, messages in strict and old form, skipping what is not known, the bounds on depth and lengths. Does not
//! own: what the fields of a struct mean. Reads borrowed bytes and allocates nothing.
//!
//! Bounds: a length or count is at most what remains of the input (an element takes a byte at least), negative ones are
//! refused, and structs and containers nest at most [`MAX_DEPTH`] deep.

mod binary;
mod compact;
#[cfg(test)]
mod tests;
pub mod write;

pub(crate) use binary::Binary;
pub(crate) use compact::{Compact, PROTOCOL as COMPACT_PROTOCOL};

/// Structs, lists, sets and maps inside each other.
pub(crate) const MAX_DEPTH: u32 = 64;

/// The bytes are not the Thrift struct they claim to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed Thrift at byte {at}: {what}")]
pub struct ThriftError {
    /// Offset in the input.
    pub at: usize,
    pub what: &'static str,
}

impl From<ThriftError> for crate::pipeline::IngestError {
    fn from(error: ThriftError) -> Self {
        Self::Malformed(error.to_string())
    }
}

/// Types of values, as the binary protocol numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Bool = 2,
    Byte = 3,
    Double = 4,
    I16 = 6,
    I32 = 8,
    I64 = 10,
    Bytes = 11,
    Struct = 12,
    Map = 13,
    Set = 14,
    List = 15,
}

/// A field's number and type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Field {
    pub(crate) id: i16,
    pub(crate) kind: Kind,
}

/// The head of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Message<'a> {
    pub(crate) name: &'a [u8],
    /// 1 is a call, 4 a call without an answer.
    pub(crate) kind: u8,
}

/// The place in the input, shared by both protocols.
#[derive(Clone, Debug)]
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    depth: u32,
}

impl<'a> Cursor<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, depth: 0 }
    }

    fn fail<T>(&self, what: &'static str) -> Result<T, ThriftError> {
        Err(ThriftError { at: self.at, what })
    }

    /// What was not read yet.
    pub(crate) fn rest(&self) -> &'a [u8] {
        &self.bytes[self.at..]
    }

    /// Leaves out so many bytes that the caller knows: a whole struct of a list.
    pub(crate) fn pass(&mut self, len: usize) -> Result<(), ThriftError> {
        self.slice(len as u64).map(drop)
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    #[inline]
    fn byte(&mut self) -> Result<u8, ThriftError> {
        match self.bytes.get(self.at) {
            Some(byte) => {
                self.at += 1;
                Ok(*byte)
            }
            None => self.fail("the input ends early"),
        }
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], ThriftError> {
        match self.bytes[self.at..].first_chunk::<N>() {
            Some(bytes) => {
                self.at += N;
                Ok(*bytes)
            }
            None => self.fail("the input ends early"),
        }
    }

    #[inline]
    fn slice(&mut self, len: u64) -> Result<&'a [u8], ThriftError> {
        if len > self.left() as u64 {
            return self.fail("a length beyond the end of the input");
        }
        let bytes = &self.bytes[self.at..self.at + len as usize];
        self.at += len as usize;
        Ok(bytes)
    }

    /// Checks a count of elements that take a byte each at least.
    fn count(&self, count: u64) -> Result<usize, ThriftError> {
        if count > self.left() as u64 { self.fail("a count beyond the end of the input") } else { Ok(count as usize) }
    }
}

/// Reads one of the protocols. Cloning remembers a place to come back to.
pub(crate) trait Input<'a>: Clone {
    fn new(bytes: &'a [u8]) -> Self;

    fn cursor(&mut self) -> &mut Cursor<'a>;

    fn message(&mut self) -> Result<Message<'a>, ThriftError>;

    /// The next field of a struct; none at its end. `last` is the number of the field before, 0 at first.
    fn field(&mut self, last: &mut i16) -> Result<Option<Field>, ThriftError>;

    /// A bool of a struct's field.
    fn bool(&mut self) -> Result<bool, ThriftError>;
    /// A bool of a list, set or map.
    fn bool_element(&mut self) -> Result<bool, ThriftError>;
    fn i8(&mut self) -> Result<i8, ThriftError>;
    fn i16(&mut self) -> Result<i16, ThriftError>;
    fn i32(&mut self) -> Result<i32, ThriftError>;
    fn i64(&mut self) -> Result<i64, ThriftError>;
    fn double(&mut self) -> Result<f64, ThriftError>;
    fn bytes(&mut self) -> Result<&'a [u8], ThriftError>;

    /// The head of a list or set.
    fn list(&mut self) -> Result<(Kind, usize), ThriftError>;
    /// The head of a map; the kinds are meaningless if it is empty.
    fn map(&mut self) -> Result<(Kind, Kind, usize), ThriftError>;

    /// Calls `each` with every field of a struct; it must read or skip the value.
    #[inline]
    fn fields<E: From<ThriftError>>(&mut self, mut each: impl FnMut(&mut Self, Field) -> Result<(), E>) -> Result<(), E> {
        self.enter()?;
        let mut last = 0;
        while let Some(field) = self.field(&mut last)? {
            each(self, field)?;
        }
        self.cursor().depth -= 1;
        Ok(())
    }

    /// The number of elements of a list that must be of `kind`.
    fn list_of(&mut self, kind: Kind) -> Result<usize, ThriftError> {
        let (found, count) = self.list()?;
        if count > 0 && found != kind {
            return self.cursor().fail("a list of another type than expected");
        }
        Ok(count)
    }

    fn enter(&mut self) -> Result<(), ThriftError> {
        let cursor = self.cursor();
        if cursor.depth >= MAX_DEPTH {
            return cursor.fail("nested too deep");
        }
        cursor.depth += 1;
        Ok(())
    }

    /// Skips the value of a field.
    fn skip(&mut self, kind: Kind) -> Result<(), ThriftError> {
        if kind == Kind::Bool { self.bool().map(drop) } else { self.skip_element(kind) }
    }

    fn skip_element(&mut self, kind: Kind) -> Result<(), ThriftError> {
        match kind {
            Kind::Bool => self.bool_element().map(drop),
            Kind::Byte => self.i8().map(drop),
            Kind::Double => self.double().map(drop),
            Kind::I16 => self.i16().map(drop),
            Kind::I32 => self.i32().map(drop),
            Kind::I64 => self.i64().map(drop),
            Kind::Bytes => self.bytes().map(drop),
            Kind::Struct => self.fields(|input, field| input.skip(field.kind)),
            Kind::Map => {
                self.enter()?;
                let (keys, values, count) = self.map()?;
                for _ in 0..count {
                    self.skip_element(keys)?;
                    self.skip_element(values)?;
                }
                self.cursor().depth -= 1;
                Ok(())
            }
            Kind::Set | Kind::List => {
                self.enter()?;
                let (kind, count) = self.list()?;
                for _ in 0..count {
                    self.skip_element(kind)?;
                }
                self.cursor().depth -= 1;
                Ok(())
            }
        }
    }

    /// An error at this place.
    fn fail<T>(&mut self, what: &'static str) -> Result<T, ThriftError> {
        self.cursor().fail(what)
    }
}
