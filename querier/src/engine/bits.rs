//! A set of slots, one bit each: what filters and structural operators work on.

/// Bits of a fixed number of slots.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Bits {
    words: Vec<u64>,
    len: usize,
}

impl Bits {
    pub(crate) fn none(len: usize) -> Self {
        Self { words: vec![0; len.div_ceil(64)], len }
    }

    pub(crate) fn all(len: usize) -> Self {
        let mut out = Self { words: vec![u64::MAX; len.div_ceil(64)], len };
        out.trim();
        out
    }

    /// The slots `is_set` holds for.
    pub(crate) fn of(len: usize, mut is_set: impl FnMut(usize) -> bool) -> Self {
        let mut out = Self::none(len);
        for (number, word) in out.words.iter_mut().enumerate() {
            let from = number * 64;
            let mut bits = 0;
            for at in from..(from + 64).min(len) {
                bits |= u64::from(is_set(at)) << (at - from);
            }
            *word = bits;
        }
        out
    }

    /// Of one value a slot, in order.
    pub(crate) fn of_values<T>(values: &[T], mut is_set: impl FnMut(&T) -> bool) -> Self {
        let mut words = Vec::with_capacity(values.len().div_ceil(64));
        for chunk in values.chunks(64) {
            let mut bits = 0u64;
            for (at, value) in chunk.iter().enumerate() {
                bits |= u64::from(is_set(value)) << at;
            }
            words.push(bits);
        }
        Self { words, len: values.len() }
    }

    fn trim(&mut self) {
        if let Some(last) = self.words.last_mut().filter(|_| !self.len.is_multiple_of(64)) {
            *last &= (1 << (self.len % 64)) - 1;
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub(crate) fn get(&self, at: usize) -> bool {
        self.words[at / 64] >> (at % 64) & 1 == 1
    }

    #[inline]
    pub(crate) fn set(&mut self, at: usize) {
        self.words[at / 64] |= 1 << (at % 64);
    }

    pub(crate) fn clear(&mut self, at: usize) {
        self.words[at / 64] &= !(1 << (at % 64));
    }

    /// Clears a stretch.
    pub(crate) fn clear_range(&mut self, from: usize, to: usize) {
        let mut at = from;
        while at < to {
            let (word, bit) = (at / 64, at % 64);
            let count = (64 - bit).min(to - at);
            let mask = if count == 64 { u64::MAX } else { ((1 << count) - 1) << bit };
            self.words[word] &= !mask;
            at += count;
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    pub(crate) fn is_none(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// Whether one is set in a stretch. Looks no further.
    pub(crate) fn any_in(&self, from: usize, to: usize) -> bool {
        let mut at = from;
        while at < to {
            let bit = at % 64;
            let width = (64 - bit).min(to - at);
            let mask = if width == 64 { u64::MAX } else { (1 << width) - 1 };
            if self.words[at / 64] >> bit & mask != 0 {
                return true;
            }
            at += width;
        }
        false
    }

    /// How many are set in a stretch.
    pub(crate) fn count_range(&self, from: usize, to: usize) -> usize {
        let (mut at, mut count) = (from, 0);
        while at < to {
            let bit = at % 64;
            let width = (64 - bit).min(to - at);
            let mask = if width == 64 { u64::MAX } else { (1 << width) - 1 };
            count += (self.words[at / 64] >> bit & mask).count_ones() as usize;
            at += width;
        }
        count
    }

    pub(crate) fn and(&mut self, other: &Self) {
        self.words.iter_mut().zip(&other.words).for_each(|(a, b)| *a &= b);
    }

    pub(crate) fn or(&mut self, other: &Self) {
        self.words.iter_mut().zip(&other.words).for_each(|(a, b)| *a |= b);
    }

    pub(crate) fn and_not(&mut self, other: &Self) {
        self.words.iter_mut().zip(&other.words).for_each(|(a, b)| *a &= !b);
    }

    pub(crate) fn not(mut self) -> Self {
        self.words.iter_mut().for_each(|word| *word = !*word);
        self.trim();
        self
    }

    /// The first set slot at or after `from`.
    #[inline]
    pub(crate) fn next(&self, from: usize) -> Option<usize> {
        if from >= self.len {
            return None;
        }
        let mut number = from / 64;
        let mut word = self.words[number] & (u64::MAX << (from % 64));
        while word == 0 {
            number += 1;
            word = *self.words.get(number)?;
        }
        Some(number * 64 + word.trailing_zeros() as usize)
    }

    /// The set slots, ascending.
    pub(crate) fn ones(&self) -> impl Iterator<Item = usize> + '_ {
        self.ones_in(0, self.len)
    }

    /// The set slots of a stretch, ascending.
    pub(crate) fn ones_in(&self, from: usize, to: usize) -> impl Iterator<Item = usize> + '_ {
        let mut number = from / 64;
        let first = self.words.get(number).copied().unwrap_or(0) & (u64::MAX << (from % 64));
        let mut word = if from < to { first } else { 0 };
        std::iter::from_fn(move || {
            while word == 0 {
                number += 1;
                if number * 64 >= to {
                    return None;
                }
                word = *self.words.get(number)?;
            }
            let at = number * 64 + word.trailing_zeros() as usize;
            word &= word - 1;
            (at < to).then_some(at)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bits_are_a_set(set in prop::collection::btree_set(0usize..300, 0..60), from in 0usize..300, to in 0usize..300) {
            let bits = Bits::of(300, |at| set.contains(&at));
            prop_assert_eq!(bits.ones().collect::<Vec<_>>(), set.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(bits.count(), set.len());
            prop_assert_eq!(bits.clone().not().count(), 300 - set.len());
            prop_assert_eq!(bits.next(from), set.range(from..).next().copied());
            if from <= to {
                let within: Vec<usize> = set.range(from..to).copied().collect();
                prop_assert_eq!(bits.ones_in(from, to).collect::<Vec<_>>(), within.clone());
                prop_assert_eq!(bits.count_range(from, to), within.len());
                prop_assert_eq!(bits.any_in(from, to), !within.is_empty());
                let mut cleared = bits.clone();
                cleared.clear_range(from, to);
                prop_assert_eq!(cleared.count(), set.len() - within.len());
            }
        }
    }
}
