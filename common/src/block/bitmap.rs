//! One bit a row: which rows have a value.

/// Bits, unset where never set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bitmap {
    words: Vec<u64>,
    ones: usize,
}

impl Bitmap {
    /// Bits of `rows` rows, those set for which `is_set` says so.
    pub(crate) fn of(is_set: impl Iterator<Item = bool>) -> Self {
        let mut out = Self::default();
        is_set.enumerate().filter(|(_, set)| *set).for_each(|(row, _)| out.push(row as u32));
        out
    }

    /// Sets a bit above all that are set.
    #[inline]
    pub(crate) fn push(&mut self, row: u32) {
        let word = row as usize / 64;
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << (row % 64);
        self.ones += 1;
    }

    /// Number of bits set.
    pub(crate) fn ones(&self) -> usize {
        self.ones
    }

    /// Word `at`, zero beyond the last set bit.
    fn word(&self, at: usize) -> u64 {
        self.words.get(at).copied().unwrap_or(0)
    }

    /// Number of bits set among `rows`; they begin at a multiple of 64.
    pub(crate) fn count(&self, rows: std::ops::Range<usize>) -> usize {
        let last = rows.end / 64;
        let whole: u32 = (rows.start / 64..last).map(|at| self.word(at).count_ones()).sum();
        let mask = (1u64 << (rows.end % 64)) - 1;
        (whole + (self.word(last) & mask).count_ones()) as usize
    }

    /// The bits of `rows` as bytes, lowest bit first, the last byte filled up with zeros; they begin at a multiple of 64.
    pub(crate) fn bytes(&self, rows: std::ops::Range<usize>, out: &mut Vec<u8>) {
        out.clear();
        let bytes = rows.len().div_ceil(8);
        for at in rows.start / 64..rows.end.div_ceil(64) {
            out.extend_from_slice(&self.word(at).to_le_bytes());
        }
        out.truncate(bytes);
        if let (Some(last), bits @ 1..) = (out.last_mut(), rows.end % 8) {
            *last &= (1 << bits) - 1;
        }
    }

    /// The rows whose bits are set.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> {
        self.words.iter().enumerate().flat_map(|(at, word)| {
            let mut left = *word;
            std::iter::from_fn(move || {
                let bit = (left != 0).then(|| left.trailing_zeros())?;
                left &= left - 1;
                Some(at as u32 * 64 + bit)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn says_what_was_set(set in prop::collection::vec(any::<bool>(), 0..300), from in 0usize..3) {
            let bits = Bitmap::of(set.iter().copied());
            let rows: Vec<u32> = (0..set.len() as u32).filter(|row| set[*row as usize]).collect();
            prop_assert_eq!(bits.iter().collect::<Vec<_>>(), rows.clone());
            prop_assert_eq!(bits.ones(), rows.len());
            let range = (from * 64).min(set.len() / 64 * 64)..set.len();
            prop_assert_eq!(bits.count(range.clone()), set[range.clone()].iter().filter(|set| **set).count());
            let mut bytes = Vec::new();
            bits.bytes(range.clone(), &mut bytes);
            prop_assert_eq!(bytes.len(), range.len().div_ceil(8));
            for (at, set) in set[range].iter().enumerate() {
                prop_assert_eq!(bytes[at / 8] >> (at % 8) & 1 == 1, *set);
            }
        }
    }
}
