//! Keys: values by which spans are grouped, and codes for them.

use std::collections::HashMap;
use std::sync::Arc;

use super::value::{Cell, Value};

/// Codes of values in a table.
#[derive(Debug, Default)]
pub(crate) struct Interned(HashMap<Key, u32, foldhash::fast::RandomState>);

/// A value by which spans are grouped: equal if type and value are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    Nil,
    Int(i64),
    Float(u64),
    Str(Arc<str>),
    Bool(bool),
    Duration(i64),
    Status(i32),
    Kind(i32),
    Array(Vec<Key>),
}

impl Key {
    pub(crate) fn of(value: Value<'_>) -> Self {
        match value {
            Value::Nil | Value::Opaque => Self::Nil,
            Value::Int(v) => Self::Int(v),
            Value::Float(v) => Self::Float(v.to_bits()),
            Value::Str(v) => Self::Str(String::from_utf8_lossy(v).into()),
            Value::Bool(v) => Self::Bool(v),
            Value::Duration(v) => Self::Duration(v),
            Value::Status(v) => Self::Status(v),
            Value::Kind(v) => Self::Kind(v),
            Value::Array(all) => Self::Array(all.iter().map(|cell| Self::of(cell.value())).collect()),
        }
    }

    /// Bytes of text, which others may share.
    pub(crate) fn text_bytes(&self) -> usize {
        match self {
            Self::Str(text) => text.len(),
            Self::Array(all) => all.iter().map(|key| size_of::<Self>() + key.text_bytes()).sum(),
            _ => 0,
        }
    }

    pub(crate) fn cell(&self) -> Cell {
        match self {
            Self::Nil => Cell::Nil,
            Self::Int(v) => Cell::Int(*v),
            Self::Float(v) => Cell::Float(f64::from_bits(*v)),
            Self::Str(v) => Cell::Str(Arc::clone(v)),
            Self::Bool(v) => Cell::Bool(*v),
            Self::Duration(v) => Cell::Duration(*v),
            Self::Status(v) => Cell::Status(*v),
            Self::Kind(v) => Cell::Kind(*v),
            Self::Array(all) => Cell::Array(all.iter().map(Self::cell).collect()),
        }
    }
}

impl Interned {
    pub(crate) fn code(&mut self, value: Value<'_>, table: &mut Vec<Cell>) -> u32 {
        let key = Key::of(value);
        if let Some(code) = self.0.get(&key) {
            return *code;
        }
        let code = table.len() as u32;
        table.push(key.cell());
        self.0.insert(key, code);
        code
    }
}
