//! Reads race the hand-over from live data to blocks, and from blocks to what they are merged to: a fixed total must come out of every read.
//!
//! In one process, without HTTP: what races here is publish, merge, cut, commit and snapshot, and a read must cost little for
//! a million of them to be worth waiting for. Each generation is a tenant with traces of a known number of spans, spread over
//! many batches. Readers start before the first cut and go on until the generation is long in blocks.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use object_store::memory::InMemory;
use prost::Message;
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use spanhouse_common::budget::Share;
use spanhouse_common::id::{TenantId, TraceId, WalPosition, WriterId};
use spanhouse_common::manifest::Manifests;
use spanhouse_common::retention::Retention;
use spanhouse_common::source::{LiveReader, LiveView, Snapshots};
use spanhouse_common::store::tenants::TenantRegistry;
use spanhouse_common::telemetry::Telemetry;
use spanhouse_common::time::{Clock, SystemClock};
use spanhouse_compactor::CompactorMetrics;
use spanhouse_compactor::merge::Merger;
use spanhouse_compactor::merging::{MergeLimits, Merging};
use spanhouse_compactor::policy::PolicyConfig;
use spanhouse_ingester::flush::{FlushConfig, FlushMetrics, Flusher};
use spanhouse_ingester::live::{CutPolicy, Live};
use spanhouse_ingester::otlp::walk::{WalkOptions, Walker};
use spanhouse_querier::find_trace::{QueryBounds, TraceQuery, WhichSources, find_trace};
use spanhouse_querier::sources::Sources;
use tokio::task::JoinSet;

use crate::harness::otlp::{new_id, request, span};
use crate::harness::times;

const TRACES: usize = 12;
const SPANS: u64 = 60;
const READERS: usize = 3;
/// The publisher waits for a cut after so many spans of each trace: so spans come before, during and after every flush, and a
/// generation ends up in a dozen blocks, few enough that a read stays cheap.
const SPANS_PER_CUT: u64 = 5;

struct House {
    live: Arc<Live>,
    manifests: Arc<Manifests>,
    merger: Merger,
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
    let config = FlushConfig { window_seconds: 3600, writer: Default::default() };
    let metrics = Telemetry::new().register("ingester", FlushMetrics::register);
    let flusher = Flusher::new(
        Arc::clone(&live),
        Arc::clone(&manifests),
        Arc::clone(&clock),
        config,
        Retention::same(Duration::from_secs(86_400)),
        metrics,
    );
    let merger = Merger {
        store: Arc::clone(manifests.store()),
        clock: Arc::clone(&clock),
        memory: Share::new("compaction", 256 << 20),
        spool_dir: std::env::temp_dir(),
    };
    let sources = Arc::new(Sources::new(reader(Arc::clone(&live)), Arc::clone(&manifests), clock, 32 << 20));
    Arc::new(House { live, manifests, merger, flusher, sources, memory: Share::new("query", 512 << 20) })
}

impl House {
    /// Publishes the n-th span of every trace, some traces a batch, as requests of many senders would come.
    fn publish(&self, walker: &mut Walker, tenant: &TenantId, traces: &[u128], n: u64, sequence: &mut u64) {
        for some in traces.chunks(3) {
            let body = request(some.iter().map(|trace| span(*trace, n)).collect()).encode_to_vec();
            let walked = walker.walk(&body, WalkOptions::default()).expect("a valid request");
            *sequence += 1;
            self.live.publish(tenant, WalPosition { epoch: 1, sequence: *sequence }, walked.batch, None);
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
    cuts: AtomicUsize,
    stop: AtomicBool,
}

impl Generation {
    /// Publishes everything, going on while cuts are being flushed.
    fn publish(&self, mut sequence: u64) -> u64 {
        let mut walker = Walker::default();
        for n in 1..=SPANS {
            // Before publishing: a cut that takes what follows at once must not be waited for in vain.
            let cuts = self.cuts.load(SeqCst);
            self.house.publish(&mut walker, &self.tenant, &self.traces, n, &mut sequence);
            self.whole.store(n as usize, SeqCst);
            // Not for ever: a mistake that loses what should be cut must show in the reads, not as a test that hangs.
            let patience = Instant::now() + Duration::from_millis(200);
            while n.is_multiple_of(SPANS_PER_CUT) && self.cuts.load(SeqCst) == cuts && Instant::now() < patience {
                std::thread::yield_now();
            }
        }
        sequence
    }

    /// Merges blocks two at a time, twice, as they come. What is replaced stays in the store, as it does for the query grace.
    async fn compact(&self) -> usize {
        let policy = PolicyConfig { fan_in: 2, ..PolicyConfig::default() };
        let retention = Duration::from_secs(86_400);
        let limits = MergeLimits { retention, policy, most: usize::MAX, rewrite_after: Duration::ZERO };
        let (mut merging, metrics, mut merges) = (Merging::default(), CompactorMetrics::default(), 0);
        while !self.stop.load(SeqCst) {
            tokio::time::sleep(Duration::from_millis(1)).await;
            let Some(manifest) = self.house.manifests.for_reading(&self.tenant).await.expect("a manifest") else { continue };
            let turn = merging.turn(&self.house.merger, &manifest, &limits, &metrics, |_, _, _| {}).await;
            merges += turn.expect("a healthy store").merges;
        }
        merges
    }

    fn merge(&self) {
        while !self.stop.load(SeqCst) {
            self.house.live.merge_small();
            std::thread::yield_now();
        }
    }

    /// Cuts and flushes until everything is published and in blocks.
    async fn flush(&self) {
        loop {
            let all = self.whole.load(SeqCst) == SPANS as usize;
            for cut in self.house.live.cut(true, false) {
                self.cuts.fetch_add(1, SeqCst);
                self.house.flusher.flush(&cut).await.expect("a healthy store");
            }
            if all {
                return;
            }
            tokio::task::yield_now().await;
        }
    }
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
        let distinct: HashSet<_> = found.iter().collect();
        if distinct.len() != found.len() {
            return Err(format!("{} spans twice in {trace:032x} of {}", found.len() - distinct.len(), of.tenant));
        }
        if !(least..=SPANS as usize).contains(&found.len()) {
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
async fn race(reader: Reader, wanted: usize, compacting: bool) -> Result<usize, String> {
    let house = house(reader).await;
    let (mut done, mut number, mut sequence, mut merges) = (0, 0, 0, 0);
    while done < wanted {
        number += 1;
        let generation = Arc::new(Generation {
            house: Arc::clone(&house),
            tenant: format!("generation-{number}").parse().expect("a tenant"),
            traces: (0..TRACES).map(|_| new_id()).collect(),
            whole: AtomicUsize::new(0),
            cuts: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        });
        let mut readers = JoinSet::new();
        for _ in 0..READERS {
            readers.spawn(reads(Arc::clone(&generation)));
        }
        let on_a_thread = |work: fn(&Generation, u64) -> u64| {
            let generation = Arc::clone(&generation);
            tokio::task::spawn_blocking(move || work(&generation, sequence))
        };
        let merging = on_a_thread(|generation, sequence| {
            generation.merge();
            sequence
        });
        let publishing = on_a_thread(Generation::publish);
        let compaction = compacting.then(|| {
            let generation = Arc::clone(&generation);
            tokio::spawn(async move { generation.compact().await })
        });
        generation.flush().await;
        sequence = publishing.await.expect("publishing goes on");
        generation.stop.store(true, SeqCst);
        merging.await.expect("merging goes on");
        if let Some(compaction) = compaction {
            merges += compaction.await.expect("compaction goes on");
        }
        for reads in readers.join_all().await {
            done += reads?;
        }
        assert_eq!(house.live.totals().spans, 0);
        // Nothing races any more: each trace is whole in blocks.
        for trace in &generation.traces {
            assert_eq!(house.read(&generation.tenant, *trace).await.len(), SPANS as usize);
        }
    }
    assert!(!compacting || merges >= number, "{merges} merges in {number} generations: nothing raced");
    Ok(done)
}

/// A tenth of what one long run makes.
const READS: usize = 100_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_read_sees_a_span_twice_or_not_at_all() {
    let wanted = times("SPANHOUSE_RACE_READS", READS);
    let reads = race(|live| live, wanted, false).await;
    assert!(reads.as_ref().is_ok_and(|reads| *reads >= wanted), "{reads:?}");
}

/// The same while blocks are merged: a read meets a trace in a block, in what replaces it, and never in both.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_read_sees_a_span_twice_or_not_at_all_while_blocks_merge() {
    let wanted = times("SPANHOUSE_RACE_READS", READS);
    let reads = race(|live| live, wanted, true).await;
    assert!(reads.as_ref().is_ok_and(|reads| *reads >= wanted), "{reads:?}");
}

/// The race above must be able to fail: a planted mistake has to be found in as many reads.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_race_sees_spans_twice() {
    let reads = race(|live| Arc::new(NeverCovered(live)), READS, false).await;
    assert!(reads.as_ref().is_err_and(|why| why.contains("twice")), "{reads:?}");
}
