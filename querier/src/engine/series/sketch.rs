//! Quantiles of whole numbers from counts in buckets of equal relative width.
//!
//! A bucket is a power of two cut into 64 equal parts, so its middle is at most 1/128 off any value in it: 0.8 %. Numbers below
//! 128 have a bucket each. (The layout of HDR histograms.) Sketches add up exactly, in any order.

use super::cells::Merge;

/// Equal parts of a power of two.
const PARTS: u32 = 64;
const PART_BITS: u32 = PARTS.trailing_zeros();

/// Counts by bucket.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sketch {
    /// The bucket of the first count.
    first: u16,
    counts: Vec<u32>,
    /// Counts above what 32 bits hold, by bucket; almost always empty.
    over: Vec<(u16, u64)>,
    total: u64,
}

fn bucket_of(value: u64) -> u16 {
    let bits = 64 - value.leading_zeros();
    if bits <= PART_BITS + 1 {
        return value as u16;
    }
    let shift = bits - PART_BITS - 1;
    // The leading one is implied: what follows it says which part.
    (((shift + 1) << PART_BITS) + ((value >> shift) as u32 - PARTS)) as u16
}

/// The middle of a bucket.
fn middle_of(bucket: u16) -> f64 {
    let bucket = u32::from(bucket);
    if bucket < 2 * PARTS {
        return f64::from(bucket);
    }
    let (shift, part) = ((bucket >> PART_BITS) - 1, bucket % PARTS);
    let low = f64::from(PARTS + part) * 2f64.powi(shift as i32);
    // Values are whole, so the last one in the bucket is one below the next bucket.
    low + (2f64.powi(shift as i32) - 1.0) / 2.0
}

impl Sketch {
    #[inline]
    pub(crate) fn add(&mut self, value: u64) {
        let bucket = bucket_of(value);
        match self.counts.get_mut(usize::from(bucket.wrapping_sub(self.first))) {
            Some(count) if *count < u32::MAX => {
                *count += 1;
                self.total += 1;
            }
            _ => self.add_count(bucket, 1),
        }
    }

    fn add_count(&mut self, bucket: u16, count: u64) {
        self.total += count;
        if self.counts.is_empty() {
            self.first = bucket;
        }
        if bucket < self.first {
            let more = usize::from(self.first - bucket);
            self.counts.splice(0..0, std::iter::repeat_n(0, more));
            self.first = bucket;
        }
        let at = usize::from(bucket - self.first);
        if at >= self.counts.len() {
            self.counts.resize(at + 1, 0);
        }
        match u32::try_from(count).ok().and_then(|count| self.counts[at].checked_add(count)) {
            Some(sum) => self.counts[at] = sum,
            None => match self.over.iter_mut().find(|(known, _)| *known == bucket) {
                Some((_, over)) => *over += count,
                None => self.over.push((bucket, count)),
            },
        }
    }

    /// Takes away what was added before.
    pub(crate) fn subtract(&mut self, other: &Self) {
        for (bucket, count) in (other.first..).zip(&other.counts).filter(|(_, count)| **count > 0) {
            self.take_count(bucket, u64::from(*count));
        }
        for (bucket, count) in &other.over {
            self.take_count(*bucket, *count);
        }
    }

    fn take_count(&mut self, bucket: u16, count: u64) {
        let at = usize::from(bucket.wrapping_sub(self.first));
        let over = self.over.iter().position(|(known, _)| *known == bucket);
        let held = self.counts.get(at).map_or(0, |known| u64::from(*known)) + over.map_or(0, |over| self.over[over].1);
        let left = held.saturating_sub(count);
        self.total = self.total.saturating_sub(held - left);
        if let Some(over) = over {
            self.over.swap_remove(over);
        }
        if let Some(known) = self.counts.get_mut(at) {
            *known = 0;
        }
        if left > 0 {
            self.total -= left;
            self.add_count(bucket, left);
        }
    }

    /// The value of nearest rank, within 0.8 %; `None` without values.
    pub(crate) fn quantile(&self, quantile: f64) -> Option<f64> {
        if self.total == 0 {
            return None;
        }
        let rank = ((quantile * self.total as f64).ceil() as u64).clamp(1, self.total);
        let mut below = 0;
        for (bucket, count) in (self.first..).zip(&self.counts) {
            let over = self.over.iter().find(|(known, _)| *known == bucket).map_or(0, |(_, over)| *over);
            below += u64::from(*count) + over;
            if below >= rank {
                return Some(middle_of(bucket));
            }
        }
        None
    }
}

impl Merge for Sketch {
    fn merge(&mut self, other: &Self) {
        for (bucket, count) in (other.first..).zip(&other.counts).filter(|(_, count)| **count > 0) {
            self.add_count(bucket, u64::from(*count));
        }
        for (bucket, count) in &other.over {
            self.add_count(*bucket, *count);
        }
    }

    fn heap_bytes(&self) -> usize {
        self.counts.capacity() * 4 + self.over.capacity() * 16
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn buckets_follow_each_other() {
        for value in (0..100_000u64).chain((17..64).flat_map(|bits| [(1 << bits) - 1, 1 << bits, (1 << bits) + 1])) {
            assert!(bucket_of(value + 1) >= bucket_of(value), "{value}");
            assert!(bucket_of(value + 1) - bucket_of(value) <= 1, "{value}");
        }
    }

    proptest! {
        #[test]
        fn what_is_taken_away_was_never_there(
            kept in prop::collection::vec(prop_oneof![0u64..300, any::<u64>()], 1..50),
            gone in prop::collection::vec(prop_oneof![0u64..300, any::<u64>()], 0..50),
            quantile in 0.0f64..=1.0,
        ) {
            let of = |values: &[u64]| {
                let mut sketch = Sketch::default();
                values.iter().for_each(|value| sketch.add(*value));
                sketch
            };
            let mut both = of(&kept);
            both.merge(&of(&gone));
            both.subtract(&of(&gone));
            prop_assert_eq!(both.quantile(quantile), of(&kept).quantile(quantile));
            both.subtract(&of(&kept));
            prop_assert_eq!(both.quantile(quantile), None);
        }

        #[test]
        fn nearest_rank_within_one_per_cent(
            mut values in prop::collection::vec(prop_oneof![0u64..300, 0u64..1_000_000, any::<u64>()], 1..300),
            quantile in 0.0f64..=1.0,
        ) {
            let (mut left, mut right) = (Sketch::default(), Sketch::default());
            for (at, value) in values.iter().enumerate() {
                if at % 3 == 0 { left.add(*value) } else { right.add(*value) }
            }
            left.merge(&right);
            values.sort_unstable();
            let rank = ((quantile * values.len() as f64).ceil() as usize).clamp(1, values.len());
            let exact = values[rank - 1] as f64;
            let found = left.quantile(quantile).unwrap();
            prop_assert!((found - exact).abs() <= exact * 0.008, "{found} for {exact}");
        }
    }
}
