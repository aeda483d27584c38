//! Which spans are identical: equal in everything they say, bit for bit.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::Write as _;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use super::order::BlockRow;
use crate::batch::{ModelReader, SpanBatch};
use crate::model::typed_json::{self, TypedJsonError};
use crate::model::{Attribute, Span};

/// Compares spans by all that they say. Keeps a hash of each and never the texts of all: nothing stops a sender from giving
/// all its spans one id and time.
pub(super) struct Contents<'a> {
    batches: &'a [Arc<SpanBatch>],
    /// By batch, made when first needed.
    readers: HashMap<u32, ModelReader<'a>>,
    /// Keyed, and not guessable: hits are compared in full, so a sender that can make hashes meet could make that slow.
    hasher: RandomState,
}

impl<'a> Contents<'a> {
    pub(super) fn new(batches: &'a [Arc<SpanBatch>]) -> Self {
        Self { batches, readers: HashMap::new(), hasher: RandomState::new() }
    }

    /// Marks in `gone` those of `rows` that say the same as one before them, of the ones numbered in `same`.
    pub(super) fn copies(&mut self, same: &[u32], rows: &[BlockRow], gone: &mut [bool]) -> Result<(), TypedJsonError> {
        // By hash and how many others of that hash were there first.
        let mut distinct: HashMap<(u64, u32), u32> = HashMap::new();
        let (mut text, mut other) = (String::new(), String::new());
        for at in same {
            self.write(&rows[*at as usize], &mut text)?;
            let hash = self.hasher.hash_one(&text);
            for nth in 0.. {
                match distinct.entry((hash, nth)) {
                    Entry::Vacant(place) => {
                        place.insert(*at);
                        break;
                    }
                    Entry::Occupied(first) => {
                        self.write(&rows[*first.get() as usize], &mut other)?;
                        if text == other {
                            gone[*at as usize] = true;
                            break;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// All that a span says, with its resource and scope, as one text: equal exactly if every bit is.
    fn write(&mut self, row: &BlockRow, text: &mut String) -> Result<(), TypedJsonError> {
        text.clear();
        let (number, (batch, at)) = (row.batch, row.source(self.batches));
        let row = &batch.rows[at];
        let reader = self.readers.entry(number).or_insert_with(|| ModelReader::new(batch));
        let mut span = reader.span(at)?;
        text.push_str(batch.strings.text(batch.resources[row.resource as usize].json));
        text.push_str(batch.strings.text(batch.scopes[row.scope as usize]));
        push_span(&mut span, text);
        Ok(())
    }
}

/// Appends all that a span says; its attributes are taken out on the way.
pub(super) fn push_span(span: &mut Span, text: &mut String) {
    // Attributes as typed JSON: neither `==` nor Debug tells all doubles apart (zeros the one, NaNs the other).
    let mut take = |attributes: &mut Vec<Attribute>| typed_json::push_attributes(&std::mem::take(attributes), text);
    take(&mut span.attributes);
    span.events.iter_mut().for_each(|event| take(&mut event.attributes));
    span.links.iter_mut().for_each(|link| take(&mut link.attributes));
    // A String never fails to grow, short of an abort.
    let _ = write!(text, "{span:?}");
}
