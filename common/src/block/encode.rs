//! Parquet's value encodings, for the chunk writer: run-length/bit-packing hybrid and delta binary packing.
//!
//! Written here and not taken from the parquet crate because its writer hashes every string again to find a dictionary code
//! that we already have (30 to 50 ns a value against 1 to 2). Formats:
//! <https://parquet.apache.org/docs/file-format/data-pages/encodings/>. Tests read everything back through the parquet crate.

use crate::varint::put_varint;

/// Bits needed for codes below `count`.
pub(crate) fn code_width(count: usize) -> u8 {
    (usize::BITS - count.saturating_sub(1).leading_zeros()) as u8
}

fn put_zigzag(value: i64, out: &mut Vec<u8>) {
    put_varint(((value << 1) ^ (value >> 63)) as u64, out);
}

/// Values that fit the hybrid encoding.
pub(crate) trait Level: Copy + PartialEq {
    fn bits(self) -> u32;
}

impl Level for u8 {
    fn bits(self) -> u32 {
        u32::from(self)
    }
}

impl Level for u32 {
    fn bits(self) -> u32 {
        self
    }
}

/// Appends `values` in the run-length/bit-packing hybrid with the given width, without length or width prefix.
pub(crate) fn hybrid<T: Level>(values: &[T], width: u8, out: &mut Vec<u8>) {
    let mut literal_from = 0;
    let mut at = 0;
    while at < values.len() {
        let value = values[at];
        let run = 1 + values[at + 1..].iter().take_while(|next| **next == value).count();
        if run >= 8 {
            // Bit-packed runs hold whole groups of eight: borrow what is missing from the run.
            let borrowed = (at - literal_from).wrapping_neg() % 8;
            if run - borrowed >= 8 {
                let literal_to = at + borrowed;
                bit_packed(&values[literal_from..literal_to], width, out);
                put_varint(((run - borrowed) as u64) << 1, out);
                out.extend_from_slice(&value.bits().to_le_bytes()[..usize::from(width.div_ceil(8))]);
                at += run;
                literal_from = at;
                continue;
            }
        }
        at += run;
    }
    bit_packed(&values[literal_from..], width, out);
}

/// Fewest bytes of equal bits that are written as a run: shorter ones cost more as a run than packed.
const MIN_BIT_RUN: usize = 4;

/// Appends `count` values of one bit, given eight to a byte, in the hybrid. What [`hybrid`] makes of them, faster.
pub(crate) fn hybrid_bits(bits: &[u8], count: usize, out: &mut Vec<u8>) {
    let whole = count / 8;
    let literal = |from: usize, to: usize, out: &mut Vec<u8>| {
        if from < to {
            put_varint(((to - from) as u64) << 1 | 1, out);
            out.extend_from_slice(&bits[from..to]);
        }
    };
    let (mut literal_from, mut at) = (0, 0);
    while at < whole {
        let byte = bits[at];
        if byte != 0 && byte != 0xff {
            at += 1;
            continue;
        }
        let run = 1 + bits[at + 1..whole].iter().take_while(|next| **next == byte).count();
        // The last, incomplete byte belongs to the run if all its bits do.
        let rest = if at + run == whole { count % 8 } else { 0 };
        let rest = if rest > 0 && bits[whole] == byte & ((1 << rest) - 1) { rest } else { 0 };
        if run >= MIN_BIT_RUN {
            literal(literal_from, at, out);
            put_varint(((run * 8 + rest) as u64) << 1, out);
            out.push(byte & 1);
            if rest > 0 {
                return;
            }
            literal_from = at + run;
        }
        at += run;
    }
    literal(literal_from, bits.len(), out);
}

fn bit_packed<T: Level>(values: &[T], width: u8, out: &mut Vec<u8>) {
    if values.is_empty() {
        return;
    }
    let groups = values.len().div_ceil(8);
    put_varint((groups as u64) << 1 | 1, out);
    let (mut buffer, mut filled) = (0u64, 0u32);
    for value in values {
        buffer |= u64::from(value.bits()) << filled;
        filled += u32::from(width);
        if filled >= 32 {
            out.extend_from_slice(&(buffer as u32).to_le_bytes());
            buffer >>= 32;
            filled -= 32;
        }
    }
    // The last group is filled up with zeros.
    let padding = (groups * 8 - values.len()) * usize::from(width) + filled as usize;
    let mut left = padding.div_ceil(8);
    while left > 0 {
        out.push(buffer as u8);
        buffer >>= 8;
        left -= 1;
    }
}

const BLOCK: usize = 128;
const MINIBLOCK: usize = 32;

/// Appends `values` delta binary packed. `narrow` for 32-bit columns, whose differences wrap at 32 bits.
pub(crate) fn delta(values: &[i64], narrow: bool, out: &mut Vec<u8>) {
    put_varint(BLOCK as u64, out);
    put_varint((BLOCK / MINIBLOCK) as u64, out);
    put_varint(values.len() as u64, out);
    let Some((first, rest)) = values.split_first() else {
        put_zigzag(0, out);
        return;
    };
    put_zigzag(*first, out);
    let mut before = *first;
    let mut deltas = [0i64; BLOCK];
    for block in rest.chunks(BLOCK) {
        let mut min = i64::MAX;
        for (slot, value) in deltas.iter_mut().zip(block) {
            let difference = value.wrapping_sub(before);
            *slot = if narrow { i64::from(difference as i32) } else { difference };
            min = min.min(*slot);
            before = *value;
        }
        put_zigzag(min, out);
        let deltas = &mut deltas[..block.len()];
        let mut widths = [0u8; BLOCK / MINIBLOCK];
        for (width, mini) in widths.iter_mut().zip(deltas.chunks_mut(MINIBLOCK)) {
            let mut all = 0u64;
            for value in mini {
                let offset = value.wrapping_sub(min) as u64;
                *value = if narrow { i64::from(offset as u32) } else { offset as i64 };
                all |= *value as u64;
            }
            *width = (64 - all.leading_zeros()) as u8;
        }
        out.extend_from_slice(&widths);
        for (width, mini) in widths.iter().zip(deltas.chunks(MINIBLOCK)) {
            pack_miniblock(mini, u32::from(*width), out);
        }
    }
}

fn pack_miniblock(values: &[i64], width: u32, out: &mut Vec<u8>) {
    let end = out.len() + width as usize * MINIBLOCK / 8;
    let (mut buffer, mut filled) = (0u128, 0u32);
    for value in values {
        buffer |= u128::from(*value as u64) << filled;
        filled += width;
        if filled >= 64 {
            out.extend_from_slice(&(buffer as u64).to_le_bytes());
            buffer >>= 64;
            filled -= 64;
        }
    }
    while filled > 0 {
        out.push(buffer as u8);
        buffer >>= 8;
        filled = filled.saturating_sub(8);
    }
    out.resize(end, 0);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::decode::Hybrid;
    use super::*;

    proptest! {
        #[test]
        fn bits_read_back_as_values_and_positions(
            runs in prop::collection::vec((any::<bool>(), 1usize..120), 0..40),
            (from, length, chosen) in (0usize..2000, 0usize..2000, 0u32..2),
        ) {
            let values: Vec<u32> = runs.iter().flat_map(|(set, n)| std::iter::repeat_n(u32::from(*set), *n)).collect();
            let bytes: Vec<u8> =
                values.chunks(8).map(|eight| eight.iter().zip(0..).fold(0, |byte, (bit, at)| byte | (*bit as u8) << at)).collect();
            let mut buf = Vec::new();
            hybrid_bits(&bytes, values.len(), &mut buf);
            let hybrid = Hybrid::new(&buf, 1, chosen).unwrap();
            prop_assert_eq!(&hybrid.values(0..values.len()).unwrap(), &values);
            let range = from.min(values.len())..(from + length).min(values.len());
            let mut found = Vec::new();
            hybrid.positions(range.clone(), 7, &mut found).unwrap();
            let expected: Vec<u32> = (7..).zip(&values[range]).filter(|(_, bit)| **bit == chosen).map(|(at, _)| at).collect();
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn widths_of_codes() {
        assert_eq!([0, 1, 2, 3, 4, 5, 256, 257].map(code_width), [0, 0, 1, 2, 2, 3, 8, 9]);
    }

    #[test]
    fn a_run_after_an_odd_number_of_literals_lends_them_values() {
        let mut out = Vec::new();
        hybrid(&[1u32, 2, 3, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7], 3, &mut out);
        // One bit-packed group of eight (1,2,3,7,7,7,7,7), then a run of eight sevens.
        assert_eq!(out, [0b11, 0b1101_0001, 0b1111_1110, 0b1111_1111, 8 << 1, 7]);
    }
}
