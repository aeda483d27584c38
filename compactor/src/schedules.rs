//! Two compactors, a flusher and readers over a store that misbehaves, from seeds: I5, nothing a version names is deleted
//! while somebody may read by it; packs hold what their blocks' filters say; and garbage does go.
//!
//! `SPANHOUSE_SEED=n` runs the one schedule that failed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt};
use prometheus_client::registry::Registry;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use spanhouse_common::id::{BlockId, TenantId};
use spanhouse_common::manifest::{
    Change, CommitError, ManifestSettings, ManifestState, ManifestStore, Manifests, Tombstone,
};
use spanhouse_common::retention::Retention;
use spanhouse_common::store::faults::{FaultConfig, FaultyStore};
use spanhouse_common::store::paths::{TenantPaths, pack_of};
use spanhouse_common::time::{Clock, ManualClock};

use crate::merge::Merger;
use crate::metrics::CompactorMetrics;
use crate::round::Rounds;
use crate::testing::{
    AgedStore, HOUR, MINUTE, START, block_id, entry, flush_of, flush_with_sidecar, has_any_of, has_block, manifests_on,
    merger_on, objects_of, put_block, put_block_with, sidecar,
};
use crate::{CompactorConfig, CompactorDeps, Step, start};

const STEPS: u32 = 80;
/// What a query may take, and a flush between its first put and its commit: a little less than the graces below.
const LONGEST_QUERY: Duration = Duration::from_secs(14 * 60);
const LONGEST_FLUSH: Duration = Duration::from_secs(110 * 60);

fn config() -> CompactorConfig {
    CompactorConfig {
        // The blocks here have no content; merges have schedules of their own.
        merge: false,
        sweep_interval: Duration::ZERO,
        query_grace: 15 * MINUTE,
        sweep_grace: 2 * HOUR,
        ..CompactorConfig::default()
    }
}

fn deps(manifests: &Arc<Manifests>, clock: &Arc<ManualClock>) -> CompactorDeps {
    let Merger { memory, spool_dir, .. } = merger_on(manifests, clock);
    let retention = Retention::same(3 * HOUR);
    CompactorDeps { manifests: Arc::clone(manifests), clock: Arc::clone(clock) as _, retention, memory, spool_dir }
}

/// One process: its own weather, its own view of the manifest.
struct Process {
    weather: Arc<FaultyStore>,
    manifests: Arc<Manifests>,
    rounds: Rounds,
    metrics: CompactorMetrics,
}

impl Process {
    async fn new(inner: &Arc<AgedStore>, clock: &Arc<ManualClock>, config: CompactorConfig, seed: u64) -> Self {
        let weather = Arc::new(FaultyStore::new(Arc::clone(inner) as _, FaultConfig::chaos(0.03), seed));
        let store: Arc<dyn ObjectStore> = Arc::clone(&weather) as _;
        let manifests = Arc::new(manifests_on(&store, clock).await);
        let metrics = CompactorMetrics::default();
        let rounds = Rounds::new(config, deps(&manifests, clock), metrics.clone());
        Self { weather, manifests, rounds, metrics }
    }
}

/// Commits a block as a flush does: the same change until its outcome is known.
async fn commit(manifests: &Manifests, tenant: &TenantId, n: u64, clock: &ManualClock, flushed: &mut u64) {
    let change = flush_with_sidecar(n, clock.now(), 1, *flushed);
    loop {
        let Ok(manifest) = manifests.for_writing(tenant).await else { continue };
        match manifest.commit(change.clone()).await {
            Ok(_) => break,
            Err(CommitError::Conflict(violation)) => panic!("the only writer got a conflict: {violation}"),
            Err(_) => {}
        }
    }
    *flushed += 1;
}

async fn require_all(store: &AgedStore, tenant: &TenantId, state: &ManifestState, who: &str) -> Result<(), String> {
    for id in state.blocks.keys() {
        if !has_block(store, tenant, *id).await {
            return Err(format!("block {id} of version {} is gone for {who}", state.version));
        }
    }
    let paths = TenantPaths::new(tenant);
    for pack in state.packs.values() {
        let object = async { store.get(&paths.filter_pack(pack.id)).await?.bytes().await }.await;
        let Ok(object) = object else {
            return Err(format!("pack {} of version {} is gone for {who}", pack.id, state.version));
        };
        let sound = crc32c::crc32c(&object) == pack.crc32c
            && pack.filters.iter().all(|filter| filter.slice(&object).as_ref() == Some(&sidecar(filter.block)));
        if !sound {
            return Err(format!("pack {} of version {} is not the filters of its blocks", pack.id, state.version));
        }
    }
    Ok(())
}

/// What happened in a schedule.
#[derive(Debug, Default)]
struct Counts {
    retired: u64,
    orphans: u64,
    packs: u64,
    /// Filters packed beyond one for each block.
    repacked: u64,
}

async fn schedule(seed: u64, config: CompactorConfig) -> Result<Counts, String> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let (tenant, clock) = (TenantId::single(), ManualClock::at(START));
    let inner = AgedStore::new(&clock);
    let fresh = || async {
        let (store, clock) = (Arc::clone(&inner) as _, Arc::clone(&clock) as _);
        let opened = ManifestStore::open(store, TenantId::single(), clock, ManifestSettings::default()).await;
        opened.map(|manifest| manifest.current()).map_err(|error| error.to_string())
    };
    let mut processes =
        [Process::new(&inner, &clock, config, seed).await, Process::new(&inner, &clock, config, seed + 1).await];
    let (mut made, mut flushed, mut orphans) = (0, 0, 0);
    let mut pending: VecDeque<(u64, Duration)> = VecDeque::new();
    let mut readers: Vec<(Arc<ManifestState>, Duration)> = Vec::new();
    while processes[0].manifests.for_writing(&tenant).await.is_err() {}
    for _ in 0..STEPS {
        let now = clock.monotonic();
        readers.retain(|(_, since)| now - *since <= LONGEST_QUERY);
        while pending.front().is_some_and(|(_, since)| now - *since > LONGEST_FLUSH) || pending.len() > 3 {
            pending.pop_front();
            orphans += 1;
        }
        let at = rng.random_range(0..2);
        let [one, two] = &mut processes;
        let (manifests, weather) = (Arc::clone(&one.manifests), Arc::clone(&one.weather));
        let (process, other) = if at == 0 { (one, two) } else { (two, one) };
        let act = rng.random_range(0..6);
        let flush = async {
            match act {
                0 | 1 => {
                    made += 1;
                    put_block_with(weather.as_ref(), &tenant, block_id(made), sidecar(block_id(made)).into()).await;
                    pending.push_back((made, now));
                }
                2 | 3 => {
                    if let Some((n, _)) = pending.pop_front() {
                        commit(&manifests, &tenant, n, &clock, &mut flushed).await;
                    }
                }
                _ => {}
            }
        };
        let (sweeps, races) = (rng.random_bool(0.8), rng.random_bool(0.2));
        let round = async {
            if sweeps {
                process.rounds.round().await;
            }
        };
        let race = async {
            if races {
                other.rounds.round().await;
            }
        };
        tokio::join!(flush, round, race);
        // Whatever was still on its way arrives.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let newest = fresh().await?;
        require_all(&inner, &tenant, &newest, "everybody").await?;
        for (state, _) in &readers {
            require_all(&inner, &tenant, state, "a query under way").await?;
        }
        if act >= 4 {
            readers.push((newest, now));
        }
        clock.advance(Duration::from_secs(rng.random_range(0..12 * 60)));
    }
    // The weather clears, the flusher is killed, time passes.
    orphans += pending.len() as u64;
    for process in &mut processes {
        process.weather.set(FaultConfig::default());
    }
    for _ in 0..3 {
        clock.advance(config.sweep_grace + config.query_grace);
        for process in &mut processes {
            process.rounds.round().await;
        }
    }
    let newest = fresh().await?;
    require_all(&inner, &tenant, &newest, "everybody").await?;
    for n in 1..=made {
        let id: BlockId = block_id(n);
        if !newest.blocks.contains_key(&id) && has_any_of(inner.as_ref(), &tenant, id).await {
            return Err(format!("block {id} is garbage and still there"));
        }
    }
    let packs = TenantPaths::new(&tenant).filter_packs();
    let left: Vec<_> = inner.list(Some(&packs)).try_collect().await.map_err(|error| error.to_string())?;
    if let Some(pack) = left.iter().find(|o| pack_of(&o.location).is_none_or(|id| !newest.packs.contains_key(&id))) {
        return Err(format!("pack {} is garbage and still there", pack.location));
    }
    let sum = |of: fn(&CompactorMetrics) -> u64| processes.iter().map(|process| of(&process.metrics)).sum::<u64>();
    let (packs, filters) = (sum(|m| m.filter_packs.get()), sum(|m| m.packed_filters.get()));
    Ok(Counts { retired: sum(|m| m.retired_blocks.get()), orphans, packs, repacked: filters.saturating_sub(made) })
}

fn run(seed: u64, config: CompactorConfig) -> Result<Counts, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(schedule(seed, config))
}

#[test]
fn nothing_referenced_is_deleted_and_garbage_goes() {
    let one = std::env::var("SPANHOUSE_SEED").ok().map(|text| text.parse::<u64>().unwrap());
    let seeds = one.map_or(0..100, |seed| seed..seed + 1);
    let mut all = Counts::default();
    for seed in seeds.clone() {
        match run(seed, config()) {
            Ok(counts) => {
                all.retired += counts.retired;
                all.orphans += counts.orphans;
                all.packs += counts.packs;
                all.repacked += counts.repacked;
            }
            Err(broken) => panic!("SPANHOUSE_SEED={seed}: {broken}"),
        }
    }
    println!("{all:?}");
    let enough = [all.retired, all.orphans, all.packs, all.repacked].iter().all(|count| *count > 100);
    assert!(seeds.end - seeds.start < 100 || enough, "{all:?}");
}

#[test]
fn a_sweeper_that_skips_a_grace_is_caught() {
    let no_query_grace = CompactorConfig { query_grace: Duration::ZERO, ..config() };
    let no_sweep_grace = CompactorConfig { sweep_grace: Duration::ZERO, ..config() };
    for (what, config, victim) in [("query", no_query_grace, "a query under way"), ("sweep", no_sweep_grace, "everybody")] {
        let caught = (0..100).filter_map(|seed| run(seed, config).err()).find(|broken| broken.ends_with(victim));
        assert!(caught.is_some(), "100 schedules did not catch a sweeper without its {what} grace");
    }
}

#[tokio::test(start_paused = true)]
async fn the_loop_retires_sweeps_and_stops() {
    let (tenant, clock) = (TenantId::single(), ManualClock::at(START));
    let store: Arc<dyn ObjectStore> = AgedStore::new(&clock);
    let manifests = Arc::new(manifests_on(&store, &clock).await);
    let manifest = manifests.for_writing(&tenant).await.unwrap();
    put_block(store.as_ref(), &tenant, entry(1).id).await;
    let stone = Tombstone { trace_id: entry(1).min_trace_id, deleted_at: START };
    manifest.commit(Change { bury: vec![stone], ..flush_of(1, START, 1, 0) }).await.unwrap();
    let mut registry = Registry::default();
    let deps = deps(&manifests, &clock);
    let compactor = start(config(), deps, &mut registry);
    let five_minutes = 5 * MINUTE;
    for _ in 0..12 {
        tokio::time::sleep(five_minutes).await;
        clock.advance(five_minutes);
    }
    assert_eq!((manifest.current().blocks.len(), manifest.current().tombstones.len()), (1, 1));
    for _ in 0..36 {
        tokio::time::sleep(five_minutes).await;
        clock.advance(five_minutes);
    }
    assert!(manifest.current().blocks.is_empty() && manifest.current().tombstones.is_empty());
    assert!(!has_any_of(store.as_ref(), &tenant, entry(1).id).await, "{:?}", objects_of(&tenant, entry(1).id));
    let metrics = compactor.metrics().clone();
    assert_eq!((metrics.retired_blocks.get(), metrics.swept_objects.get(), metrics.swept_bytes.get()), (1, 2, 16));
    assert_eq!(metrics.failures(Step::Sweep), 0);
    compactor.stop().await;
    let version = manifest.current().version;
    tokio::time::sleep(24 * HOUR).await;
    assert_eq!(manifest.current().version, version);
}

#[tokio::test(start_paused = true)]
async fn a_tenant_without_a_manifest_gets_none() {
    let clock = ManualClock::at(START);
    let store: Arc<dyn ObjectStore> = AgedStore::new(&clock);
    let manifests = Arc::new(manifests_on(&store, &clock).await);
    manifests.tenants().register(&TenantId::single()).await.unwrap();
    let metrics = CompactorMetrics::default();
    let mut rounds = Rounds::new(config(), deps(&manifests, &clock), metrics);
    rounds.round().await;
    let manifest = manifests.for_reading(&TenantId::single()).await.unwrap().unwrap();
    assert_eq!(manifest.refresh().await.unwrap().version, 0);
}

#[tokio::test(start_paused = true)]
async fn every_tenant_has_its_own_retention_and_it_may_change() {
    let clock = ManualClock::at(START);
    let store: Arc<dyn ObjectStore> = AgedStore::new(&clock);
    let manifests = Arc::new(manifests_on(&store, &clock).await);
    let [short, long]: [TenantId; 2] = ["short", "long"].map(|name| name.parse().unwrap());
    for tenant in [&short, &long] {
        let manifest = manifests.for_writing(tenant).await.unwrap();
        manifest.commit(flush_of(1, START, 1, 0)).await.unwrap();
    }
    let hours = Arc::new(AtomicU32::new(9));
    let of_long = Arc::clone(&hours);
    let retention = Retention::by(move |tenant: &TenantId| match tenant.as_str() {
        "short" => 3 * HOUR,
        _ => of_long.load(Relaxed) * HOUR,
    });
    let deps = CompactorDeps { retention, ..deps(&manifests, &clock) };
    let mut rounds = Rounds::new(config(), deps, CompactorMetrics::default());
    clock.advance(4 * HOUR);
    for (of_long, left) in [(9, [0, 1]), (5, [0, 1]), (3, [0, 0])] {
        hours.store(of_long, Relaxed);
        rounds.round().await;
        for (tenant, left) in [&short, &long].into_iter().zip(left) {
            let manifest = manifests.for_reading(tenant).await.unwrap().unwrap();
            assert_eq!(manifest.current().blocks.len(), left, "{tenant}, {of_long} h");
        }
    }
}
