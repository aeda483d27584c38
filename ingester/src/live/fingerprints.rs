//! Which spans were seen recently: finds resends, so that readers know where to look for copies.

use std::hash::{BuildHasher, Hash, Hasher};

use foldhash::fast::RandomState;
use spanhouse_common::batch::Row;
use spanhouse_common::id::TenantId;

const BUCKETS: usize = 1 << 18;
const WAYS: usize = 4;

/// A bounded memory of about a million spans: 4 MiB, made at the first span. Forgets the oldest of a bucket first. May rarely
/// take one span for another (1 in 10^9 lookups); a mark only says that a copy may exist.
#[derive(Debug)]
pub struct Fingerprints {
    buckets: Vec<[u32; WAYS]>,
    hasher: RandomState,
}

impl Fingerprints {
    pub(super) fn new() -> Self {
        Self { buckets: Vec::new(), hasher: RandomState::default() }
    }

    /// Whether a span with the same ids, kind and start was seen; it is remembered from now on.
    pub(super) fn seen(&mut self, tenant: &TenantId, row: &Row) -> bool {
        if self.buckets.is_empty() {
            self.buckets = vec![[0; WAYS]; BUCKETS];
        }
        let mut hasher = self.hasher.build_hasher();
        tenant.hash(&mut hasher);
        hasher.write_u128(u128::from_be_bytes(row.trace_id.0));
        hasher.write_u64(u64::from_be_bytes(row.span_id.0));
        hasher.write_i32(row.kind);
        hasher.write_u64(row.start);
        let hash = hasher.finish();
        let bucket = &mut self.buckets[hash as usize % BUCKETS];
        // 0 marks an empty place.
        let tag = (hash >> 32) as u32 | 1;
        if bucket.contains(&tag) {
            return true;
        }
        bucket.copy_within(..WAYS - 1, 1);
        bucket[0] = tag;
        false
    }
}
