use object_store::ObjectStoreExt;
use object_store::memory::InMemory;

use super::super::Violation;
use super::super::state::samples::{block, id, wal};
use super::*;
use crate::store::faults::{FaultConfig, FaultyStore};
use crate::store::paths::{BlockObject, TenantPaths};
use crate::time::ManualClock;

struct World {
    inner: Arc<dyn ObjectStore>,
    faults: Arc<FaultyStore>,
    clock: Arc<ManualClock>,
    paths: TenantPaths,
}

impl World {
    fn new() -> Self {
        let inner: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        Self {
            faults: Arc::new(FaultyStore::new(Arc::clone(&inner), FaultConfig::default(), 1)),
            inner,
            clock: ManualClock::at(UnixNanos::from_seconds(1_000_000)),
            paths: TenantPaths::new(&TenantId::single()),
        }
    }

    async fn open(&self) -> Result<ManifestStore, ManifestError> {
        let settings = ManifestSettings { checkpoint_every: 4, ..ManifestSettings::default() };
        ManifestStore::open(Arc::clone(&self.faults) as _, TenantId::single(), Arc::clone(&self.clock) as _, settings).await
    }

    async fn create(&self) -> ManifestStore {
        let settings = ManifestSettings { checkpoint_every: 4, ..ManifestSettings::default() };
        let (faults, clock) = (Arc::clone(&self.faults), Arc::clone(&self.clock));
        ManifestStore::open_or_create(faults, TenantId::single(), clock, settings).await.unwrap()
    }

    async fn spoil(&self, version: u64) {
        let key = self.paths.version(version);
        let mut bytes = self.inner.get(&key).await.unwrap().bytes().await.unwrap().to_vec();
        bytes[20] ^= 1;
        self.inner.put(&key, bytes.into()).await.unwrap();
    }
}

fn add(n: u64) -> Change {
    Change { add: vec![block(n)], ..Change::default() }
}

#[tokio::test(start_paused = true)]
async fn a_tenant_begins_with_version_one_and_readers_write_nothing() {
    let world = World::new();
    assert_eq!(world.open().await.unwrap().current().version, 0);
    assert!(world.inner.get(&world.paths.version(1)).await.is_err());
    assert_eq!(world.create().await.current().version, 1);
    assert_eq!(world.create().await.current().version, 1);
    // Version 1 came first: blocks of a flush that was killed before its commit are no lost manifest.
    world.inner.put(&world.paths.block(id(1), BlockObject::Spans), PutPayload::from_static(b"x")).await.unwrap();
    assert_eq!(world.open().await.unwrap().current().version, 1);
}

#[tokio::test(start_paused = true)]
async fn a_stretch_of_wal_is_covered_once() {
    let world = World::new();
    let (a, b) = (world.create().await, world.create().await);
    let flush = |n| Change { watermarks: vec![wal(1, 0, 5)], ..add(n) };
    a.commit(flush(1)).await.unwrap();
    let error = b.commit(flush(2)).await.unwrap_err();
    assert!(matches!(error, CommitError::Conflict(Violation::AlreadyCovered { .. })) && !error.is_retryable(), "{error}");
    assert_eq!(b.current(), a.current());
    let bad = b.commit(Change { add: vec![super::super::BlockEntry { rows: 0, ..block(3) }], ..Change::default() }).await;
    assert!(matches!(bad, Err(CommitError::Conflict(Violation::BadEntry { .. }))));
    assert!(matches!(b.commit_with(|_| None).await, Err(CommitError::Abandoned)));
    assert_eq!(b.commit(Change::default()).await.unwrap().version, 2);
}

#[tokio::test(start_paused = true)]
async fn lost_replies_are_found_to_be_successes() {
    let world = World::new();
    let manifest = world.create().await;
    for (n, config) in [
        (1, FaultConfig { spurious_exists: 0.5, ..FaultConfig::default() }),
        (2, FaultConfig { error_after: 0.5, ..FaultConfig::default() }),
        (3, FaultConfig { late_put: 0.5, ..FaultConfig::default() }),
    ] {
        world.faults.set(config);
        manifest.commit(add(n)).await.unwrap();
    }
    assert_eq!((manifest.current().version, manifest.current().blocks.len()), (4, 3));
}

#[tokio::test(start_paused = true)]
async fn an_unknown_outcome_is_resolved_by_the_same_change() {
    let world = World::new();
    let manifest = world.create().await;
    // The first put arrives late, and from then on nothing gets through: neither a put nor a look at what is there.
    world.faults.set(FaultConfig { late_put: 1.0, ..FaultConfig::default() });
    let outage = async {
        tokio::time::sleep(Duration::from_millis(1)).await;
        world.faults.set(FaultConfig { error_before: 1.0, ..FaultConfig::default() });
    };
    let error = tokio::join!(manifest.commit(add(1)), outage).0.unwrap_err();
    assert!(error.is_unknown() && error.is_retryable(), "{error}");
    world.faults.set(FaultConfig::default());
    // It did happen, and a later commit took the block out again: the repetition must not bring it back.
    let other = world.create().await;
    assert!(other.current().blocks.contains_key(&id(1)));
    other.commit(Change { remove: vec![id(1)], ..Change::default() }).await.unwrap();
    manifest.commit(add(1)).await.unwrap();
    let newest = other.refresh().await.unwrap();
    assert_eq!((newest.version, newest.blocks.len()), (3, 0));
}

#[tokio::test(start_paused = true)]
async fn a_commit_dropped_half_way_is_not_applied_twice() {
    let world = World::new();
    let manifest = world.create().await;
    world.faults.set(FaultConfig { error_after: 1.0, ..FaultConfig::default() });
    let dropped = tokio::time::timeout(Duration::from_millis(1), manifest.commit(add(1))).await;
    assert!(dropped.is_err());
    world.faults.set(FaultConfig::default());
    let other = world.create().await;
    assert!(other.current().blocks.contains_key(&id(1)), "the put was applied");
    other.commit(Change { remove: vec![id(1)], ..Change::default() }).await.unwrap();
    // Validation alone would let it in again: the block is not there any more.
    manifest.commit(add(1)).await.unwrap();
    assert!(other.refresh().await.unwrap().blocks.is_empty());
}

#[tokio::test(start_paused = true)]
async fn damage_is_flagged_read_around_and_never_written_over() {
    let world = World::new();
    let writer = world.create().await;
    for n in 1..=2 {
        writer.commit(add(n)).await.unwrap();
    }
    world.spoil(3).await;
    let reader = world.open().await.unwrap();
    assert_eq!(reader.current().version, 2);
    assert!(matches!(reader.damage().as_deref(), Some(Damage::Corrupt { .. })));
    let error = reader.commit(add(9)).await.unwrap_err();
    assert!(matches!(error, CommitError::Unreadable(ManifestError::Damaged(_))) && !error.is_retryable(), "{error}");
    assert!(reader.refresh().await.is_err());
    // A process that has read it before goes on, and its next checkpoint carries readers past the damage.
    for n in 3..=4 {
        writer.commit(add(n)).await.unwrap();
    }
    world.clock.advance(DAMAGE_CHECK_EVERY);
    assert_eq!(reader.refresh().await.unwrap(), writer.current());
    assert_eq!(reader.damage(), None);
    reader.commit(add(9)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn gaps_and_strangers_in_the_chain_are_damage() {
    let world = World::new();
    let writer = world.create().await;
    for n in 1..=2 {
        writer.commit(add(n)).await.unwrap();
    }
    let third = world.inner.get(&world.paths.version(3)).await.unwrap().bytes().await.unwrap();
    world.inner.delete(&world.paths.version(2)).await.unwrap();
    let damaged = world.open().await.unwrap();
    assert!(matches!(damaged.damage().as_deref(), Some(Damage::Missing { version: 2, newest: 3, .. })));
    assert_eq!(damaged.current().version, 1);

    // Another branch in its place: version 3 names a parent that is not there.
    let world = World::new();
    let writer = world.create().await;
    writer.commit(add(7)).await.unwrap();
    world.inner.put(&world.paths.version(3), third.into()).await.unwrap();
    assert!(matches!(writer.refresh().await, Err(ManifestError::Damaged(Damage::BrokenChain { version: 3, .. }))));
    assert_eq!(writer.current().version, 2);
    assert!(matches!(writer.commit(add(8)).await, Err(CommitError::Unreadable(_))));
}

#[tokio::test(start_paused = true)]
async fn a_spoiled_first_version_is_not_an_empty_store() {
    let world = World::new();
    world.create().await;
    world.spoil(1).await;
    assert!(matches!(world.open().await, Err(ManifestError::Damaged(Damage::Corrupt { .. }))));
}

#[tokio::test(start_paused = true)]
async fn a_sleeper_does_not_write_where_versions_were_cleaned_up() {
    let world = World::new();
    let (sleeper, writer) = (world.create().await, world.create().await);
    for n in 1..=9 {
        writer.commit(add(n)).await.unwrap();
    }
    for version in 1..=7 {
        world.inner.delete(&world.paths.version(version)).await.unwrap();
    }
    world.clock.advance(STALE_AFTER);
    let state = sleeper.commit(add(20)).await.unwrap();
    assert_eq!((state.version, state.blocks.len()), (11, 10));
    assert_eq!(writer.refresh().await.unwrap(), state);
}

#[tokio::test(start_paused = true)]
async fn a_spoiled_checkpoint_is_walked_around() {
    let world = World::new();
    let writer = world.create().await;
    for n in 1..=9 {
        writer.commit(add(n)).await.unwrap();
    }
    let key = world.paths.checkpoint(8);
    assert!(world.inner.get(&key).await.is_ok());
    world.inner.put(&key, PutPayload::from_static(b"no")).await.unwrap();
    let fresh = world.open().await.unwrap();
    assert_eq!((fresh.current(), fresh.damage()), (writer.current(), None));
}

#[tokio::test]
async fn the_local_file_system_will_do() {
    let dir = tempfile::tempdir().unwrap();
    let store = crate::store::open(dir.path().to_str().unwrap(), &Default::default()).unwrap();
    let open = || {
        let (store, clock) = (Arc::clone(&store), crate::time::SystemClock::shared());
        ManifestStore::open_or_create(store, TenantId::single(), clock, ManifestSettings::default())
    };
    let (a, b) = (open().await.unwrap(), open().await.unwrap());
    let (one, two) = tokio::join!(a.commit(add(1)), b.commit(add(2)));
    let newest = one.unwrap().version.max(two.unwrap().version);
    assert_eq!(newest, 3);
    assert_eq!(a.refresh().await.unwrap(), b.refresh().await.unwrap());
    assert_eq!(open().await.unwrap().current().blocks.len(), 2);
}

/// Damages one random object of a chain in a random way: nobody may take what is left for the whole, or for an empty store.
#[tokio::test(start_paused = true)]
async fn no_mutation_of_the_chain_goes_unseen() {
    let world = World::new();
    let writer = world.create().await;
    let mut replay = vec![Arc::new(ManifestState::default()), writer.current()];
    for n in 1..=9 {
        replay.push(writer.commit(add(n)).await.unwrap());
    }
    let versions = (1..=10).map(|n| world.paths.version(n));
    let keys: Vec<_> = versions.chain([4, 8].map(|n| world.paths.checkpoint(n))).collect();
    let mut rng = StdRng::seed_from_u64(11);
    let (mut whole, mut flagged, mut refused) = (0, 0, 0);
    for _ in 0..300 {
        // One to three objects, so that checkpoints go together with versions they would stand in for.
        let mut saved = Vec::new();
        for _ in 0..rng.random_range(1..=3) {
            let key = &keys[rng.random_range(0..keys.len())];
            let Ok(found) = world.inner.get(key).await else { continue };
            let bytes = found.bytes().await.unwrap();
            saved.push((key, bytes.clone()));
            let mut bad = bytes.to_vec();
            let at = rng.random_range(0..bad.len());
            match rng.random_range(0..4) {
                0 => bad[at] ^= 1 << rng.random_range(0..8),
                1 => bad.truncate(at),
                2 => {
                    let other = &keys[rng.random_range(0..keys.len())];
                    if other == key {
                        bad.clear();
                    } else if let Ok(found) = world.inner.get(other).await {
                        bad = found.bytes().await.unwrap().to_vec();
                    }
                }
                // That the newest version is gone cannot be told from the chain, which only ends earlier.
                _ if *key == keys[9] => bad.clear(),
                _ => {
                    world.inner.delete(key).await.unwrap();
                    continue;
                }
            }
            world.inner.put(key, bad.into()).await.unwrap();
        }
        match world.open().await {
            Ok(manifest) => {
                let state = manifest.current();
                assert!(state.version > 0 && state == replay[state.version as usize], "a state that never was");
                if manifest.damage().is_some() {
                    flagged += 1;
                    assert!(manifest.commit(add(99)).await.is_err());
                } else {
                    whole += 1;
                    assert_eq!(state.version, 10, "cut short without a word");
                }
            }
            Err(error) => {
                refused += 1;
                assert!(matches!(error, ManifestError::Damaged(_)), "{error}");
            }
        }
        for (key, bytes) in saved.into_iter().rev() {
            world.inner.put(key, bytes.into()).await.unwrap();
        }
    }
    assert!(whole > 20 && flagged > 20, "{whole} whole, {flagged} flagged, {refused} refused");
}
