//! Writes either protocol: for the load generator and for tests, which speak as clients do.

use spanhouse_common::varint::put_varint;

use super::Kind;

/// Which protocol is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Binary,
    Compact,
}

/// Writes into a buffer of its own. Every [`Writer::begin`] needs its [`Writer::end`].
#[derive(Debug)]
pub struct Writer {
    protocol: Protocol,
    pub bytes: Vec<u8>,
    /// Number of the last field, of each struct that is open.
    last: Vec<i16>,
}

impl Writer {
    pub fn new(protocol: Protocol) -> Self {
        Self { protocol, bytes: Vec::new(), last: vec![0] }
    }

    fn varint(&mut self, value: u64) {
        put_varint(value, &mut self.bytes);
    }

    fn zigzag(&mut self, value: i64) {
        self.varint((value << 1 ^ value >> 63) as u64);
    }

    fn length(&mut self, length: usize) {
        match self.protocol {
            Protocol::Binary => self.bytes.extend((length as u32).to_be_bytes()),
            Protocol::Compact => self.varint(length as u64),
        }
    }

    /// The head of a call without an answer; its arguments follow as a struct.
    pub fn message(&mut self, name: &str) {
        match self.protocol {
            Protocol::Binary => {
                self.bytes.extend(0x8001_0004_u32.to_be_bytes());
                self.bytes(name.as_bytes());
                self.bytes.extend([0; 4]);
            }
            Protocol::Compact => {
                self.bytes.extend([super::compact::PROTOCOL, 4 << 5 | 1, 0]);
                self.bytes(name.as_bytes());
            }
        }
    }

    pub fn begin(&mut self) {
        self.last.push(0);
    }

    pub fn end(&mut self) {
        self.last.pop();
        self.bytes.push(0);
    }

    /// The head of a field of the innermost struct.
    pub fn field(&mut self, id: i16, kind: Kind) {
        match self.protocol {
            Protocol::Binary => {
                self.bytes.push(kind as u8);
                self.bytes.extend(id.to_be_bytes());
            }
            Protocol::Compact => self.compact_field(id, compact_kind(kind)),
        }
    }

    fn compact_field(&mut self, id: i16, kind: u8) {
        let last = self.last.last_mut().map_or(0, |last| std::mem::replace(last, id));
        match id.wrapping_sub(last) {
            step @ 1..=15 => self.bytes.push((step as u8) << 4 | kind),
            _ => {
                self.bytes.push(kind);
                self.zigzag(id.into());
            }
        }
    }

    pub fn bool_field(&mut self, id: i16, value: bool) {
        match self.protocol {
            Protocol::Binary => {
                self.field(id, Kind::Bool);
                self.bytes.push(u8::from(value));
            }
            Protocol::Compact => self.compact_field(id, if value { 1 } else { 2 }),
        }
    }

    pub fn i16_field(&mut self, id: i16, value: i16) {
        self.field(id, Kind::I16);
        match self.protocol {
            Protocol::Binary => self.bytes.extend(value.to_be_bytes()),
            Protocol::Compact => self.zigzag(value.into()),
        }
    }

    pub fn i32_field(&mut self, id: i16, value: i32) {
        self.field(id, Kind::I32);
        match self.protocol {
            Protocol::Binary => self.bytes.extend(value.to_be_bytes()),
            Protocol::Compact => self.zigzag(value.into()),
        }
    }

    pub fn i64_field(&mut self, id: i16, value: i64) {
        self.field(id, Kind::I64);
        match self.protocol {
            Protocol::Binary => self.bytes.extend(value.to_be_bytes()),
            Protocol::Compact => self.zigzag(value),
        }
    }

    pub fn double_field(&mut self, id: i16, value: f64) {
        self.field(id, Kind::Double);
        match self.protocol {
            Protocol::Binary => self.bytes.extend(value.to_be_bytes()),
            Protocol::Compact => self.bytes.extend(value.to_le_bytes()),
        }
    }

    pub fn bytes_field(&mut self, id: i16, value: &[u8]) {
        self.field(id, Kind::Bytes);
        self.bytes(value);
    }

    pub fn bytes(&mut self, value: &[u8]) {
        self.length(value.len());
        self.bytes.extend_from_slice(value);
    }

    /// The head of a list of structs in a field.
    pub fn structs_field(&mut self, id: i16, count: usize) {
        self.field(id, Kind::List);
        self.structs(count);
    }

    /// The head of a list of structs.
    pub fn structs(&mut self, count: usize) {
        match self.protocol {
            Protocol::Binary => {
                self.bytes.push(Kind::Struct as u8);
                self.length(count);
            }
            Protocol::Compact if count < 15 => self.bytes.push((count as u8) << 4 | compact_kind(Kind::Struct)),
            Protocol::Compact => {
                self.bytes.push(0xf0 | compact_kind(Kind::Struct));
                self.length(count);
            }
        }
    }
}

fn compact_kind(kind: Kind) -> u8 {
    match kind {
        Kind::Bool => 1,
        Kind::Byte => 3,
        Kind::I16 => 4,
        Kind::I32 => 5,
        Kind::I64 => 6,
        Kind::Double => 7,
        Kind::Bytes => 8,
        Kind::List => 9,
        Kind::Set => 10,
        Kind::Map => 11,
        Kind::Struct => 12,
    }
}
