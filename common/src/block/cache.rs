//! A cache of aligned file segments, so that a block read again is read from memory.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use object_store::ObjectStore;
use object_store::path::Path;

/// Bytes per segment: a few pages. Larger wastes memory on neighbours, smaller costs requests when cold.
const SEGMENT: u64 = 128 * 1024;

/// Segments of immutable objects, least recently used out first.
pub struct SegmentCache {
    segments: moka::sync::Cache<(u64, u64), Bytes>,
    keys: AtomicU64,
}

impl std::fmt::Debug for SegmentCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SegmentCache({} bytes)", self.segments.weighted_size())
    }
}

impl SegmentCache {
    /// A cache of at most `bytes`.
    pub fn new(bytes: u64) -> Arc<Self> {
        let weigher = |_: &(u64, u64), segment: &Bytes| segment.len() as u32 + 64;
        let segments = moka::sync::Cache::builder().max_capacity(bytes).weigher(weigher).build();
        Arc::new(Self { segments, keys: AtomicU64::new(0) })
    }

    /// A key under which one object's segments are kept.
    pub(crate) fn next_key(&self) -> u64 {
        self.keys.fetch_add(1, Relaxed)
    }

    /// The segments that cover `ranges` of an object of `file_bytes`; what is missing is read in as few requests as possible.
    pub(crate) async fn fetch(
        &self,
        key: u64,
        store: &Arc<dyn ObjectStore>,
        path: &Path,
        file_bytes: u64,
        ranges: Vec<Range<u64>>,
    ) -> object_store::Result<Vec<(u64, Bytes)>> {
        let mut wanted: Vec<u64> = ranges
            .iter()
            .filter(|range| range.start < range.end)
            .flat_map(|range| range.start / SEGMENT..=(range.end.min(file_bytes).saturating_sub(1)) / SEGMENT)
            .collect();
        wanted.sort_unstable();
        wanted.dedup();
        let mut parts = Vec::with_capacity(wanted.len());
        let mut missing: Vec<Range<u64>> = Vec::new();
        for segment in wanted {
            match self.segments.get(&(key, segment)) {
                Some(bytes) => parts.push((segment * SEGMENT, bytes)),
                None => match missing.last_mut() {
                    Some(run) if run.end == segment => run.end += 1,
                    _ => missing.push(segment..segment + 1),
                },
            }
        }
        if missing.is_empty() {
            return Ok(parts);
        }
        let byte_ranges: Vec<Range<u64>> =
            missing.iter().map(|run| run.start * SEGMENT..(run.end * SEGMENT).min(file_bytes)).collect();
        let read = store.get_ranges(path, &byte_ranges).await?;
        for (range, bytes) in byte_ranges.iter().zip(read) {
            let mut at = range.start;
            while at < range.end {
                let from = (at - range.start) as usize;
                let to = (from + SEGMENT as usize).min(bytes.len());
                // Copied, so that a kept segment does not keep the whole read alive.
                let segment = Bytes::copy_from_slice(bytes.get(from..to).unwrap_or_default());
                self.segments.insert((key, at / SEGMENT), segment.clone());
                parts.push((at, segment));
                at += SEGMENT;
            }
        }
        Ok(parts)
    }
}
