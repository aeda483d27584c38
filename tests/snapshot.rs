//! Reads race the hand-over from live data to blocks: a fixed total must come out of every read.
//!
//! In one process, without HTTP: what races here is publish, merge, cut, commit and snapshot, and a read must cost little for
//! a million of them to be worth waiting for. Each generation is a tenant with traces of a known number of spans, spread over
//! many batches. Readers start before the first cut and go on until the generation is long in blocks.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use object_store::memory::InMemory;
use prost::Message;
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use spanhouse_common::budget::Share;
use spanhouse_common::id::{TenantId, TraceId, WalPosition, WriterId};
use spanhouse_common::manifest::Manifests;
use spanhouse_common::source::{LiveReader, LiveView, Snapshots};
use spanhouse_common::store::tenants::TenantRegistry;
use spanhouse_common::telemetry::Telemetry;
use spanhouse_common::time::{Clock, SystemClock};
use spanhouse_ingester::flush::{FlushConfig, FlushMetrics, Flusher};
use spanhouse_ingester::live::{CutPolicy, Live};
use spanhouse_ingester::otlp::walk::{WalkOptions, Walker};
use spanhouse_querier::find_trace::{QueryBounds, TraceQuery, WhichSources, find_trace};
use spanhouse_querier::sources::Sources;
use tokio::task::JoinSet;

use crate::harness::otlp::{new_id, request, span};
use crate::harness::times;

const TRACES: usize = 12;
const SPANS: u64 = 15;
const READERS: usize = 3;
/// Later generations hide behind fewer blocks than one grown for ever, so reads stay cheap and the hand-over common.
const CUTS: usize = 6;

struct House {
    live: Arc<Live>,
    flusher: Flusher,
    sources: Arc<Sources>,
    memory: Share,
}

/// Live data as [`Live`] gives it, or a lie about it.
type Reader = fn(Arc<Live>) -> Arc<dyn LiveReader>;

async fn house(reader: Reader) -> Arc<House> {
    let store = Arc::new(InMemory::new());
    let clock: Arc<dyn Clock> = SystemClock::shared();
    let tenants = TenantRegistry::open(Arc::clone(&store) as _, Arc::clone(&clock), 1_000_000).await.expect("tenants");
    let manifests = Arc::new(Manifests::new(store, Arc::clone(&clock), tenants));
    let policy = CutPolicy { max_age: Duration::ZERO, max_spans: usize::MAX, max_bytes: usize::MAX };
    let live = Arc::new(Live::new(WriterId::generate(), Arc::clone(&clock), policy));
    let config = FlushConfig { window_seconds: 3600, retention: Duration::from_secs(86_400), writer: Default::default() };
    let metrics = Telemetry::new().register("ingester", FlushMetrics::register);
    let flusher = Flusher::new(Arc::clone(&live), Arc::clone(&manifests), Arc::clone(&clock), config, metrics);
    let sources = Arc::new(Sources::new(reader(Arc::clone(&live)), manifests, clock, 32 << 20));
    Arc::new(House { live, flusher, sources, memory: Share::new("query", 512 << 20) })
}

impl House {
    /// Publishes spans `from..to` of every trace, some traces a batch, as requests of many senders would come.
    fn publish(&self, tenant: &TenantId, traces: &[u128], numbers: std::ops::Range<u64>, sequence: &mut u64) {
        let mut walker = Walker::default();
        for some in traces.chunks(3) {
            for n in numbers.clone() {
                let body = request(some.iter().map(|trace| span(*trace, n)).collect()).encode_to_vec();
                let walked = walker.walk(&body, WalkOptions::default()).expect("a valid request");
                *sequence += 1;
                self.live.publish(tenant, WalPosition { epoch: 1, sequence: *sequence }, walked.batch, None);
            }
        }
    }

    /// Spans of a trace as a query finds them, before the API merges equal ids.
    async fn read(&self, tenant: &TenantId, trace: u128) -> Vec<[u8; 8]> {
        let query = TraceQuery {
            tenants: vec![tenant.clone()],
            id: TraceId(trace.to_be_bytes()),
            hint: None,
            sources: WhichSources::All,
        };
        let snapshots: &dyn Snapshots = &*self.sources;
        let found = find_trace(snapshots, &self.memory, &query, QueryBounds::default()).await.expect("an answer");
        assert!(found.damage.is_empty(), "{:?}", found.damage);
        found.pieces.iter().flatten().map(|stored| stored.span.span_id.0).collect()
    }
}

/// Says that no commit ever covers what is live: the mistake of a snapshot that does not look at watermarks.
#[derive(Debug)]
struct NeverCovered(Arc<Live>);

impl LiveReader for NeverCovered {
    fn live(&self, tenant: &TenantId) -> LiveView {
        let mut view = self.0.live(tenant);
        for part in &mut view.parts {
            part.to = WalPosition { epoch: u64::MAX, sequence: u64::MAX };
        }
        view
    }
}

/// One generation as its readers see it.
struct Generation {
    house: Arc<House>,
    tenant: TenantId,
    traces: Vec<u128>,
    /// Spans of each trace that are published for sure.
    whole: AtomicUsize,
    stop: AtomicBool,
}

/// Reads until told to stop. The error is the first read that counts wrong.
async fn reads(of: Arc<Generation>) -> Result<usize, String> {
    let mut random = SmallRng::from_rng(&mut rand::rng());
    let mut reads = 0;
    while !of.stop.load(SeqCst) {
        let trace = of.traces[random.random_range(0..of.traces.len())];
        // What was there before the read began must be seen; what comes during it may be.
        let least = of.whole.load(SeqCst);
        let found = of.house.read(&of.tenant, trace).await;
        let most = SPANS as usize * CUTS;
        let distinct: HashSet<_> = found.iter().collect();
        if distinct.len() != found.len() {
            return Err(format!("{} spans twice in {trace:032x} of {}", found.len() - distinct.len(), of.tenant));
        }
        if !(least..=most).contains(&found.len()) {
            return Err(format!("{} spans in {trace:032x} of {}, not {least}", found.len(), of.tenant));
        }
        reads += 1;
        if reads % 16 == 0 {
            tokio::task::yield_now().await;
        }
    }
    Ok(reads)
}

/// Races until there were `wanted` reads or one counted wrong.
async fn race(reader: Reader, wanted: usize) -> Result<usize, String> {
    let house = house(reader).await;
    let (mut done, mut number, mut sequence) = (0, 0, 0);
    while done < wanted {
        number += 1;
        let generation = Arc::new(Generation {
            house: Arc::clone(&house),
            tenant: format!("generation-{number}").parse().expect("a tenant"),
            traces: (0..TRACES).map(|_| new_id()).collect(),
            whole: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        });
        let mut readers = JoinSet::new();
        for _ in 0..READERS {
            readers.spawn(reads(Arc::clone(&generation)));
        }
        let merging = {
            let generation = Arc::clone(&generation);
            tokio::task::spawn_blocking(move || {
                while !generation.stop.load(SeqCst) {
                    generation.house.live.merge_small();
                    std::thread::yield_now();
                }
            })
        };
        let Generation { tenant, traces, whole, stop, .. } = &*generation;
        for cut in 0..CUTS as u64 {
            house.publish(tenant, traces, cut * SPANS + 1..(cut + 1) * SPANS + 1, &mut sequence);
            whole.store((cut as usize + 1) * SPANS as usize, SeqCst);
            for cut in house.live.cut(true, false) {
                house.flusher.flush(&cut).await;
            }
        }
        stop.store(true, SeqCst);
        merging.await.expect("merging goes on");
        for reads in readers.join_all().await {
            done += reads?;
        }
        assert_eq!(house.live.totals().spans, 0);
        // Nothing races any more: each trace is whole in blocks.
        for trace in traces {
            assert_eq!(house.read(tenant, *trace).await.len(), SPANS as usize * CUTS);
        }
    }
    Ok(done)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_read_sees_a_span_twice_or_not_at_all() {
    let wanted = times("SPANHOUSE_RACE_READS", if cfg!(debug_assertions) { 10_000 } else { 100_000 });
    let reads = race(|live| live, wanted).await;
    assert!(reads.as_ref().is_ok_and(|reads| *reads >= wanted), "{reads:?}");
}

/// The race above must be able to fail: a planted mistake has to be found in as many reads.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_race_sees_spans_twice() {
    let reads = race(|live| Arc::new(NeverCovered(live)), 10_000).await;
    assert!(reads.as_ref().is_err_and(|why| why.contains("twice")), "{reads:?}");
}
