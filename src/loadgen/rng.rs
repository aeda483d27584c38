//! A small random generator whose numbers are the same on every platform and in every version: `--seed` depends on it.

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64's finaliser: a bijection, so distinct inputs give distinct ids without remembering any.
pub(super) const fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// SplitMix64.
#[derive(Debug, Clone)]
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Self(mix(seed ^ GOLDEN))
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0)
    }

    /// 0 to `n` - 1.
    pub(super) fn below(&mut self, n: u32) -> u32 {
        (((self.next() >> 32) * u64::from(n)) >> 32) as u32
    }

    pub(super) fn percent(&mut self, chance: u8) -> bool {
        chance >= 100 || self.below(100) < u32::from(chance)
    }
}

/// Ids of spans: the same for a run's seed and the span's number, never 0, never twice.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ids(u64);

impl Ids {
    pub(super) fn new(seed: u64) -> Self {
        Self(mix(seed.wrapping_add(GOLDEN)) | 1 << 63)
    }

    /// `number` starts at 1. `mix` maps only 0 to 0, and key + number is not 0 for any number a run reaches.
    pub(super) fn span(self, number: u64) -> u64 {
        mix((self.0 >> 1).wrapping_add(number))
    }

    pub(super) fn trace(self, number: u64) -> [u8; 16] {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&mix(self.0 ^ number).to_be_bytes());
        id[8..].copy_from_slice(&mix(self.0.rotate_left(17).wrapping_add(number)).to_be_bytes());
        id
    }
}
