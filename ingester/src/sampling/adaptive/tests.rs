use std::collections::BTreeMap;

use object_store::memory::InMemory;
use spanhouse_common::store::faults::{FaultConfig, FaultyStore};
use spanhouse_common::time::ManualClock;

use super::observer::{Millionths, Seen, Throughput};
use super::*;

const START: UnixNanos = UnixNanos(1_700_000_000_000_000_000);

fn config() -> AdaptiveConfig {
    AdaptiveConfig {
        targets: Targets {
            samples_per_second: 1.0,
            delta_tolerance: 0.3,
            calculation_buckets: 1,
            initial_probability: 0.001,
            min_probability: 1e-5,
        },
        calculation_interval: Duration::from_secs(60),
        aggregation_buckets: 10,
        calculation_delay: Duration::from_secs(120),
        min_samples_per_second: 1.0 / 60.0,
        leader_patience: Duration::from_secs(5),
        reload_interval: Duration::from_secs(60),
    }
}

async fn process(store: &Arc<dyn ObjectStore>, clock: &Arc<ManualClock>) -> Adaptive {
    Adaptive::open(config(), Arc::clone(store), Arc::clone(clock) as _, SamplingMetrics::default()).await
}

/// A service that does as it is told: samples by probability, and by the lower bound what that leaves out.
#[derive(Debug, Default)]
struct Client {
    told: BTreeMap<String, f64>,
    /// Traces of which a part was sampled, by operation; and when one was kept last.
    owed: BTreeMap<String, (f64, u64)>,
}

impl Client {
    fn ask(&mut self, process: &Adaptive) {
        let Some(operations) = process.strategy("shop").operations else { panic!("operations are told") };
        assert_eq!((operations.default_probability, operations.lower_bound), (0.001, 1.0 / 60.0));
        self.told = operations.list.iter().map(|o| (o.name.to_string(), o.probability)).collect();
    }

    /// One second with so many traces an operation. Returns how many were kept of each.
    fn second(&mut self, now: u64, traffic: &[(&str, f64)], to: &Adaptive) -> BTreeMap<String, u64> {
        let mut seen = BTreeMap::new();
        let mut kept = BTreeMap::new();
        for (operation, rate) in traffic {
            let probability = self.told.get(*operation).copied().unwrap_or(0.001);
            let (owed, last) = self.owed.entry((*operation).to_owned()).or_insert((0.0, now));
            *owed += rate * probability;
            let count = owed.floor() as u64;
            *owed -= count as f64;
            let bound = count == 0 && *rate > 0.0 && now - *last >= 60;
            if count > 0 || bound {
                *last = now;
                let probabilities = [Millionths::of(probability)].into();
                seen.insert((*operation).to_owned(), Seen { count, probabilities });
            }
            kept.insert((*operation).to_owned(), count);
        }
        if !seen.is_empty() {
            to.observer().add(Throughput { services: [("shop".to_owned(), seen)].into() });
        }
        kept
    }
}

/// Minutes of traffic, sent to the processes in turn and asked of the first. Returns what was kept a second in the last ten.
async fn simulate(
    minutes: u64,
    traffic: &[(&str, f64)],
    clock: &ManualClock,
    client: &mut Client,
    processes: &[&Adaptive],
) -> BTreeMap<String, f64> {
    let mut kept: BTreeMap<String, f64> = BTreeMap::new();
    for second in 0..minutes * 60 {
        clock.advance(Duration::from_secs(1));
        if second % 60 == 17 {
            client.ask(processes[0]);
        }
        let now = clock.now().as_seconds();
        for (operation, count) in client.second(now, traffic, processes[second as usize % processes.len()]) {
            if second >= (minutes.saturating_sub(10)) * 60 {
                *kept.entry(operation).or_default() += count as f64 / 600.0;
            }
        }
        for process in processes {
            process.step().await;
        }
    }
    kept
}

#[tokio::test]
async fn each_operation_comes_to_its_target() {
    let (store, clock) = (Arc::new(InMemory::new()) as Arc<dyn ObjectStore>, ManualClock::at(START));
    let process = process(&store, &clock).await;
    let mut client = Client::default();
    let traffic = [("busy", 5_000.0), ("fair", 80.0), ("rare", 0.2)];
    let kept = simulate(90, &traffic, &clock, &mut client, &[&process]).await;
    for operation in ["busy", "fair"] {
        assert!((0.7..=1.3).contains(&kept[operation]), "{kept:?}");
    }
    // All of it is less than the target.
    assert_eq!(client.told["rare"], 1.0, "{kept:?}");

    // Ten times the traffic is cut down again, and a tenth of it is let grow.
    let kept = simulate(60, &[("busy", 500.0), ("fair", 800.0)], &clock, &mut client, &[&process]).await;
    for operation in ["busy", "fair"] {
        assert!((0.7..=1.3).contains(&kept[operation]), "{kept:?}");
    }
}

#[tokio::test]
async fn a_client_with_a_mind_of_its_own_is_left_alone() {
    let (store, clock) = (Arc::new(InMemory::new()) as Arc<dyn ObjectStore>, ManualClock::at(START));
    let process = process(&store, &clock).await;
    let mut first = None;
    for _ in 0..40 * 60_u64 {
        clock.advance(Duration::from_secs(1));
        let seen = Seen { count: 100, probabilities: [Millionths::of(0.5)].into() };
        let operations = [("own".to_owned(), seen)].into();
        process.observer().add(Throughput { services: [("shop".to_owned(), operations)].into() });
        process.step().await;
        // The first calculation takes the initial probability for used; no other one does.
        let learned = process.learned();
        if let Some(operation) = learned.services.get("shop").and_then(|all| all.get("own")) {
            assert_eq!(*first.get_or_insert(operation.probability), operation.probability);
        }
    }
    assert!(first.is_some_and(|first| first < 0.0001) && process.metrics.calculations() > 30, "{first:?}");
}

#[tokio::test]
async fn processes_share_what_they_learn_and_one_calculates() {
    let (store, clock) = (Arc::new(InMemory::new()) as Arc<dyn ObjectStore>, ManualClock::at(START));
    let (a, b) = (process(&store, &clock).await, process(&store, &clock).await);
    let mut client = Client::default();
    let traffic = [("busy", 5_000.0)];
    let kept = simulate(60, &traffic, &clock, &mut client, &[&a, &b]).await;
    assert!((0.7..=1.3).contains(&kept["busy"]), "{kept:?}");
    assert_eq!(a.learned(), b.learned());
    let calculations = |process: &Adaptive| process.metrics.calculations();
    let both = calculations(&a) + calculations(&b);
    assert!((50..=60).contains(&both), "{both} calculations");
    assert!(calculations(&a) == 0 || calculations(&b) == 0, "whoever led goes on leading");

    // Without its leader the other goes on, and a third begins with what is known.
    let (leader, other) = if calculations(&a) > 0 { (a, b) } else { (b, a) };
    let before = leader.learned().period;
    drop(leader);
    simulate(15, &traffic, &clock, &mut client, &[&other]).await;
    assert!(calculations(&other) >= 14 && other.learned().period > before);
    let third = process(&store, &clock).await;
    assert_eq!(third.learned(), other.learned());

    // What nobody reads any more is gone: 2 × 10 periods by one or two processes, and the newest probabilities.
    let left = futures::TryStreamExt::try_collect::<Vec<_>>(store.list(None)).await.unwrap();
    assert!(left.len() <= 2 * 2 * 11 + 4, "{} objects", left.len());
}

#[tokio::test]
async fn without_sampled_traces_nothing_is_written() {
    let (store, clock) = (Arc::new(InMemory::new()) as Arc<dyn ObjectStore>, ManualClock::at(START));
    let process = process(&store, &clock).await;
    for _ in 0..600 {
        clock.advance(Duration::from_secs(1));
        process.step().await;
    }
    assert!(futures::TryStreamExt::try_collect::<Vec<_>>(store.list(None)).await.unwrap().is_empty());
    let strategy = process.strategy("any");
    assert_eq!(strategy.rate, None);
    assert!(strategy.operations.is_some_and(|operations| operations.list.is_empty()));
}

#[tokio::test]
async fn a_store_that_fails_costs_no_counts() {
    let faulty = Arc::new(FaultyStore::new(Arc::new(InMemory::new()), FaultConfig::default(), 3));
    let store = Arc::clone(&faulty) as Arc<dyn ObjectStore>;
    let clock = ManualClock::at(START);
    let process = process(&store, &clock).await;
    let mut client = Client::default();
    simulate(30, &[("busy", 5_000.0)], &clock, &mut client, &[&process]).await;
    let told = process.strategy("shop");
    faulty.set(FaultConfig { error_before: 1.0, ..FaultConfig::default() });
    simulate(5, &[("busy", 5_000.0)], &clock, &mut client, &[&process]).await;
    assert_eq!(process.strategy("shop"), told, "the old ones stay in force");
    assert!(process.metrics.store_failures() > 0);
    faulty.set(FaultConfig::default());
    simulate(1, &[("busy", 5_000.0)], &clock, &mut client, &[&process]).await;
    let period = process.shared.period_of(clock.now());
    let counted = process.shared.throughputs(period, 7).await.unwrap();
    assert_eq!(counted.len(), 7, "every period arrived");
    assert!(process.turn.lock().unsaved.is_empty());
}

#[tokio::test]
async fn a_stop_keeps_what_was_counted_and_foreign_objects_do_no_harm() {
    use object_store::ObjectStoreExt as _;
    use spanhouse_common::store::paths;
    let (store, clock) = (Arc::new(InMemory::new()) as Arc<dyn ObjectStore>, ManualClock::at(START));
    let period = Shared::new(Arc::clone(&store), config().calculation_interval).period_of(START);
    for key in [
        paths::sampling_probabilities(period),
        paths::sampling_probabilities(UnixNanos(u64::MAX)),
        paths::sampling_throughput(period, uuid::Uuid::nil()),
        paths::sampling_throughputs().join("what.json"),
    ] {
        store.put(&key, "no JSON".into()).await.unwrap();
    }
    let process = process(&store, &clock).await;
    let seen = Seen { count: 7, probabilities: [Millionths::of(0.001)].into() };
    process.observer().add(Throughput { services: [("shop".to_owned(), [("a".to_owned(), seen)].into())].into() });
    process.step().await;
    let stop = CancellationToken::new();
    stop.cancel();
    process.run(stop).await;
    let next = UnixNanos(period.0 + 60_000_000_000);
    let counted = process.shared.throughputs(next, 2).await.unwrap();
    assert_eq!(counted.len(), 1);
    assert_eq!(counted[0].1.services["shop"]["a"].count, 7);
    assert_eq!(process.metrics.store_failures(), 0);
}
