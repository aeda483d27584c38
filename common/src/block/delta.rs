//! Parquet's delta packing, reading: whole numbers as differences from the one before, packed to bits by miniblock.
//!
//! Everything is bounds-checked: a damaged page gives an error, never a panic or an unbounded allocation.

use std::ops::Range;

use super::decode::{BadPage, varint, word_at, zigzag};

type Result<T> = std::result::Result<T, BadPage>;

/// A delta-packed page: every value depends on all before it, so each block of it has a mark to begin reading at.
#[derive(Debug)]
pub(crate) struct Delta {
    total: usize,
    first: i64,
    block: usize,
    miniblocks: usize,
    /// Where each block starts in the page, and the value before it.
    marks: Vec<(u32, i64)>,
}

impl Delta {
    /// Walks the page, which may have `at_most` values: a block of equal differences takes two bytes however long it is.
    /// `narrow` wraps at 32 bits.
    pub(crate) fn new(buf: &[u8], at_most: usize, narrow: bool) -> Result<Self> {
        let mut at = 0;
        let block = varint(buf, &mut at)? as usize;
        let miniblocks = varint(buf, &mut at)? as usize;
        let total = varint(buf, &mut at)? as usize;
        let first = zigzag(buf, &mut at)?;
        // The format demands miniblocks of multiples of 32 values; of 8 is what keeps them at whole bytes.
        let sound = block != 0 && block <= 1 << 16 && miniblocks != 0 && block.is_multiple_of(miniblocks);
        if !sound || !(block / miniblocks).is_multiple_of(32) || total > at_most || u32::try_from(buf.len()).is_err() {
            return Err(BadPage("delta header"));
        }
        let mut out = Self { total, first, block, miniblocks, marks: Vec::new() };
        let (mut position, mut value) = (1, first);
        // Each block takes a byte at least, so marks are bounded by the page.
        while position < total {
            out.marks.push((at as u32, value));
            let end = total.min(position.saturating_add(block));
            out.block_values(buf, &mut at, end - position, narrow, &mut value, &mut Last)?;
            position = end;
        }
        Ok(out)
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        self.marks.capacity() * size_of::<(u32, i64)>()
    }

    /// Hands on the first `count` values of the block at `at`.
    fn block_values(
        &self,
        buf: &[u8],
        at: &mut usize,
        count: usize,
        narrow: bool,
        value: &mut i64,
        out: &mut impl Sink,
    ) -> Result<()> {
        let min = zigzag(buf, at)?;
        let widths = buf.get(*at..*at + self.miniblocks).ok_or(BadPage("truncated delta block"))?;
        *at += self.miniblocks;
        let per_miniblock = self.block / self.miniblocks;
        let mut done = 0;
        for width in widths {
            if done >= count {
                break;
            }
            let width = usize::from(*width);
            if width > 64 {
                return Err(BadPage("delta width over 64"));
            }
            let bytes = per_miniblock * width / 8;
            let start = *at;
            let packed = buf.get(start..start + bytes).ok_or(BadPage("truncated delta block"))?;
            *at += bytes;
            let mask = if width == 64 { u64::MAX } else { (1u64 << width) - 1 };
            let len = per_miniblock.min(count - done);
            done += len;
            // What a word holds whole, and eight bytes of the page from the last one on: most of all numbers there are.
            let words = buf.get(start..).filter(|rest| len * width / 8 + 8 <= rest.len());
            if let (Some(words), false, ..=56) = (words, narrow, width) {
                out.take((0..len).map(|number| {
                    let bit = number * width;
                    let word = words[bit / 8..].first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes));
                    *value = value.wrapping_add(min.wrapping_add((word >> (bit % 8) & mask) as i64));
                    *value
                }));
                continue;
            }
            out.take((0..len).map(|number| {
                let (byte, shift) = (number * width / 8, number * width % 8);
                let mut offset = word_at(packed, byte) >> shift;
                if shift + width > 64 {
                    offset |= u64::from(packed.get(byte + 8).copied().unwrap_or(0)) << (64 - shift);
                }
                *value = value.wrapping_add(min).wrapping_add((offset & mask) as i64);
                if narrow {
                    *value = i64::from(*value as i32);
                }
                *value
            }));
        }
        Ok(())
    }

    /// The values in `range` of the page this was made of.
    pub(crate) fn values(&self, buf: &[u8], range: Range<usize>, narrow: bool) -> Result<Vec<i64>> {
        let mut out = Vec::new();
        self.append(buf, range, narrow, &mut out)?;
        Ok(out)
    }

    /// Appends the values in `range` of the page this was made of.
    pub(crate) fn append(&self, buf: &[u8], range: Range<usize>, narrow: bool, out: &mut Vec<i64>) -> Result<()> {
        if range.end > self.total {
            return Err(BadPage("fewer values than its levels say"));
        }
        out.reserve(range.len().min(1 << 20));
        if range.contains(&0) {
            out.push(self.first);
        }
        let mut number = range.start.saturating_sub(1) / self.block;
        loop {
            let from = 1 + number * self.block;
            if from >= range.end {
                return Ok(());
            }
            let (start, before) = *self.marks.get(number).ok_or(BadPage("truncated delta block"))?;
            let (mut at, mut value) = (start as usize, before);
            let count = self.block.min(range.end - from);
            let here = out.len();
            self.block_values(buf, &mut at, count, narrow, &mut value, out)?;
            // Of the first block those before the range were needed only to get there.
            out.drain(here..here + range.start.saturating_sub(from).min(count));
            number += 1;
        }
    }
}

/// Takes the values of a miniblock.
trait Sink {
    fn take(&mut self, values: impl Iterator<Item = i64>);
}

impl Sink for Vec<i64> {
    fn take(&mut self, values: impl Iterator<Item = i64>) {
        self.extend(values);
    }
}

/// For whoever only wants to get past them.
struct Last;

impl Sink for Last {
    fn take(&mut self, values: impl Iterator<Item = i64>) {
        values.for_each(drop);
    }
}
