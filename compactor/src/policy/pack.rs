//! Cuts the blocks of one window into the inputs of merges: in order of time, as many as one merge takes.
//!
//! Owns the limits of one merge and the guard against rewriting a large block for small ones. Does not own which blocks come
//! together, nor whether the last of them wait for more.

use std::collections::BTreeSet;

use spanhouse_common::id::BlockId;
use spanhouse_common::manifest::BlockEntry;

use super::{PolicyConfig, bytes_of};

/// A merge of fewer blocks than the fan-in is not worth it if one of them has more bytes than so many times all others: it
/// would be written again for little.
const LOPSIDED: u128 = 4;

/// What becomes of the blocks that are left when no merge is filled any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// More will come.
    Waits,
    /// This is all there will be: two are enough.
    Merges,
}

/// The inputs of one merge.
#[derive(Debug)]
pub(super) struct Chunk<'a> {
    pub(super) inputs: Vec<&'a BlockEntry>,
    pub(super) rows: u64,
    pub(super) bytes: u64,
    /// It can take no more: of blocks, of spans or of bytes.
    pub(super) filled: bool,
}

impl<'a> Chunk<'a> {
    fn of(first: &'a BlockEntry) -> Self {
        Self { inputs: vec![first], rows: first.rows, bytes: bytes_of(first), filled: false }
    }

    /// Takes one more if the limits allow it.
    fn take(&mut self, entry: &'a BlockEntry, config: &PolicyConfig) -> bool {
        let (rows, bytes) = (self.rows.saturating_add(entry.rows), self.bytes.saturating_add(bytes_of(entry)));
        let fits = self.inputs.len() < config.fan_in && rows <= config.target_spans && bytes <= config.target_bytes;
        if fits {
            self.inputs.push(entry);
            (self.rows, self.bytes) = (rows, bytes);
        }
        fits
    }

    /// The input that is too large for the others.
    fn lopsided(&self, config: &PolicyConfig) -> Option<BlockId> {
        if self.inputs.len() >= config.fan_in {
            return None;
        }
        let largest = self.inputs.iter().copied().max_by_key(|entry| (bytes_of(entry), entry.id))?;
        let others: u128 =
            self.inputs.iter().map(|entry| u128::from(bytes_of(entry))).sum::<u128>() - u128::from(bytes_of(largest));
        (u128::from(bytes_of(largest)) > LOPSIDED * others).then_some(largest.id)
    }
}

/// The merges of `blocks`, which are in order of time and none of them full. Every pair of them fits into one merge.
///
/// Blocks that are too large for their neighbours are left out, and then tried among themselves: each round has fewer.
pub(super) fn pack<'a>(blocks: Vec<&'a BlockEntry>, rest: Rest, config: &PolicyConfig) -> Vec<Chunk<'a>> {
    let mut merges = Vec::new();
    let mut left = blocks;
    while left.len() > 1 {
        let (chunks, large) = even(left, rest, config);
        merges.extend(chunks);
        left = large;
    }
    merges
}

/// Merges none of which is lopsided, and the blocks that would make them so; at least one block is not among these.
fn even<'a>(mut blocks: Vec<&'a BlockEntry>, rest: Rest, config: &PolicyConfig) -> (Vec<Chunk<'a>>, Vec<&'a BlockEntry>) {
    let mut large: BTreeSet<BlockId> = BTreeSet::new();
    let all = blocks.clone();
    loop {
        let chunks = cut(&blocks, rest, config);
        let found: BTreeSet<BlockId> = chunks.iter().filter_map(|chunk| chunk.lopsided(config)).collect();
        if found.is_empty() {
            return (chunks, all.into_iter().filter(|entry| large.contains(&entry.id)).collect());
        }
        blocks.retain(|entry| !found.contains(&entry.id));
        large.extend(found);
    }
}

fn cut<'a>(blocks: &[&'a BlockEntry], rest: Rest, config: &PolicyConfig) -> Vec<Chunk<'a>> {
    let mut chunks: Vec<Chunk<'a>> = Vec::new();
    for entry in blocks {
        if chunks.last_mut().is_some_and(|open| open.take(entry, config)) {
            continue;
        }
        if let Some(last) = chunks.last_mut() {
            last.filled = true;
        }
        chunks.push(Chunk::of(entry));
    }
    if let Some(last) = chunks.last_mut() {
        last.filled = last.inputs.len() >= config.fan_in;
    }
    chunks.retain(|chunk| chunk.inputs.len() > 1 && (chunk.filled || rest == Rest::Merges));
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::entry;

    #[test]
    fn what_fills_a_merge_and_what_is_too_large_for_it() {
        use Rest::{Merges, Waits};
        // Fan-in 4, 100 spans; blocks by their spans, merges by the numbers of their blocks.
        type Spans = &'static [u64];
        let cases: [(&str, Spans, Rest, &[&[u64]]); 12] = [
            ("nothing", &[], Merges, &[]),
            ("one", &[1], Merges, &[]),
            ("two that wait", &[1, 1], Waits, &[]),
            ("two that do not", &[1, 1], Merges, &[&[0, 1]]),
            ("fan-in", &[1, 1, 1, 1, 1], Waits, &[&[0, 1, 2, 3]]),
            ("fan-in and the rest", &[1, 1, 1, 1, 1, 1], Merges, &[&[0, 1, 2, 3], &[4, 5]]),
            ("a full block before fan-in", &[40, 40, 30], Waits, &[&[0, 1]]),
            ("a full block that is not proven", &[40, 40, 20], Waits, &[]),
            ("one too large for the others", &[49, 5, 5], Merges, &[&[1, 2]]),
            ("not with fan-in", &[49, 1, 1, 1], Waits, &[&[0, 1, 2, 3]]),
            ("two that are, among themselves", &[49, 3, 49, 3], Merges, &[&[0, 2], &[1, 3]]),
            ("each too large for the rest", &[1, 6, 40], Merges, &[]),
        ];
        let config = PolicyConfig { fan_in: 4, target_spans: 100, ..PolicyConfig::default() };
        for (what, spans, rest, expected) in cases {
            let blocks: Vec<BlockEntry> = (0..)
                .zip(spans)
                .map(|(n, spans)| BlockEntry { rows: *spans, size_bytes: spans * 100, filter_bytes: 0, ..entry(n) })
                .collect();
            let mut merges: Vec<Vec<BlockId>> = pack(blocks.iter().collect(), rest, &config)
                .into_iter()
                .map(|chunk| chunk.inputs.iter().map(|entry| entry.id).collect())
                .collect();
            merges.sort();
            let expected: Vec<Vec<BlockId>> =
                expected.iter().map(|numbers| numbers.iter().map(|n| blocks[*n as usize].id).collect()).collect();
            assert_eq!(merges, expected, "{what}");
        }
    }
}
