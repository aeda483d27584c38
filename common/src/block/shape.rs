//! Attribute shapes: the keys of a span, event or link in the sender's order, each parsed once per read.

use std::fmt;
use std::rc::Rc;

use parquet::errors::ParquetError;
use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

use super::layout::Keys;
use super::spans::bad;

/// Where the next attribute of an item is.
#[derive(Debug)]
pub(super) enum Slot {
    Column { key: String, column: usize },
    Rest { key: String },
}

/// Shapes of one read, by the columns they speak of and their text.
#[derive(Default)]
pub(super) struct Shapes<'t>(hashbrown::HashMap<(usize, &'t [u8]), Rc<[Slot]>, foldhash::fast::RandomState>);

impl<'t> Shapes<'t> {
    pub(super) fn get(&mut self, keys: &Keys, text: &'t [u8]) -> Result<Rc<[Slot]>, ParquetError> {
        let entry = (keys.shape, text);
        if let Some(known) = self.0.get(&entry) {
            return Ok(Rc::clone(known));
        }
        let elements: Vec<Element> = serde_json::from_slice(text).map_err(|_| bad("attribute shape"))?;
        let slot = |element| {
            Ok(match element {
                Element::Column(key) => match keys.by_key.get(&key) {
                    Some(column) => Slot::Column { key, column: *column },
                    None => return Err(bad(format_args!("attribute `{key}` without column"))),
                },
                Element::Rest(key) => Slot::Rest { key },
            })
        };
        let shape: Rc<[Slot]> = elements.into_iter().map(slot).collect::<Result<_, ParquetError>>()?;
        self.0.insert(entry, Rc::clone(&shape));
        Ok(shape)
    }
}

/// `"key"` for a value in the key's column, `["key"]` for the next entry of the rest.
#[derive(Debug)]
pub(super) enum Element {
    Column(String),
    Rest(String),
}

impl Element {
    pub(super) fn key(&self) -> &str {
        match self {
            Self::Column(key) | Self::Rest(key) => key,
        }
    }
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Element;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key or a list of one key")
            }

            fn visit_str<E: Error>(self, key: &str) -> Result<Element, E> {
                Ok(Element::Column(key.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Element, A::Error> {
                let key = list.next_element()?.ok_or_else(|| A::Error::custom("no key"))?;
                let more = list.next_element::<String>()?;
                if more.is_some() { Err(A::Error::custom("two keys")) } else { Ok(Element::Rest(key)) }
            }
        }
        deserializer.deserialize_any(Either)
    }
}
