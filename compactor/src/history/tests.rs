use std::sync::Arc;

use object_store::PutPayload;
use spanhouse_common::id::TenantId;
use spanhouse_common::manifest::ManifestSettings;
use spanhouse_common::time::ManualClock;

use super::*;
use crate::testing::{AgedStore, HOUR, START, flush_of};

const LIMITS: SweepLimits = SweepLimits { max_deletes: 1000, dry_run: false };
const DAY: Duration = Duration::from_secs(24 * 3600);

struct House {
    clock: Arc<ManualClock>,
    store: Arc<AgedStore>,
    manifest: ManifestStore,
}

impl House {
    /// Versions 1 to `versions`, a checkpoint at every fourth, one version a day.
    async fn new(versions: u64) -> Self {
        let clock = ManualClock::at(START);
        let store = AgedStore::new(&clock);
        let house = Self { manifest: open(&store, &clock).await, clock, store };
        for version in 2..=versions {
            house.clock.advance(DAY);
            house.manifest.commit(flush_of(version, START, 1, version - 2)).await.unwrap();
        }
        house
    }

    async fn numbers(&self) -> (Vec<u64>, Vec<u64>) {
        let paths = TenantPaths::new(&TenantId::single());
        let numbers = |listed: Vec<Numbered>| listed.iter().map(|n| n.number).collect();
        let versions = list(self.store.as_ref(), &paths.versions(), |n| paths.version(n)).await.unwrap();
        let checkpoints = list(self.store.as_ref(), &paths.checkpoints(), |n| paths.checkpoint(n)).await.unwrap();
        (numbers(versions), numbers(checkpoints))
    }

    async fn clean(&self, limits: SweepLimits) -> Result<(u64, Deleted), SweepError> {
        clean(self.store.as_ref(), &self.manifest, limits).await
    }
}

async fn open(store: &Arc<AgedStore>, clock: &Arc<ManualClock>) -> ManifestStore {
    let settings = ManifestSettings { checkpoint_every: 4, ..ManifestSettings::default() };
    let (store, clock) = (Arc::clone(store) as _, Arc::clone(clock) as _);
    ManifestStore::open_or_create(store, TenantId::single(), clock, settings).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_two_checkpoints_cover_goes_after_its_age() {
    let house = House::new(17).await;
    let before = house.manifest.current();
    let dry = SweepLimits { dry_run: true, ..LIMITS };
    // Checkpoints 4, 8, 12, 16. Below 12: versions 1 to 11, of which 1 to 9 are more than 7 days older than 17.
    assert_eq!(house.clean(dry).await.unwrap(), (11, Deleted::default()));
    assert_eq!(house.numbers().await.0.len(), 17);
    let (found, deleted) = house.clean(SweepLimits { max_deletes: 5, ..LIMITS }).await.unwrap();
    assert_eq!((found, deleted.objects), (11, 5));
    assert_eq!(house.numbers().await.0[0], 6);
    house.clean(LIMITS).await.unwrap();
    assert_eq!(house.numbers().await, ((10..=17).collect(), vec![12, 16]));
    assert_eq!(house.clean(LIMITS).await.unwrap(), (0, Deleted::default()));

    // Starts read the same, also without the newest checkpoint, and go on.
    for lose_newest in [false, true] {
        if lose_newest {
            let paths = TenantPaths::new(&TenantId::single());
            house.store.put(&paths.checkpoint(16), PutPayload::from_static(b"damaged")).await.unwrap();
        }
        let fresh = open(&house.store, &house.clock).await;
        assert_eq!((fresh.damage(), fresh.current()), (None, Arc::clone(&before)));
    }
    house.manifest.commit(flush_of(18, START, 1, 16)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_ahead_deletes_nothing_early() {
    let clock = ManualClock::at(START);
    let store = AgedStore::new(&clock);
    let house = House { manifest: open(&store, &clock).await, clock, store };
    for version in 2..=17 {
        house.manifest.commit(flush_of(version, START, 1, version - 2)).await.unwrap();
    }
    house.clock.advance(365 * DAY);
    assert_eq!(house.clean(LIMITS).await.unwrap(), (0, Deleted::default()));
    // The next commit shows the store's time to be later, too.
    house.manifest.commit(flush_of(18, START, 1, 16)).await.unwrap();
    assert_eq!(house.clean(LIMITS).await.unwrap().0, 11 + 2);
}

#[tokio::test(start_paused = true)]
async fn an_unreadable_checkpoint_replaces_nothing() {
    let house = House::new(17).await;
    let paths = TenantPaths::new(&TenantId::single());
    house.store.put(&paths.checkpoint(12), PutPayload::from_static(b"damaged")).await.unwrap();
    let error = house.clean(LIMITS).await.unwrap_err();
    assert!(matches!(error, SweepError::Checkpoint { .. }), "{error}");
    assert_eq!(house.numbers().await.0.len(), 17);
}

#[test]
fn plans_that_delete_nothing() {
    let paths = TenantPaths::new(&TenantId::single());
    let numbered = |numbers: &[u64]| -> Vec<Numbered> {
        let one = |number: &u64| {
            let object = Garbage { key: paths.version(*number), size: 1 };
            Numbered { number: *number, object, modified: START.saturating_add(HOUR * 24 * 30 * *number as u32) }
        };
        numbers.iter().map(one).collect()
    };
    let go = |versions: &[u64], checkpoints: &[u64], newest| -> usize {
        plan(numbered(versions), numbered(checkpoints), newest).garbage.len()
    };
    assert_eq!(go(&[1, 2, 3, 4, 5, 6], &[2, 4], 6), 1);
    assert_eq!(go(&[1, 2, 3, 4, 5, 6], &[4], 6), 0, "one checkpoint");
    assert_eq!(go(&[1, 2, 3], &[], 3), 0, "no checkpoint");
    assert_eq!(go(&[1, 2, 3, 4], &[2, 9], 4), 0, "a checkpoint of a version that does not exist");
    assert_eq!(go(&[], &[2, 4], 4), 0);
}
