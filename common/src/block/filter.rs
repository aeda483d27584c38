//! The trace-id filter of a block: a bloom filter over its trace ids, in a sidecar object.
//!
//! Bytes are those of the `bloomfilter` crate (version 3: version byte, bitmap length, number of hash functions, seed, bitmap),
//! with a fixed seed and keys hashed as their 16 bytes alone, so that a filter means the same on every machine: the crate seeds
//! at random by default, and Rust hashes the length of a slice along with it.

use std::hash::{Hash, Hasher};

use bloomfilter::Bloom;

use crate::id::TraceId;

/// One false answer in 100,000 lookups of absent ids.
const FALSE_POSITIVES: f64 = 1e-5;
const SEED: [u8; 32] = *b"spanhouse trace-id filter, v1...";

/// Hashes the 16 bytes and nothing else.
#[derive(Debug)]
struct Key(TraceId);

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.0.0);
    }
}

/// Says of a trace id that it is surely not in a block, or that it may be.
#[derive(Debug)]
pub struct TraceIdFilter(Bloom<Key>);

/// The sidecar's bytes are not a filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("trace-id filter: {0}")]
pub struct BadFilter(pub String);

impl TraceIdFilter {
    /// A filter over `ids`, each given once; `count` of them.
    pub fn build(ids: impl Iterator<Item = TraceId>, count: usize) -> Result<Self, BadFilter> {
        let mut filter = Self::empty(count)?;
        ids.for_each(|id| filter.add(id));
        Ok(filter)
    }

    /// A filter for `count` ids, without any.
    pub fn empty(count: usize) -> Result<Self, BadFilter> {
        let bloom = Bloom::new_for_fp_rate_with_seed(count.max(1), FALSE_POSITIVES, &SEED);
        Ok(Self(bloom.map_err(|e| BadFilter(e.to_owned()))?))
    }

    pub fn add(&mut self, id: TraceId) {
        self.0.set(&Key(id));
    }

    /// Whether the id may be in the block. `false` is certain.
    pub fn may_contain(&self, id: TraceId) -> bool {
        self.0.check(&Key(id))
    }

    /// The sidecar object: the filter and a CRC-32C of it, little endian, so that a damaged filter never hides a trace.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.0.to_bytes();
        let sum = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&sum.to_le_bytes());
        bytes
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, BadFilter> {
        let Some((body, sum)) = bytes.split_last_chunk::<4>() else {
            return Err(BadFilter(format!("{} bytes are too few", bytes.len())));
        };
        if crc32c::crc32c(body) != u32::from_le_bytes(*sum) {
            return Err(BadFilter("checksum does not match".into()));
        }
        let bloom = Bloom::from_slice(body).map_err(|e| BadFilter(e.to_owned()))?;
        if bloom.seed() != SEED {
            return Err(BadFilter("made with another seed".into()));
        }
        Ok(Self(bloom))
    }

    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.0.as_slice().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u128) -> TraceId {
        TraceId((n.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)).to_be_bytes())
    }

    #[test]
    fn holds_what_was_put_in_and_little_else() {
        let filter = TraceIdFilter::build((1..=1000).map(id), 1000).unwrap();
        let filter = TraceIdFilter::from_bytes(&filter.to_bytes()).unwrap();
        assert!((1..=1000).all(|n| filter.may_contain(id(n))));
        let wrong = (10_000..110_000).filter(|n| filter.may_contain(id(*n))).count();
        assert!(wrong < 10, "{wrong} false positives in 100,000");
    }

    #[test]
    fn bytes_are_the_same_everywhere() {
        let filter = TraceIdFilter::build([id(7)].into_iter(), 1).unwrap();
        assert_eq!(crc32c::crc32c(&filter.to_bytes()), PINNED);
    }

    /// From the first version: changing it breaks every filter on disk.
    const PINNED: u32 = 0x4867_4bc7;

    #[test]
    fn damage_is_found() {
        let bytes = TraceIdFilter::build((1..=10).map(id), 10).unwrap().to_bytes();
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x10;
            assert!(TraceIdFilter::from_bytes(&bad).is_err(), "byte {at}");
        }
        assert!(TraceIdFilter::from_bytes(&[]).is_err());
    }
}
