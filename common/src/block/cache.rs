//! What is kept of blocks between reads, within one bound: segments of files as they are stored, and dictionaries, data pages
//! and trace ids inflated and ready to read.
//!
//! Owns how missing bytes are read: in few requests, each over some bytes that were not asked for where that saves another.
//! Does not own open blocks. What is used often stays; a value that is out is read again.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use object_store::ObjectStore;
use object_store::path::Path;
use parquet::bloom_filter::Sbbf;

use super::page::{DataPage, Dictionary, TraceIdPage};
use crate::columns::{TraceTable, TraceTimes};
use crate::id::BlockId;

/// Bytes per segment. Larger reads more that nobody asked for, smaller costs more look-ups.
const SEGMENT: u64 = 32 * 1024;

/// Requests that one read of a block makes at most: its trace ids come by another one before.
const MAX_REQUESTS: usize = 7;

/// Segments that are cheaper read than left out between two others.
const FREE_GAP: u64 = 1;

/// Which part of a file: by the number of a segment, or by the offset of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Part {
    Segment(u64),
    Page(u64),
    /// Of the row group whose trace-id column starts here.
    TraceTable(u64),
    TraceTimes(u64),
}

#[derive(Clone)]
enum Kept {
    Segment(Bytes),
    Dictionary(Arc<Dictionary>),
    Data(Arc<DataPage>),
    TraceIds(Arc<TraceIdPage>),
    TraceTable(Arc<TraceTable>),
    TraceTimes(Arc<TraceTimes>),
    ValueFilter(Arc<Sbbf>, usize),
}

impl Kept {
    fn bytes(&self) -> usize {
        match self {
            Self::Segment(bytes) => bytes.len(),
            Self::Dictionary(dictionary) => dictionary.heap_bytes(),
            Self::Data(page) => page.heap_bytes(),
            Self::TraceIds(page) => page.heap_bytes(),
            Self::TraceTable(table) => table.heap_bytes(),
            Self::TraceTimes(times) => times.heap_bytes(),
            Self::ValueFilter(_, bytes) => *bytes,
        }
    }
}

/// What the cache itself needs for an entry, roughly.
const ENTRY_BYTES: usize = 200;

/// The cache of all blocks of a process.
pub struct BlockCache {
    kept: moka::sync::Cache<(BlockId, Part), Kept, foldhash::fast::RandomState>,
}

impl std::fmt::Debug for BlockCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BlockCache({} bytes)", self.kept.weighted_size())
    }
}

impl BlockCache {
    /// A cache of at most `bytes`.
    pub fn new(bytes: u64) -> Arc<Self> {
        let weigher = |_: &(BlockId, Part), kept: &Kept| u32::try_from(kept.bytes() + ENTRY_BYTES).unwrap_or(u32::MAX);
        let builder = moka::sync::Cache::builder().max_capacity(bytes).weigher(weigher);
        Arc::new(Self { kept: builder.build_with_hasher(Default::default()) })
    }

    /// The part of one block. It outlives the reader: a block opened again finds it.
    pub(crate) fn of_block(self: &Arc<Self>, block: BlockId) -> PartCache {
        PartCache { cache: Arc::clone(self), block }
    }
}

/// One block's part of the cache. Pages are known by their offset in the file.
#[derive(Debug)]
pub(crate) struct PartCache {
    cache: Arc<BlockCache>,
    block: BlockId,
}

impl PartCache {
    fn get(&self, part: Part) -> Option<Kept> {
        self.cache.kept.get(&(self.block, part))
    }

    fn keep(&self, part: Part, kept: Kept) {
        self.cache.kept.insert((self.block, part), kept);
    }

    pub(crate) fn dictionary(&self, offset: u64) -> Option<Arc<Dictionary>> {
        self.get(Part::Page(offset)).and_then(|kept| if let Kept::Dictionary(found) = kept { Some(found) } else { None })
    }

    pub(crate) fn data(&self, offset: u64) -> Option<Arc<DataPage>> {
        self.get(Part::Page(offset)).and_then(|kept| if let Kept::Data(found) = kept { Some(found) } else { None })
    }

    pub(crate) fn trace_ids(&self, offset: u64) -> Option<Arc<TraceIdPage>> {
        self.get(Part::Page(offset)).and_then(|kept| if let Kept::TraceIds(found) = kept { Some(found) } else { None })
    }

    pub(crate) fn trace_table(&self, offset: u64) -> Option<Arc<TraceTable>> {
        let found = self.get(Part::TraceTable(offset));
        found.and_then(|kept| if let Kept::TraceTable(found) = kept { Some(found) } else { None })
    }

    pub(crate) fn trace_times(&self, offset: u64) -> Option<Arc<TraceTimes>> {
        let found = self.get(Part::TraceTimes(offset));
        found.and_then(|kept| if let Kept::TraceTimes(found) = kept { Some(found) } else { None })
    }

    pub(crate) fn keep_trace_times(&self, offset: u64, times: &Arc<TraceTimes>) {
        self.keep(Part::TraceTimes(offset), Kept::TraceTimes(Arc::clone(times)));
    }

    pub(crate) fn value_filter(&self, offset: u64) -> Option<Arc<Sbbf>> {
        self.get(Part::Page(offset)).and_then(|kept| if let Kept::ValueFilter(found, _) = kept { Some(found) } else { None })
    }

    pub(crate) fn keep_trace_table(&self, offset: u64, table: &Arc<TraceTable>) {
        self.keep(Part::TraceTable(offset), Kept::TraceTable(Arc::clone(table)));
    }

    pub(crate) fn keep_value_filter(&self, offset: u64, filter: &Arc<Sbbf>, bytes: usize) {
        self.keep(Part::Page(offset), Kept::ValueFilter(Arc::clone(filter), bytes));
    }

    pub(crate) fn keep_dictionary(&self, offset: u64, dictionary: &Arc<Dictionary>) {
        self.keep(Part::Page(offset), Kept::Dictionary(Arc::clone(dictionary)));
    }

    pub(crate) fn keep_data(&self, offset: u64, page: &Arc<DataPage>) {
        self.keep(Part::Page(offset), Kept::Data(Arc::clone(page)));
    }

    pub(crate) fn keep_trace_ids(&self, offset: u64, page: &Arc<TraceIdPage>) {
        self.keep(Part::Page(offset), Kept::TraceIds(Arc::clone(page)));
    }

    /// The bytes of `ranges` of the object; what is missing is read in few requests, and kept.
    pub(crate) async fn fetch(
        &self,
        store: &Arc<dyn ObjectStore>,
        path: &Path,
        file_bytes: u64,
        ranges: &[Range<u64>],
    ) -> object_store::Result<Fetched> {
        let (mut parts, missing) = self.segments(file_bytes, ranges);
        if !missing.is_empty() {
            let byte_ranges: Vec<Range<u64>> =
                requests(missing).iter().map(|run| run.start * SEGMENT..(run.end * SEGMENT).min(file_bytes)).collect();
            let read = store.get_ranges(path, &byte_ranges).await?;
            // A segment that was known already and lies in a gap that is read too must not stand twice: what follows it in the read
            // would not be found behind it.
            parts.retain(|(start, _)| !byte_ranges.iter().any(|range| range.contains(start)));
            for (range, bytes) in byte_ranges.iter().zip(read) {
                let mut at = range.start;
                while at < range.end {
                    let from = (at - range.start) as usize;
                    let to = (from + SEGMENT as usize).min(bytes.len());
                    // Copied, so that a kept segment does not keep the whole read alive.
                    let segment = Bytes::copy_from_slice(bytes.get(from..to).unwrap_or_default());
                    self.keep(Part::Segment(at / SEGMENT), Kept::Segment(segment));
                    at += SEGMENT;
                }
                parts.push((range.start, bytes));
            }
        }
        parts.sort_unstable_by_key(|(start, _)| *start);
        Ok(Fetched { parts })
    }

    /// Segments that are known, and the numbers of those that are missing.
    fn segments(&self, file_bytes: u64, ranges: &[Range<u64>]) -> (Vec<(u64, Bytes)>, Vec<u64>) {
        let mut wanted: Vec<u64> = ranges
            .iter()
            .map(|range| range.start..range.end.min(file_bytes))
            .filter(|range| range.start < range.end)
            .flat_map(|range| range.start / SEGMENT..=(range.end - 1) / SEGMENT)
            .collect();
        wanted.sort_unstable();
        wanted.dedup();
        let (mut parts, mut missing) = (Vec::with_capacity(wanted.len()), Vec::new());
        for segment in wanted {
            match self.get(Part::Segment(segment)) {
                Some(Kept::Segment(bytes)) => parts.push((segment * SEGMENT, bytes)),
                _ => missing.push(segment),
            }
        }
        (parts, missing)
    }
}

/// Runs of segments to read so that all of `missing` (ascending) are among them: the smallest gaps are read too until
/// [`MAX_REQUESTS`] are enough.
fn requests(missing: Vec<u64>) -> Vec<Range<u64>> {
    let mut gaps: Vec<u64> = missing.windows(2).map(|pair| pair[1] - pair[0] - 1).filter(|gap| *gap > FREE_GAP).collect();
    gaps.sort_unstable_by(|a, b| b.cmp(a));
    // Gaps as large as this one part two requests, as many of them as may be.
    let smallest = gaps.get(MAX_REQUESTS - 2).copied().unwrap_or(FREE_GAP + 1);
    let mut equal = gaps.iter().take(MAX_REQUESTS - 1).filter(|gap| **gap == smallest).count();
    let mut out: Vec<Range<u64>> = Vec::new();
    for segment in missing {
        let gap = out.last().map(|run| segment - run.end);
        let parts = match gap {
            None => true,
            Some(gap) if gap == smallest => {
                let left = equal > 0;
                equal = equal.saturating_sub(1);
                left
            }
            Some(gap) => gap > smallest,
        };
        match out.last_mut() {
            Some(run) if !parts => run.end = segment + 1,
            _ => out.push(segment..segment + 1),
        }
    }
    out
}

/// Parts of a file that were fetched.
#[derive(Debug, Default)]
pub(crate) struct Fetched {
    /// Start offset and bytes, ascending, not overlapping.
    parts: Vec<(u64, Bytes)>,
}

impl Fetched {
    /// The bytes of a range, if all of them were fetched.
    pub(crate) fn get(&self, range: Range<u64>) -> Option<Bytes> {
        let length = usize::try_from(range.end.checked_sub(range.start)?).ok()?;
        let mut at = self.parts.partition_point(|(start, _)| *start <= range.start).checked_sub(1)?;
        let (start, bytes) = &self.parts[at];
        let skip = (range.start - start) as usize;
        if skip.checked_add(length)? <= bytes.len() {
            return Some(bytes.slice(skip..skip + length));
        }
        // Spread over neighbouring parts: joined.
        let mut out = Vec::new();
        let mut position = range.start;
        while position < range.end {
            let (start, bytes) = self.parts.get(at)?;
            let skip = usize::try_from(position.checked_sub(*start)?).ok()?;
            let rest = bytes.get(skip..).filter(|rest| !rest.is_empty())?;
            let take = rest.len().min((range.end - position) as usize);
            out.extend_from_slice(&rest[..take]);
            position += take as u64;
            at += 1;
        }
        Some(out.into())
    }
}

#[cfg(test)]
mod tests {
    use object_store::ObjectStoreExt as _;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_smallest_gaps_are_read_too() {
        let missing: Vec<u64> = vec![0, 1, 3, 10, 30, 35, 60, 100, 103, 150, 200, 260, 261];
        let runs = requests(missing);
        assert_eq!(runs, [0..11, 30..36, 60..61, 100..104, 150..151, 200..201, 260..262]);
        assert_eq!(requests(vec![5]), [Range { start: 5, end: 6 }]);
        assert_eq!(requests(vec![5, 7]), [Range { start: 5, end: 8 }]);
        assert_eq!(requests(vec![5, 8]), [5..6, 8..9]);
    }

    proptest! {
        #[test]
        fn few_requests_hold_all(missing in prop::collection::btree_set(0u64..400, 1..80)) {
            let missing: Vec<u64> = missing.into_iter().collect();
            let runs = requests(missing.clone());
            prop_assert!(runs.len() <= MAX_REQUESTS);
            prop_assert!(runs.is_sorted_by(|a, b| a.end < b.start));
            prop_assert!(missing.iter().all(|at| runs.iter().any(|run| run.contains(at))));
        }
    }

    /// Whatever is known already, all that is asked for is found.
    #[test]
    fn what_is_known_hides_nothing_that_is_read() {
        let strategy = (
            prop::collection::btree_set(0u64..40, 0..20),
            prop::collection::vec((0u64..40 * SEGMENT, 1u64..3 * SEGMENT), 1..12),
        );
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (path, file_bytes) = (Path::from("a"), 40 * SEGMENT + 17);
        let whole: Bytes = (0..file_bytes).map(|at| (at / 7 % 251) as u8).collect();
        let store: Arc<dyn ObjectStore> = Arc::new(object_store::memory::InMemory::new());
        runtime.block_on(store.put(&path, whole.clone().into())).unwrap();
        proptest!(ProptestConfig::with_cases(64), |((known, asked) in strategy)| {
            let cache = BlockCache::new(64 << 20).of_block(BlockId::generate());
            let ask = |ranges: &[Range<u64>]| runtime.block_on(cache.fetch(&store, &path, file_bytes, ranges)).unwrap();
            for segment in known {
                ask(&[Range { start: segment * SEGMENT, end: segment * SEGMENT + 1 }]);
            }
            let ranges: Vec<Range<u64>> =
                asked.into_iter().map(|(start, len)| start..(start + len).min(file_bytes)).collect();
            let fetched = ask(&ranges);
            for range in ranges {
                let expected = whole.slice(range.start as usize..range.end as usize);
                prop_assert_eq!(fetched.get(range), Some(expected));
            }
        });
    }

    #[test]
    fn ranges_are_joined_from_parts() {
        let fetched =
            Fetched { parts: vec![(10, Bytes::from_static(b"abc")), (13, Bytes::from_static(b"de")), (20, Bytes::new())] };
        assert_eq!(fetched.get(11..15).as_deref(), Some(&b"bcde"[..]));
        assert_eq!(fetched.get(10..13).as_deref(), Some(&b"abc"[..]));
        assert_eq!((fetched.get(9..11), fetched.get(11..16), fetched.get(20..21)), (None, None, None));
        assert_eq!(fetched.get(Range { start: 5, end: 4 }), None);
    }
}
