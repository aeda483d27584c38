//! A pack of trace-id filters: the sidecar objects of many blocks in one object, so that a look-up asks few.
//!
//! Owns the bytes, and reading them whole or in part. Does not own which filters go together (the compactor) nor which packs
//! count (the manifest). What a filter in it says is what the block's own filter says: whoever cannot read a pack reads those.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use object_store::{ObjectStore, ObjectStoreExt};
use serde::{Deserialize, Serialize};

use super::reader::{damaged, store_error};
use crate::id::{BlockId, PackId, TenantId};
use crate::manifest::{FilterPack, MAX_PACK_BYTES, MAX_PACKED_FILTERS, PackedFilter};
use crate::source::SourceError;
use crate::store::paths::TenantPaths;

/// The format this version of the program writes, and the only one it reads.
const FORMAT: u32 = 1;

const MAGIC: &[u8; 8] = b"SPHFPACK";
const TRAILER_BYTES: usize = 4 + 4 + MAGIC.len();

/// Most bytes of a directory: that of [`MAX_PACKED_FILTERS`] takes a tenth.
const MAX_DIRECTORY_BYTES: usize = 256 * 1024;

/// Most bytes of an object: no more is ever read of one.
const MAX_OBJECT_BYTES: u64 = MAX_PACK_BYTES + (MAX_DIRECTORY_BYTES + TRAILER_BYTES) as u64;

/// Requests that reading part of a pack makes at most.
const MAX_REQUESTS: usize = 4;

/// Bytes between two wanted filters that are cheaper read than left out.
const FREE_GAP: u64 = 64 * 1024;

/// Bytes are not a pack, or filters cannot be made one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("pack of trace-id filters: {0}")]
pub struct BadPack(pub String);

/// What a pack says of itself: enough to use it without a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackDirectory {
    pub format: u32,
    pub tenant: TenantId,
    pub id: PackId,
    /// Ascending by offset, not overlapping, inside the object.
    pub filters: Vec<PackedFilter>,
}

/// Read first: another format may have any other fields.
#[derive(Deserialize)]
struct Probe {
    format: u32,
}

impl PackedFilter {
    /// Where it lies in the object.
    pub fn range(&self) -> Range<u64> {
        let start = u64::from(self.offset);
        start..start + u64::from(self.bytes)
    }

    /// Its bytes out of those of the whole object; `None` if they lie outside.
    pub fn slice(&self, object: &Bytes) -> Option<Bytes> {
        let range = self.range();
        let (start, end) = (usize::try_from(range.start).ok()?, usize::try_from(range.end).ok()?);
        (end <= object.len()).then(|| object.slice(start..end))
    }
}

/// The object of a pack of these sidecars, and what the manifest is to say of it. At most [`MAX_PACKED_FILTERS`] and
/// [`MAX_PACK_BYTES`]; each sidecar is taken as it is.
pub fn encode_pack(tenant: &TenantId, id: PackId, sidecars: &[(BlockId, Bytes)]) -> Result<(FilterPack, Bytes), BadPack> {
    let total: u64 = sidecars.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    if sidecars.is_empty() || sidecars.len() > MAX_PACKED_FILTERS || total > MAX_PACK_BYTES {
        return Err(BadPack(format!("{} filters of {total} bytes do not make one", sidecars.len())));
    }
    let mut object = Vec::with_capacity(total as usize + sidecars.len() * 120 + 512);
    let mut filters = Vec::with_capacity(sidecars.len());
    for (block, bytes) in sidecars {
        // Both are within MAX_PACK_BYTES.
        filters.push(PackedFilter { block: *block, offset: object.len() as u32, bytes: bytes.len() as u32 });
        object.extend_from_slice(bytes);
    }
    let directory = PackDirectory { format: FORMAT, tenant: tenant.clone(), id, filters };
    let json = serde_json::to_vec(&directory).map_err(|e| BadPack(e.to_string()))?;
    object.extend_from_slice(&json);
    object.extend_from_slice(&(json.len() as u32).to_le_bytes());
    object.extend_from_slice(&crc32c::crc32c(&json).to_le_bytes());
    object.extend_from_slice(MAGIC);
    let pack =
        FilterPack { id, size_bytes: object.len() as u64, crc32c: crc32c::crc32c(&object), filters: directory.filters };
    Ok((pack, Bytes::from(object)))
}

/// What the object says of itself. The filters have checksums of their own, which are not looked at.
pub fn read_directory(object: &[u8]) -> Result<PackDirectory, BadPack> {
    let bad = |why: String| Err(BadPack(why));
    if object.len() as u64 > MAX_OBJECT_BYTES {
        return bad(format!("{} bytes are too many", object.len()));
    }
    let Some((rest, trailer)) = object.split_last_chunk::<TRAILER_BYTES>() else {
        return bad(format!("{} bytes are too few", object.len()));
    };
    let [l0, l1, l2, l3, s0, s1, s2, s3, magic @ ..] = *trailer;
    if magic != *MAGIC {
        return bad("it does not end like one".into());
    }
    let (length, sum) = (u32::from_le_bytes([l0, l1, l2, l3]) as usize, u32::from_le_bytes([s0, s1, s2, s3]));
    let Some(start) = rest.len().checked_sub(length).filter(|_| length <= MAX_DIRECTORY_BYTES) else {
        return bad(format!("a directory of {length} bytes"));
    };
    let json = &rest[start..];
    if crc32c::crc32c(json) != sum {
        return bad("the checksum of its directory does not match".into());
    }
    let Probe { format } = serde_json::from_slice(json).map_err(|e| BadPack(e.to_string()))?;
    if format != FORMAT {
        return bad(format!("format {format} is not known to this version, which reads format {FORMAT}; upgrade"));
    }
    let directory: PackDirectory = serde_json::from_slice(json).map_err(|e| BadPack(e.to_string()))?;
    let mut end = 0;
    for filter in &directory.filters {
        let range = filter.range();
        if range.start < end || range.end > start as u64 {
            return bad(format!("the filter of block {} overlaps another or lies outside", filter.block));
        }
        end = range.end;
    }
    if directory.filters.len() > MAX_PACKED_FILTERS {
        return bad(format!("{} filters are too many", directory.filters.len()));
    }
    Ok(directory)
}

/// Reads a pack whole, in one request. Its bytes are those the manifest names.
pub async fn read_pack(store: &Arc<dyn ObjectStore>, tenant: &TenantId, pack: &FilterPack) -> Result<Bytes, SourceError> {
    let path = TenantPaths::new(tenant).filter_pack(pack.id);
    let read = async {
        let found = store.get(&path).await?;
        // Looked at before a byte is buffered.
        if found.meta.size != pack.size_bytes || found.meta.size > MAX_OBJECT_BYTES {
            return Ok(Err(format!("it has {} bytes, the manifest says {}", found.meta.size, pack.size_bytes)));
        }
        Ok(Ok(found.bytes().await?))
    };
    let bytes = read.await.map_err(|e| store_error(&path, e))?.map_err(|why| damaged(&path, why))?;
    if crc32c::crc32c(&bytes) != pack.crc32c {
        return Err(damaged(&path, "its checksum is not the one in the manifest"));
    }
    Ok(bytes)
}

/// Reads some filters of a pack, in at most [`MAX_REQUESTS`] requests. In the order of `wanted`, as they were packed.
pub async fn read_packed(
    store: &Arc<dyn ObjectStore>,
    tenant: &TenantId,
    pack: &FilterPack,
    wanted: &[PackedFilter],
) -> Result<Vec<Bytes>, SourceError> {
    let path = TenantPaths::new(tenant).filter_pack(pack.id);
    if pack.size_bytes > MAX_OBJECT_BYTES || wanted.iter().any(|filter| filter.range().end > pack.size_bytes) {
        return Err(damaged(&path, "the manifest names filters outside of it"));
    }
    let runs = runs(wanted);
    let read = store.get_ranges(&path, &runs).await.map_err(|e| store_error(&path, e))?;
    let of = |filter: &PackedFilter| {
        let range = filter.range();
        let at = runs.partition_point(|run| run.start <= range.start).checked_sub(1)?;
        let (run, bytes) = (runs.get(at)?, read.get(at)?);
        let inside = PackedFilter { offset: u32::try_from(range.start - run.start).ok()?, ..*filter };
        inside.slice(bytes)
    };
    wanted.iter().map(|filter| of(filter).ok_or_else(|| damaged(&path, "it is shorter than the manifest says"))).collect()
}

/// Stretches that hold all of `wanted`, ascending: gaps that cost nothing are read too, then the smallest others until few
/// requests are left.
fn runs(wanted: &[PackedFilter]) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = wanted.iter().map(PackedFilter::range).collect();
    ranges.sort_unstable_by_key(|range| (range.start, range.end));
    let mut runs: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match runs.last_mut() {
            Some(run) if range.start <= run.end.saturating_add(FREE_GAP) => run.end = run.end.max(range.end),
            _ => runs.push(range),
        }
    }
    while runs.len() > MAX_REQUESTS {
        let smallest = (1..runs.len()).min_by_key(|at| runs[*at].start - runs[*at - 1].end).unwrap_or(1);
        let joined = runs.remove(smallest);
        runs[smallest - 1].end = joined.end;
    }
    runs
}

#[cfg(test)]
mod tests {
    use object_store::PutPayload;
    use object_store::memory::InMemory;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::filter::TraceIdFilter;
    use super::*;
    use crate::id::TraceId;

    fn tenant() -> TenantId {
        TenantId::single()
    }

    fn id() -> PackId {
        PackId::from_bytes([9; 16])
    }

    fn named(sidecars: &[Vec<u8>]) -> Vec<(BlockId, Bytes)> {
        let block = |at: usize| BlockId::from_bytes((at as u128 + 1).to_be_bytes());
        sidecars.iter().enumerate().map(|(at, bytes)| (block(at), Bytes::from(bytes.clone()))).collect()
    }

    fn filters(count: u8) -> Vec<(BlockId, Bytes)> {
        let filter = |n: u8| TraceIdFilter::build((0..n).map(|at| TraceId([at + n; 16])), n.into()).unwrap().to_bytes();
        named(&(1..=count).map(filter).collect::<Vec<_>>())
    }

    #[test]
    fn a_pack_is_its_sidecars_and_says_where_they_are() {
        let sidecars = filters(5);
        let (pack, object) = encode_pack(&tenant(), id(), &sidecars).unwrap();
        assert!(crate::manifest::invariants::check_pack(&pack).is_ok());
        assert_eq!((pack.size_bytes, pack.crc32c), (object.len() as u64, crc32c::crc32c(&object)));
        let directory = read_directory(&object).unwrap();
        assert_eq!((directory.id, &directory.tenant, &directory.filters), (id(), &tenant(), &pack.filters));
        for ((block, bytes), filter) in sidecars.iter().zip(&pack.filters) {
            assert_eq!((filter.block, filter.slice(&object).unwrap()), (*block, bytes.clone()));
            TraceIdFilter::from_bytes(&filter.slice(&object).unwrap()).unwrap();
        }
    }

    /// Damage in a filter is found by the filter, damage behind them by the directory.
    #[test]
    fn no_damage_goes_unseen() {
        let (pack, object) = encode_pack(&tenant(), id(), &filters(3)).unwrap();
        let in_filters = pack.filters.last().unwrap().range().end as usize;
        for at in 0..object.len() {
            let mut bad = object.to_vec();
            bad[at] ^= 0x10;
            let bad = Bytes::from(bad);
            if at < in_filters {
                let hit = pack.filters.iter().find(|f| f.range().contains(&(at as u64))).unwrap();
                assert!(TraceIdFilter::from_bytes(&hit.slice(&bad).unwrap()).is_err(), "byte {at}");
                assert!(read_directory(&bad).is_ok(), "byte {at}");
            } else {
                assert!(read_directory(&bad).is_err(), "byte {at}");
            }
            assert!(read_directory(&object[..at]).is_err(), "cut at {at}");
        }
        assert!(read_directory(&[&object[..], &b"\n"[..]].concat()).is_err());
    }

    /// A directory with a good checksum that nobody should have written.
    #[test]
    fn directories_that_lie_are_refused() {
        let (_, object) = encode_pack(&tenant(), id(), &filters(3)).unwrap();
        let good = read_directory(&object).unwrap();
        let seal = |directory: &PackDirectory| {
            let end = good.filters.last().unwrap().range().end as usize;
            let json = serde_json::to_vec(directory).unwrap();
            let mut out = object[..end].to_vec();
            out.extend_from_slice(&json);
            out.extend_from_slice(&(json.len() as u32).to_le_bytes());
            out.extend_from_slice(&crc32c::crc32c(&json).to_le_bytes());
            out.extend_from_slice(MAGIC);
            out
        };
        assert_eq!(read_directory(&seal(&good)), Ok(good.clone()));
        let spoil: [fn(&mut PackDirectory); 5] = [
            |d| d.format = 2,
            |d| d.filters[2].bytes += 1,
            |d| d.filters[1].offset -= 1,
            |d| d.filters.reverse(),
            |d| {
                d.filters = vec![PackedFilter { offset: 0, bytes: 0, ..d.filters[0] }; MAX_PACKED_FILTERS + 1];
            },
        ];
        for spoil in spoil {
            let mut directory = good.clone();
            spoil(&mut directory);
            assert!(read_directory(&seal(&directory)).is_err(), "{directory:?}");
        }
    }

    #[test]
    fn what_is_too_much_is_refused() {
        assert!(encode_pack(&tenant(), id(), &[]).is_err());
        assert!(encode_pack(&tenant(), id(), &named(&vec![vec![1]; MAX_PACKED_FILTERS])).is_ok());
        assert!(encode_pack(&tenant(), id(), &named(&vec![vec![1]; MAX_PACKED_FILTERS + 1])).is_err());
        assert!(encode_pack(&tenant(), id(), &named(&[vec![0; MAX_PACK_BYTES as usize], vec![1]])).is_err());
    }

    #[tokio::test]
    async fn packs_are_read_whole_and_in_part() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let sidecars = filters(9);
        let (pack, object) = encode_pack(&tenant(), id(), &sidecars).unwrap();
        let gone = read_pack(&store, &tenant(), &pack).await;
        assert!(matches!(gone, Err(SourceError::Gone { .. })), "{gone:?}");
        let gone = read_packed(&store, &tenant(), &pack, &pack.filters[..1]).await;
        assert!(matches!(gone, Err(SourceError::Gone { .. })), "{gone:?}");
        let path = TenantPaths::new(&tenant()).filter_pack(id());
        store.put(&path, PutPayload::from_bytes(object.clone())).await.unwrap();
        assert_eq!(read_pack(&store, &tenant(), &pack).await.unwrap(), object);
        let wanted = [pack.filters[7], pack.filters[0], pack.filters[3]];
        let read = read_packed(&store, &tenant(), &pack, &wanted).await.unwrap();
        assert_eq!(read, [sidecars[7].1.clone(), sidecars[0].1.clone(), sidecars[3].1.clone()]);

        for bad in [FilterPack { crc32c: 1, ..pack.clone() }, FilterPack { size_bytes: 7, ..pack.clone() }] {
            let read = read_pack(&store, &tenant(), &bad).await;
            assert!(matches!(read, Err(SourceError::Damaged { .. })), "{read:?}");
        }
        let outside = PackedFilter { offset: u32::MAX, bytes: u32::MAX, ..wanted[0] };
        let read = read_packed(&store, &tenant(), &pack, &[outside]).await;
        assert!(matches!(read, Err(SourceError::Damaged { .. })), "{read:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn packs_come_back(sidecars in vec(vec(any::<u8>(), 0..40), 1..40), name in "[a-zA-Z0-9_.]{3,20}") {
            let (sidecars, tenant) = (named(&sidecars), name.parse().unwrap());
            let (pack, object) = encode_pack(&tenant, id(), &sidecars).unwrap();
            let directory = read_directory(&object).unwrap();
            prop_assert_eq!((directory.tenant, &directory.filters), (tenant, &pack.filters));
            for ((block, bytes), filter) in sidecars.iter().zip(&pack.filters) {
                prop_assert_eq!((filter.block, filter.slice(&object)), (*block, Some(bytes.clone())));
            }
        }

        #[test]
        fn any_bytes_are_refused_without_a_panic(mut bytes in vec(any::<u8>(), 0..200), length in any::<u32>()) {
            prop_assert!(read_directory(&bytes).is_err());
            let sum = crc32c::crc32c(&bytes);
            bytes.extend_from_slice(&length.to_le_bytes());
            bytes.extend_from_slice(&sum.to_le_bytes());
            bytes.extend_from_slice(MAGIC);
            prop_assert!(read_directory(&bytes).is_err());
        }

        #[test]
        fn few_runs_hold_all(places in vec((0u32..20_000_000, 0u32..200_000), 1..60)) {
            let block = BlockId::from_bytes([1; 16]);
            let wanted: Vec<_> = places.iter().map(|(offset, bytes)| PackedFilter { block, offset: *offset, bytes: *bytes }).collect();
            let runs = runs(&wanted);
            prop_assert!(runs.len() <= MAX_REQUESTS);
            prop_assert!(runs.is_sorted_by(|a, b| a.end < b.start));
            let held = |range: Range<u64>| runs.iter().any(|run| run.start <= range.start && range.end <= run.end);
            prop_assert!(wanted.iter().all(|filter| held(filter.range())));
        }
    }
}
