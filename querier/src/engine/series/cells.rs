//! Values by time bucket: a list while few buckets have one, an array when many do.

/// Something that adds up.
pub(crate) trait Merge: Clone + Default {
    fn merge(&mut self, other: &Self);
    /// Bytes on the heap.
    fn heap_bytes(&self) -> usize {
        0
    }
}

impl Merge for u64 {
    fn merge(&mut self, other: &Self) {
        *self += other;
    }
}

/// A value for some of the buckets of a grid.
#[derive(Debug, Clone)]
pub(crate) enum Cells<T> {
    /// Bucket and value, in no order.
    Few(Vec<(u32, T)>),
    /// By bucket; defaults where there is none.
    All(Vec<T>),
}

/// A list of more than so many buckets becomes an array.
const FEW: usize = 12;

impl<T> Default for Cells<T> {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

impl<T: Merge> Cells<T> {
    /// The value of a bucket, to change it.
    #[inline]
    pub(crate) fn at(&mut self, bucket: u32, buckets: usize) -> &mut T {
        match self {
            Self::All(all) => &mut all[bucket as usize],
            few => few.at_few(bucket, buckets),
        }
    }

    fn at_few(&mut self, bucket: u32, buckets: usize) -> &mut T {
        let mut known = None;
        if let Self::Few(list) = self {
            // Neighbouring spans are of neighbouring times: the last one used is likely.
            known = list.iter().rposition(|(known, _)| *known == bucket);
            if known.is_none() && list.len() >= FEW.min(buckets / 2) {
                let mut all = vec![T::default(); buckets];
                for (bucket, value) in std::mem::take(list) {
                    all[bucket as usize] = value;
                }
                *self = Self::All(all);
            }
        }
        match self {
            Self::All(all) => &mut all[bucket as usize],
            Self::Few(list) => {
                let at = known.unwrap_or_else(|| {
                    list.push((bucket, T::default()));
                    list.len() - 1
                });
                &mut list[at].1
            }
        }
    }

    pub(crate) fn merge(&mut self, other: &Self, buckets: usize) {
        match other {
            Self::Few(list) => list.iter().for_each(|(bucket, value)| self.at(*bucket, buckets).merge(value)),
            Self::All(all) => {
                if let Self::Few(list) = self {
                    let few = std::mem::take(list);
                    *self = Self::All(all.clone());
                    few.iter().for_each(|(bucket, value)| self.at(*bucket, buckets).merge(value));
                } else if let Self::All(own) = self {
                    own.iter_mut().zip(all).for_each(|(own, other)| own.merge(other));
                }
            }
        }
    }

    /// Calls `each` for buckets that may have a value.
    pub(crate) fn each(&self, mut each: impl FnMut(usize, &T)) {
        match self {
            Self::Few(list) => list.iter().for_each(|(bucket, value)| each(*bucket as usize, value)),
            Self::All(all) => all.iter().enumerate().for_each(|(bucket, value)| each(bucket, value)),
        }
    }

    /// The value of each bucket that may have one.
    pub(crate) fn by_bucket(&self, buckets: usize) -> Vec<Option<&T>> {
        let mut out = vec![None; buckets];
        match self {
            Self::Few(list) => list.iter().for_each(|(bucket, value)| out[*bucket as usize] = Some(value)),
            Self::All(all) => out.iter_mut().zip(all).for_each(|(out, value)| *out = Some(value)),
        }
        out
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        let mut inner = 0;
        self.each(|_, value| inner += value.heap_bytes());
        inner
            + match self {
                Self::Few(list) => list.capacity() * size_of::<(u32, T)>(),
                Self::All(all) => all.capacity() * size_of::<T>(),
            }
    }
}
