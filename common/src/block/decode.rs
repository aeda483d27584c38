//! Parquet's value encodings, reading: the counterpart of `encode`, able to read a few values out of a page without the rest.
//!
//! Everything is bounds-checked: a damaged page gives an error, never a panic or an unbounded allocation.

use std::ops::Range;

/// The page does not hold what its header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("page is damaged: {0}")]
pub(crate) struct BadPage(pub(crate) &'static str);

type Result<T> = std::result::Result<T, BadPage>;

fn varint(buf: &[u8], at: &mut usize) -> Result<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = *buf.get(*at).ok_or(BadPage("truncated varint"))?;
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(BadPage("varint too long"))
}

fn zigzag(buf: &[u8], at: &mut usize) -> Result<i64> {
    let raw = varint(buf, at)?;
    Ok((raw >> 1) as i64 ^ -((raw & 1) as i64))
}

/// Walks the runs of a run-length/bit-packing hybrid.
pub(crate) struct Hybrid<'a> {
    buf: &'a [u8],
    width: u32,
}

impl<'a> Hybrid<'a> {
    pub(crate) fn new(buf: &'a [u8], width: u8) -> Result<Self> {
        if width > 32 { Err(BadPage("bit width over 32")) } else { Ok(Self { buf, width: u32::from(width) }) }
    }

    /// Calls `run` or `packed` for each stretch of values within `range`: a repeated value and how often, or single values.
    pub(crate) fn visit(&self, range: Range<usize>, mut each: impl FnMut(u32, usize)) -> Result<()> {
        let (mut at, mut position) = (0, 0usize);
        while position < range.end {
            let header = varint(self.buf, &mut at)?;
            if header & 1 == 0 {
                let len = usize::try_from(header >> 1).map_err(|_| BadPage("run too long"))?;
                let width = self.width.div_ceil(8) as usize;
                let bytes = self.buf.get(at..at + width).ok_or(BadPage("truncated run"))?;
                at += width;
                let mut value = [0; 4];
                value[..width].copy_from_slice(bytes);
                let end = position.checked_add(len).ok_or(BadPage("run too long"))?;
                let from = position.max(range.start);
                let to = end.min(range.end);
                if from < to {
                    each(u32::from_le_bytes(value), to - from);
                }
                if len == 0 {
                    return Err(BadPage("empty run"));
                }
                position = end;
            } else {
                let groups = usize::try_from(header >> 1).map_err(|_| BadPage("run too long"))?;
                let bytes = groups.checked_mul(self.width as usize).ok_or(BadPage("run too long"))?;
                // The last run may be cut where its padding would be.
                let packed = &self.buf[at.min(self.buf.len())..(at.saturating_add(bytes)).min(self.buf.len())];
                at = at.saturating_add(bytes);
                let end = position.saturating_add(groups.saturating_mul(8));
                for value in position.max(range.start)..end.min(range.end) {
                    each(unpack(packed, value - position, self.width)?, 1);
                }
                if groups == 0 {
                    return Err(BadPage("empty run"));
                }
                position = end;
            }
        }
        Ok(())
    }

    /// The values in `range`.
    pub(crate) fn values(&self, range: Range<usize>) -> Result<Vec<u32>> {
        let mut out = Vec::with_capacity(range.len().min(1 << 20));
        self.visit(range, |value, times| out.extend(std::iter::repeat_n(value, times)))?;
        Ok(out)
    }

    /// How many of the values in `range` equal `wanted`.
    pub(crate) fn count(&self, range: Range<usize>, wanted: u32) -> Result<usize> {
        let mut count = 0;
        self.visit(range, |value, times| count += if value == wanted { times } else { 0 })?;
        Ok(count)
    }
}

/// Value number `index` of a bit-packed run.
#[inline]
fn unpack(packed: &[u8], index: usize, width: u32) -> Result<u32> {
    if width == 0 {
        return Ok(0);
    }
    let bit = index * width as usize;
    let (byte, shift) = (bit / 8, bit % 8);
    let mut raw = [0u8; 8];
    let end = (byte + 8).min(packed.len());
    if (bit + width as usize).div_ceil(8) > packed.len() {
        return Err(BadPage("truncated bit-packed run"));
    }
    raw[..end - byte].copy_from_slice(&packed[byte..end]);
    Ok(((u64::from_le_bytes(raw) >> shift) & ((1u64 << width) - 1)) as u32)
}

/// The delta-packed values in `range`, of `count` values in the page. `narrow` wraps at 32 bits.
pub(crate) fn delta(buf: &[u8], range: Range<usize>, narrow: bool) -> Result<Vec<i64>> {
    let mut at = 0;
    let block = varint(buf, &mut at)? as usize;
    let miniblocks = varint(buf, &mut at)? as usize;
    let total = varint(buf, &mut at)? as usize;
    let mut value = zigzag(buf, &mut at)?;
    if block == 0 || block > 1 << 16 || miniblocks == 0 || !block.is_multiple_of(miniblocks) || range.end > total {
        return Err(BadPage("delta header"));
    }
    let per_miniblock = block / miniblocks;
    // The format demands multiples of 32; of 8 is what keeps miniblocks at whole bytes.
    if !per_miniblock.is_multiple_of(32) {
        return Err(BadPage("delta header"));
    }
    let mut out = Vec::with_capacity(range.len().min(1 << 20));
    let mut position = 0;
    if range.contains(&0) {
        out.push(value);
    }
    position += 1;
    while position < range.end {
        let min = zigzag(buf, &mut at)?;
        let widths = buf.get(at..at + miniblocks).ok_or(BadPage("truncated delta block"))?;
        at += miniblocks;
        for width in widths {
            if position >= range.end {
                break;
            }
            let width = usize::from(*width);
            if width > 64 {
                return Err(BadPage("delta width over 64"));
            }
            let bytes = per_miniblock * width / 8;
            let packed = buf.get(at..at + bytes).ok_or(BadPage("truncated delta block"))?;
            at += bytes;
            let (mut buffer, mut filled, mut next) = (0u128, 0usize, 0usize);
            let mask = if width == 64 { u64::MAX } else { (1u64 << width) - 1 };
            for _ in 0..per_miniblock.min(range.end - position) {
                while filled < width {
                    buffer |= u128::from(packed[next]) << filled;
                    filled += 8;
                    next += 1;
                }
                let offset = (buffer as u64 & mask) as i64;
                buffer >>= width;
                filled -= width;
                value = value.wrapping_add(min).wrapping_add(offset);
                if narrow {
                    value = i64::from(value as i32);
                }
                if position >= range.start {
                    out.push(value);
                }
                position += 1;
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::encode;
    use super::*;

    /// Miniblocks of one value would end inside a byte, and reading them beyond the last.
    #[test]
    fn miniblocks_of_odd_length_are_refused() {
        assert!(delta(&[2, 2, 2, 0, 0, 7, 7], 0..2, false).is_err());
    }

    proptest! {
        #[test]
        fn hybrid_round_trips(runs in prop::collection::vec((0u32..9, 1usize..40), 1..40), cut in any::<prop::sample::Index>()) {
            let values: Vec<u32> = runs.iter().flat_map(|(v, n)| std::iter::repeat_n(*v, *n)).collect();
            let mut buf = Vec::new();
            encode::hybrid(&values, 4, &mut buf);
            let hybrid = Hybrid::new(&buf, 4).unwrap();
            let from = cut.index(values.len());
            prop_assert_eq!(hybrid.values(from..values.len()).unwrap(), &values[from..]);
            prop_assert_eq!(hybrid.count(0..from, 3).unwrap(), values[..from].iter().filter(|v| **v == 3).count());
        }

        #[test]
        fn delta_round_trips(values in prop::collection::vec(any::<i64>(), 1..400), small in any::<bool>(), cut in any::<prop::sample::Index>()) {
            let values: Vec<i64> = values.iter().map(|v| if small { i64::from(*v as i32) } else { *v }).collect();
            let mut buf = Vec::new();
            encode::delta(&values, small, &mut buf);
            let from = cut.index(values.len());
            prop_assert_eq!(delta(&buf, from..values.len(), small).unwrap(), &values[from..]);
        }

        #[test]
        fn damage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..80), width in 0u8..34, to in 0usize..2000) {
            if let Ok(hybrid) = Hybrid::new(&bytes, width) {
                let _ = hybrid.values(0..to);
            }
            let _ = delta(&bytes, 0..to, false);
        }
    }
}
