use object_store::memory::InMemory;

use super::*;
use crate::manifest::ManifestSettings;
use crate::store::faults::{FaultConfig, FaultyStore};
use crate::store::tenants::TenantRegistry;
use crate::time::ManualClock;

const DAY: Duration = Duration::from_secs(24 * 3600);

struct World {
    inner: Arc<InMemory>,
    faults: Arc<FaultyStore>,
    clock: Arc<ManualClock>,
    manifests: Arc<Manifests>,
    deletions: Deletions,
}

impl World {
    async fn new() -> Self {
        let inner = Arc::new(InMemory::new());
        let faults = Arc::new(FaultyStore::new(Arc::clone(&inner) as _, FaultConfig::default(), 3));
        let clock = ManualClock::at(UnixNanos::from_seconds(1_000));
        let tenants = TenantRegistry::open(Arc::clone(&faults) as _, Arc::clone(&clock) as _, 10).await.unwrap();
        let manifests = Arc::new(Manifests::new(Arc::clone(&faults) as _, Arc::clone(&clock) as _, tenants));
        let deletions = Deletions::new(Arc::clone(&manifests), Arc::clone(&clock) as _);
        Self { inner, faults, clock, manifests, deletions }
    }

    async fn delete(&self, trace: u8) -> Result<Deleted, DeleteError> {
        self.deletions.delete(&deletion(trace)).await
    }

    /// What a process that starts now reads.
    async fn state(&self) -> Arc<ManifestState> {
        let (store, clock) = (Arc::clone(&self.inner) as _, Arc::clone(&self.clock) as _);
        ManifestStore::open(store, TenantId::single(), clock, ManifestSettings::default()).await.unwrap().current()
    }

    async fn deleted_at(&self, trace: u8) -> Option<UnixNanos> {
        self.state().await.tombstones.get(&TraceId([trace; 16])).map(|stone| stone.deleted_at)
    }

    async fn records(&self) -> Vec<Recorded> {
        records(&*self.inner, &TenantId::single()).await.unwrap()
    }
}

fn deletion(trace: u8) -> Deletion {
    let reason = Some("asked \"twice\"\n".to_owned());
    Deletion { tenant: TenantId::single(), trace_id: TraceId([trace; 16]), by: Asker::Cli, reason }
}

fn record(trace: u8, time: UnixNanos) -> Recorded {
    let Deletion { tenant, trace_id, by, reason } = deletion(trace);
    Recorded::Readable(Record { format: 1, tenant, trace_id, time, by, reason })
}

#[tokio::test(start_paused = true)]
async fn a_deletion_leaves_a_record_and_a_tombstone() {
    let world = World::new().await;
    let deleted = world.delete(1).await.unwrap();
    assert_eq!(deleted, Deleted { manifest_version: 2, already: false });
    let first = world.clock.now();
    assert_eq!((world.deleted_at(1).await, world.records().await), (Some(first), vec![record(1, first)]));
    let key = TenantPaths::new(&TenantId::single()).deletion(first, TraceId([1; 16]));
    let text = world.inner.get(&key).await.unwrap().bytes().await.unwrap();
    assert_eq!(
        std::str::from_utf8(&text).unwrap(),
        format!(
            "{{\"format\":1,\"tenant\":\"single-tenant\",\"trace_id\":\"{}\",\"time\":1000000000000,\"by\":\"cli\",\
             \"reason\":\"asked \\\"twice\\\"\\n\"}}\n",
            "01".repeat(16)
        )
    );

    // Again at once: nothing to do. Long after: hidden for as long as anew.
    world.clock.advance(Duration::from_secs(3600));
    assert_eq!(world.delete(1).await.unwrap(), Deleted { manifest_version: 2, already: true });
    assert_eq!((world.deleted_at(1).await, world.records().await.len()), (Some(first), 1));
    world.clock.advance(DAY);
    assert_eq!(world.delete(1).await.unwrap(), Deleted { manifest_version: 3, already: false });
    let second = world.clock.now();
    assert_eq!(world.deleted_at(1).await, Some(second));
    assert_eq!(world.records().await, [record(1, first), record(1, second)]);

    // The tombstone goes, the records stay.
    let manifest = world.manifests.for_writing(&TenantId::single()).await.unwrap();
    manifest.commit(Change { unbury: vec![TraceId([1; 16])], ..Change::default() }).await.unwrap();
    assert_eq!((world.deleted_at(1).await, world.records().await.len()), (None, 2));
    let stones = recorded_tombstones(&*world.inner, &TenantId::single()).await.unwrap();
    let stone = Tombstone { trace_id: TraceId([1; 16]), deleted_at: second };
    assert_eq!(stones.into_values().collect::<Vec<_>>(), [stone]);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_deleted_leaves_nothing() {
    let world = World::new().await;
    assert!(matches!(world.delete(0).await, Err(DeleteError::NoTrace)));
    let long = Deletion { reason: Some("x".repeat(MAX_REASON_BYTES + 1)), ..deletion(1) };
    let error = world.deletions.delete(&long).await.unwrap_err();
    assert!(matches!(error, DeleteError::ReasonTooLong { bytes: 1025 }) && !error.is_retryable(), "{error}");
    world.faults.set(FaultConfig { error_before: 1.0, ..FaultConfig::default() });
    let error = world.delete(1).await.unwrap_err();
    assert!(error.is_retryable() && error.to_string().starts_with("nothing was deleted"), "{error}");
    assert_eq!(world.inner.list(None).try_collect::<Vec<_>>().await.unwrap(), []);
    // The longest reason, of what JSON escapes, is still read.
    world.faults.set(FaultConfig::default());
    let longest = Deletion { reason: Some("\u{1}".repeat(MAX_REASON_BYTES)), ..deletion(1) };
    world.deletions.delete(&longest).await.unwrap();
    assert!(matches!(&world.records().await[..], [Recorded::Readable(record)] if record.reason == longest.reason));
}

#[tokio::test(start_paused = true)]
async fn weather_never_makes_a_deletion_that_is_told_and_not_there() {
    let (mut done, mut unknown, mut refused) = (0, 0, 0);
    for seed in 0..2_000 {
        let world = World::new().await;
        let weather = FaultConfig::chaos([0.02, 0.1, 0.3][seed % 3]);
        let faults = Arc::new(FaultyStore::new(Arc::clone(&world.inner) as _, weather, seed as u64));
        world.manifests.for_writing(&TenantId::single()).await.unwrap();
        let tenants = TenantRegistry::open(Arc::clone(&world.inner) as _, Arc::clone(&world.clock) as _, 10).await.unwrap();
        let manifests = Arc::new(Manifests::new(Arc::clone(&faults) as _, Arc::clone(&world.clock) as _, tenants));
        while manifests.for_writing(&TenantId::single()).await.is_err() {}
        let deletions = Deletions::new(manifests, Arc::clone(&world.clock) as _);
        // Of some, nothing gets through any more after a while.
        let outage = async {
            tokio::time::sleep(Duration::from_millis(seed as u64 % 100)).await;
            if seed % 2 == 0 {
                faults.set(FaultConfig { error_before: 1.0, ..FaultConfig::default() });
            }
        };
        let deletion = deletion(1);
        let told = tokio::join!(deletions.delete(&deletion), outage).0;
        // Requests still on their way arrive.
        tokio::time::sleep(Duration::from_secs(10)).await;
        let (deleted_at, records) = (world.deleted_at(1).await, world.records().await);
        match told {
            Ok(_) => {
                done += 1;
                assert!(deleted_at.is_some(), "seed {seed}: told as done, and not there");
            }
            Err(DeleteError::Unknown { .. }) => unknown += 1,
            Err(error) => {
                refused += 1;
                assert_eq!(deleted_at, None, "seed {seed}: {error}");
            }
        }
        if let Some(time) = deleted_at {
            assert!(records.contains(&record(1, time)), "seed {seed}: {records:?} at {time:?}");
        }
    }
    println!("{done} done, {unknown} unknown, {refused} refused");
    assert!(done > 1_000 && unknown > 10 && refused > 10, "{done} done, {unknown} unknown, {refused} refused");
}

#[tokio::test(start_paused = true)]
async fn two_in_one_nanosecond_and_a_full_manifest() {
    let world = World::new().await;
    let now = world.clock.now();
    let paths = TenantPaths::new(&TenantId::single());
    let key = paths.deletion(now, TraceId([1; 16]));
    world.inner.put(&key, PutPayload::from_static(b"another's")).await.unwrap();
    world.inner.put(&paths.deletions().join("readme.txt"), PutPayload::from_static(b"not ours")).await.unwrap();
    world.delete(1).await.unwrap();
    let second = now.saturating_add(Duration::from_nanos(1));
    assert_eq!(world.deleted_at(1).await, Some(second));
    let records = world.records().await;
    assert!(matches!(&records[0], Recorded::Unreadable { time, .. } if *time == now), "{records:?}");
    assert_eq!(records[1..], [record(1, second)]);

    let bury: Vec<Tombstone> = (1..MAX_TOMBSTONES as u128)
        .map(|n| Tombstone { trace_id: TraceId(n.to_be_bytes()), deleted_at: UnixNanos(1) })
        .collect();
    let manifest = world.manifests.for_writing(&TenantId::single()).await.unwrap();
    manifest.commit(Change { bury, ..Change::default() }).await.unwrap();
    let error = world.delete(2).await.unwrap_err();
    assert!(error.is_too_many() && !error.is_retryable(), "{error}");
    assert_eq!(world.records().await.len(), 2);
    // One that is deleted already is no more.
    world.clock.advance(DAY);
    world.delete(1).await.unwrap();
    assert_eq!(world.state().await.tombstones.len(), MAX_TOMBSTONES);
}

#[test]
fn records_of_other_places_and_times_are_no_records() {
    let (tenant, id) = (TenantId::single(), TraceId([1; 16]));
    let Recorded::Readable(good) = record(1, UnixNanos(7)) else { unreachable!() };
    let bytes = serde_json::to_vec(&good).unwrap();
    assert_eq!(parse(&tenant, UnixNanos(7), id, &bytes), Ok(good.clone()));
    assert!(parse(&tenant, UnixNanos(8), id, &bytes).is_err());
    assert!(parse(&tenant, UnixNanos(7), TraceId([2; 16]), &bytes).is_err());
    assert!(parse(&"other".parse().unwrap(), UnixNanos(7), id, &bytes).is_err());
    let newer = serde_json::to_vec(&Record { format: 2, ..good }).unwrap();
    assert_eq!(parse(&tenant, UnixNanos(7), id, &newer), Err("it has format 2, this program knows 1".to_owned()));
    for bad in [&b""[..], b"{}", b"[1]", b"\xff"] {
        assert!(parse(&tenant, UnixNanos(7), id, bad).is_err());
    }
}
