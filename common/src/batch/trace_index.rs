//! Which rows of a batch belong to a trace: made when somebody first asks, for batches that are searched while live.

use std::hash::BuildHasher;

use super::{BadJson, ModelReader, Row, SpanBatch};
use crate::id::TraceId;
use crate::model::StoredSpan;

/// The rows of one batch by trace id. Eight bytes a row.
#[derive(Debug)]
pub struct TraceIndex {
    /// Hash of the trace id and row, ascending: rows of a trace are neighbours in the order they came.
    rows: Vec<(u32, u32)>,
    hasher: foldhash::fast::RandomState,
}

impl TraceIndex {
    pub fn new(batch: &SpanBatch) -> Self {
        // Seeded at random: a sender cannot choose ids that fall together.
        let hasher = foldhash::fast::RandomState::default();
        let row = |(at, row): (usize, &Row)| (hash(&hasher, row.trace_id), at as u32);
        let mut rows: Vec<(u32, u32)> = batch.rows.iter().enumerate().map(row).collect();
        rows.sort_unstable();
        Self { rows, hasher }
    }

    fn rows_of<'i>(&'i self, batch: &'i SpanBatch, id: TraceId) -> impl Iterator<Item = usize> + 'i {
        let hash = hash(&self.hasher, id);
        let from = self.rows.partition_point(|(other, _)| *other < hash);
        let candidates = self.rows[from..].iter().take_while(move |(other, _)| *other == hash).map(|(_, row)| *row as usize);
        candidates.filter(move |row| batch.rows.get(*row).is_some_and(|row| row.trace_id == id))
    }

    /// The spans of one trace in `batch`, which must be the one this was made of.
    pub fn find_trace(&self, batch: &SpanBatch, id: TraceId) -> Result<Vec<StoredSpan>, BadJson> {
        let mut rows = self.rows_of(batch, id).peekable();
        if rows.peek().is_none() {
            return Ok(Vec::new());
        }
        let mut reader = ModelReader::new(batch);
        rows.map(|row| reader.stored_span(row)).collect()
    }

    pub fn heap_bytes(&self) -> usize {
        self.rows.capacity() * size_of::<(u32, u32)>()
    }
}

fn hash(hasher: &foldhash::fast::RandomState, id: TraceId) -> u32 {
    hasher.hash_one(id.0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_rows_of_a_trace_in_their_order() {
        let mut batch = SpanBatch::default();
        for n in 0..5000u32 {
            let id = TraceId(u128::from(n % 700).to_be_bytes());
            batch.rows.push(Row { trace_id: id, start: u64::from(n), ..Row::default() });
        }
        let index = TraceIndex::new(&batch);
        for id in 0..710u32 {
            let found: Vec<u32> =
                index.rows_of(&batch, TraceId(u128::from(id).to_be_bytes())).map(|row| row as u32).collect();
            let expected: Vec<u32> = (0..5000).filter(|n| n % 700 == id).collect();
            assert_eq!(found, expected);
        }
        assert!(index.heap_bytes() <= 5000 * 8);
    }
}
