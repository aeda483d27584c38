use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutPayload};
use spanhouse_common::block::filter_pack::encode_pack;
use spanhouse_common::id::{PackId, TenantId};
use spanhouse_common::manifest::{Change, FilterPack, ManifestSettings};
use spanhouse_common::store::faults::{FaultConfig, FaultyStore};
use spanhouse_common::time::ManualClock;

use super::*;
use crate::testing::{AgedStore, HOUR, MINUTE, START, block_id, flush_of, has_any_of, has_block, put_block, sidecar};

const GRACES: Graces = Graces { query: Duration::from_secs(15 * 60), orphan: Duration::from_secs(24 * 3600) };
const LIMITS: SweepLimits = SweepLimits { max_deletes: 100, dry_run: false };

struct House {
    clock: Arc<ManualClock>,
    store: Arc<FaultyStore>,
    manifest: ManifestStore,
    sweeper: Sweeper,
}

impl House {
    async fn new() -> Self {
        let clock = ManualClock::at(START);
        let store = Arc::new(FaultyStore::new(AgedStore::new(&clock) as _, FaultConfig::default(), 1));
        let (tenant, settings) = (TenantId::single(), ManifestSettings::default());
        let manifest = ManifestStore::open_or_create(Arc::clone(&store) as _, tenant, Arc::clone(&clock) as _, settings);
        let manifest = manifest.await.unwrap();
        Self { clock, store, manifest, sweeper: Sweeper::default() }
    }

    async fn put(&self, n: u64) {
        put_block(self.store.as_ref(), &TenantId::single(), block_id(n)).await;
    }

    /// A committed block.
    async fn flush(&self, n: u64, flushed: u64) {
        self.put(n).await;
        self.manifest.commit(flush_of(n, START, 1, flushed)).await.unwrap();
    }

    async fn retire(&self, n: u64) {
        self.manifest.commit(Change { remove: vec![block_id(n)], ..Change::default() }).await.unwrap();
    }

    async fn sweep_with(&mut self, limits: SweepLimits) -> Result<Swept, SweepError> {
        let store = self.store.as_ref();
        self.sweeper.sweep(store, &self.manifest, self.clock.as_ref(), GRACES, limits).await
    }

    async fn sweep(&mut self) -> Swept {
        self.sweep_with(LIMITS).await.unwrap()
    }

    async fn has(&self, n: u64) -> bool {
        let (any, whole) = (
            has_any_of(self.store.as_ref(), &TenantId::single(), block_id(n)).await,
            has_block(self.store.as_ref(), &TenantId::single(), block_id(n)).await,
        );
        assert_eq!(any, whole, "half of block {n} is there");
        whole
    }
}

#[tokio::test(start_paused = true)]
async fn a_retired_block_goes_after_the_query_grace() {
    let mut house = House::new().await;
    house.flush(1, 0).await;
    house.flush(2, 1).await;
    house.sweep().await;
    house.retire(1).await;
    assert_eq!(house.sweep().await, Swept { unreferenced: 1, ..Swept::default() });
    house.clock.advance(15 * MINUTE - Duration::from_secs(1));
    house.sweep().await;
    assert!(house.has(1).await);
    house.clock.advance(Duration::from_secs(1));
    let swept = house.sweep().await;
    assert_eq!((swept.garbage, swept.garbage_bytes), (2, 16));
    assert_eq!(swept.deleted, Deleted { objects: 2, bytes: 16, failed: 0 });
    assert!(!house.has(1).await && house.has(2).await);
    assert_eq!(house.sweep().await, Swept::default());
}

#[tokio::test(start_paused = true)]
async fn an_orphan_goes_after_both_graces() {
    let mut house = House::new().await;
    house.put(1).await;
    house.clock.advance(23 * HOUR);
    // Another process put it and a long time passed, but this one has just begun to watch.
    house.sweep().await;
    house.clock.advance(30 * MINUTE);
    house.sweep().await;
    assert!(house.has(1).await, "watched long enough, yet younger than a flush may be");
    house.clock.advance(31 * MINUTE);
    house.sweep().await;
    assert!(!house.has(1).await);

    house.put(2).await;
    house.clock.advance(48 * HOUR);
    house.sweep().await;
    assert!(house.has(2).await, "old enough, yet a query elsewhere may hold a version that names it");
    house.clock.advance(15 * MINUTE);
    house.sweep().await;
    assert!(!house.has(2).await);
}

#[tokio::test(start_paused = true)]
async fn what_is_committed_late_stays() {
    let mut house = House::new().await;
    house.put(1).await;
    house.clock.advance(48 * HOUR);
    house.sweep().await;
    // Committed by another process, of which this one learns only by reading the manifest in the sweep.
    let other = ManifestStore::open(
        Arc::clone(&house.store) as _,
        TenantId::single(),
        Arc::clone(&house.clock) as _,
        ManifestSettings::default(),
    );
    other.await.unwrap().commit(flush_of(1, START, 2, 0)).await.unwrap();
    house.clock.advance(30 * MINUTE);
    assert_eq!(house.sweep().await, Swept::default());
    assert!(house.has(1).await);
}

#[tokio::test(start_paused = true)]
async fn keys_that_are_not_ours_stay() {
    let mut house = House::new().await;
    let root = TenantPaths::new(&TenantId::single()).blocks();
    let name = format!("{}.parquet", block_id(1));
    let keys = [
        root.clone().join("README"),
        root.clone().join("7.parquet"),
        root.clone().join("old").join(name.as_str()),
        root.clone().join(format!("{}.parquet.bak", block_id(1))),
        root.join(block_id(0xabc << 40).to_string().to_uppercase() + ".parquet"),
    ];
    for key in &keys {
        house.store.put(key, PutPayload::from_static(b"x")).await.unwrap();
    }
    for _ in 0..3 {
        house.clock.advance(48 * HOUR);
        assert_eq!(house.sweep().await, Swept::default());
    }
    for key in &keys {
        assert!(house.store.head(key).await.is_ok(), "{key}");
    }
}

#[tokio::test(start_paused = true)]
async fn dry_runs_and_limits() {
    let mut house = House::new().await;
    for n in 1..=3 {
        house.put(n).await;
    }
    house.sweep().await;
    house.clock.advance(48 * HOUR);
    let dry = SweepLimits { dry_run: true, ..LIMITS };
    let swept = house.sweep_with(dry).await.unwrap();
    assert_eq!((swept.garbage, swept.garbage_bytes, swept.deleted), (6, 48, Deleted::default()));
    assert!(!swept.has_more(dry) && house.has(1).await);

    let four = SweepLimits { max_deletes: 4, ..LIMITS };
    let swept = house.sweep_with(four).await.unwrap();
    assert_eq!(swept.deleted.objects, 4);
    assert!(swept.has_more(four));
    let swept = house.sweep_with(four).await.unwrap();
    assert_eq!(swept.deleted.objects, 2);
    assert!(!swept.has_more(four));
}

#[tokio::test(start_paused = true)]
async fn deletes_that_fail_are_counted_and_tried_again() {
    let mut house = House::new().await;
    house.put(1).await;
    house.sweep().await;
    house.clock.advance(48 * HOUR);
    house.store.set(FaultConfig { error_before: 0.4, ..FaultConfig::default() });
    let mut failed = 0;
    for _ in 0..1000 {
        if let Ok(swept) = house.sweep_with(LIMITS).await {
            failed += swept.deleted.failed;
            if swept.deleted.objects == 2 {
                break;
            }
        }
    }
    house.store.set(FaultConfig::default());
    assert!(!house.has(1).await);
    assert!(failed > 0, "choose another seed: no delete failed");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_swept_by_a_damaged_or_lost_manifest() {
    let mut house = House::new().await;
    house.flush(1, 0).await;
    house.put(2).await;
    house.sweep().await;
    house.clock.advance(48 * HOUR);
    let paths = TenantPaths::new(&TenantId::single());
    house.store.put(&paths.version(3), PutPayload::from_static(b"damaged")).await.unwrap();
    for _ in 0..2 {
        let error = house.sweep_with(LIMITS).await.unwrap_err();
        assert!(matches!(error, SweepError::Manifest(_)), "{error}");
        house.clock.advance(MINUTE);
    }
    for version in 1..=3 {
        house.store.delete(&paths.version(version)).await.unwrap();
    }
    assert!(house.sweep_with(LIMITS).await.is_err());
    assert!(house.has(1).await && house.has(2).await);
}

#[test]
fn times_that_make_no_sense_have_no_age() {
    let meta = |at| ObjectMeta { location: Path::from("a"), last_modified: at, size: 1, e_tag: None, version: None };
    let epoch = std::time::UNIX_EPOCH;
    assert_eq!(modified(&meta(epoch.into())), Some(UnixNanos(0)));
    assert_eq!(modified(&meta((epoch - Duration::from_secs(1)).into())), None);
    assert_eq!(modified(&meta((epoch + Duration::from_secs(300 * 366 * 86400)).into())), None);
}

/// A pack of blocks, put and not yet committed.
fn pack_of_blocks(blocks: &[u64]) -> (FilterPack, Bytes) {
    let sidecars: Vec<_> = blocks.iter().map(|n| (block_id(*n), sidecar(block_id(*n)))).collect();
    encode_pack(&TenantId::single(), PackId::generate(), &sidecars).unwrap()
}

#[tokio::test(start_paused = true)]
async fn packs_go_as_blocks_do() {
    let mut house = House::new().await;
    house.flush(1, 0).await;
    let paths = TenantPaths::new(&TenantId::single());
    let packs: Vec<_> = [1, 2, 3].iter().map(|_| pack_of_blocks(&[1])).collect();
    for (pack, object) in &packs {
        house.store.put(&paths.filter_pack(pack.id), object.clone().into()).await.unwrap();
    }
    let [(first, object), (second, _), (orphan, _)] = packs.as_slice() else { panic!() };
    let foreign = [
        paths.filter_packs().join("README"),
        paths.filter_packs().join("7.filters"),
        paths.filter_packs().join(format!("{}.filters.bak", first.id)),
        paths.blocks().join(format!("{}.filters", first.id)),
        paths.filter_packs().join(format!("{}.filter", block_id(9))),
    ];
    for key in &foreign {
        house.store.put(key, PutPayload::from_static(b"x")).await.unwrap();
    }
    let has = |pack: &FilterPack| {
        let (store, key) = (Arc::clone(&house.store), paths.filter_pack(pack.id));
        async move { store.head(&key).await.is_ok() }
    };
    let mut sweeper = std::mem::take(&mut house.sweeper);
    let mut sweep = async || {
        let store = house.store.as_ref();
        sweeper.sweep(store, &house.manifest, house.clock.as_ref(), GRACES, LIMITS).await.unwrap()
    };
    house.manifest.commit(Change { add_packs: vec![first.clone()], ..Change::default() }).await.unwrap();
    assert_eq!(sweep().await.unreferenced, 2);
    let swap = Change { add_packs: vec![second.clone()], remove_packs: vec![first.id], ..Change::default() };
    house.manifest.commit(swap).await.unwrap();
    assert_eq!(sweep().await.unreferenced, 2);
    house.clock.advance(15 * MINUTE - Duration::from_secs(1));
    assert_eq!(sweep().await.garbage, 0);
    house.clock.advance(Duration::from_secs(1));
    let swept = sweep().await;
    assert_eq!((swept.garbage, swept.garbage_bytes, swept.deleted.objects), (1, object.len() as u64, 1));
    assert_eq!((has(first).await, has(second).await, has(orphan).await), (false, true, true));
    // The orphan waits for the longer grace, and what is in the manifest stays for good.
    house.clock.advance(24 * HOUR);
    sweep().await;
    assert_eq!((has(second).await, has(orphan).await, house.has(1).await), (true, false, true));
    for key in &foreign {
        assert!(house.store.head(key).await.is_ok(), "{key}");
    }
}
