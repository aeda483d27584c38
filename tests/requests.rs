//! What a look-up of a trace asks of the store, with the manifest known and nothing else: the figures that the packs of filters
//! are made for. Real blocks, the compactor's packing, the querier's reads; in one process, over a store that counts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use prost::Message;
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use spanhouse_common::block::{BlockInput, BlockOrigin, WriterOptions, window_of, write_block};
use spanhouse_common::budget::Share;
use spanhouse_common::id::{BlockId, TenantId, TraceId};
use spanhouse_common::manifest::{Change, ManifestStore, Manifests};
use spanhouse_common::source::{LiveReader, LiveView, Snapshots};
use spanhouse_common::store::counting::{Asked, CountingStore, Request};
use spanhouse_common::store::paths::{BlockObject, TenantPaths, block_of, pack_of};
use spanhouse_common::store::tenants::TenantRegistry;
use spanhouse_common::time::{ManualClock, UnixNanos};
use spanhouse_compactor::packs::{Packed, Packer};
use spanhouse_ingester::otlp::walk::{WalkOptions, Walker};
use spanhouse_querier::find_trace::{QueryBounds, TraceQuery, WhichSources, find_trace};
use spanhouse_querier::sources::Sources;

use crate::harness::otlp::{new_id, now, request, span};

const BLOCKS: usize = 200;
/// A block is packed with those that came since the last eight.
const PACKED_EVERY: usize = 8;
/// Few traces make coarse filters: these are enough for the bound on false answers to hold.
const TRACES: usize = 250;
/// One block is as large as blocks of a tenant with 10 million spans in 200.
const LARGE: usize = 77;
const LARGE_TRACES: usize = 5_000;
const SPANS: u64 = 2;
const LARGE_SPANS: u64 = 10;

/// What a look-up may take.
const MAX_FILTER_READS: usize = 2;
const MAX_BLOCK_READS: usize = 1 + 8;
const MAX_BLOCK_BYTES: u64 = 4 << 20;
const ABSENT: usize = 10_000;
const MAX_ABSENT_WITH_READS: usize = ABSENT / 100;

/// The memory of queries by default has this much room for filters, footers and pages.
const CACHE_BYTES: u64 = 128 << 20;

#[derive(Debug)]
struct NothingLive;

impl LiveReader for NothingLive {
    fn live(&self, _: &TenantId) -> LiveView {
        LiveView::default()
    }
}

struct House {
    counting: Arc<CountingStore>,
    manifests: Arc<Manifests>,
    manifest: Arc<ManifestStore>,
    clock: Arc<ManualClock>,
    packer: Packer,
    walker: Walker,
    memory: Share,
    /// Spans of each trace.
    spans: BTreeMap<u128, u64>,
    blocks: Vec<BlockId>,
}

impl House {
    async fn new() -> Self {
        let counting = CountingStore::new(Arc::new(InMemory::new()));
        let (store, clock) = (Arc::clone(&counting) as Arc<dyn ObjectStore>, ManualClock::at(UnixNanos(now())));
        let tenants = TenantRegistry::open(Arc::clone(&store), Arc::clone(&clock) as _, 10).await.expect("tenants");
        let manifests = Arc::new(Manifests::new(store, Arc::clone(&clock) as _, tenants));
        let manifest = manifests.for_writing(&TenantId::single()).await.expect("a manifest");
        let (packer, walker, memory) = (Packer::default(), Walker::default(), Share::new("query", 512 << 20));
        Self { counting, manifests, manifest, clock, packer, walker, memory, spans: BTreeMap::new(), blocks: Vec::new() }
    }

    /// A block of so many traces, with pieces of `others` among them.
    async fn block(&mut self, traces: usize, spans: u64, others: &[u128]) {
        let traces: Vec<u128> = (0..traces).map(|_| new_id()).chain(others.iter().copied()).collect();
        let mut batches = Vec::new();
        for some in traces.chunks(500) {
            let mut all = Vec::new();
            for trace in some {
                // Each block has other spans of a trace.
                let known = self.spans.entry(*trace).or_default();
                all.extend((*known + 1..=*known + spans).map(|n| span(*trace, n)));
                *known += spans;
            }
            let body = request(all).encode_to_vec();
            batches.push(Arc::new(self.walker.walk(&body, WalkOptions::default()).expect("a valid request").batch));
        }
        let start = UnixNanos(now());
        let origin = BlockOrigin {
            id: BlockId::generate(),
            tenant: TenantId::single(),
            created: start,
            window: Some(window_of(start, 86_400)),
            level: 0,
            wal: Vec::new(),
            inputs: Vec::new(),
            replaces: Vec::new(),
        };
        let rows = vec![None; batches.len()];
        let block = write_block(&BlockInput { batches, rows }, origin, WriterOptions::default()).expect("a block");
        let (id, paths) = (block.meta.origin.id, TenantPaths::new(&TenantId::single()));
        let entry = block.meta.entry_of(&block.parquet, block.tail_bytes, block.filter.len() as u64);
        for (object, bytes) in [(BlockObject::Spans, block.parquet), (BlockObject::Filter, block.filter)] {
            self.counting.put(&paths.block(id, object), bytes.into()).await.expect("room");
        }
        self.manifest.commit(Change { add: vec![entry], ..Change::default() }).await.expect("a commit");
        self.blocks.push(id);
    }

    async fn pack(&mut self) -> Packed {
        let (mut done, store) = (Packed::default(), Arc::clone(&self.counting) as Arc<dyn ObjectStore>);
        self.packer.pack(&store, &self.manifest, self.clock.as_ref(), &mut done).await.expect("a healthy store");
        done
    }

    /// A querier that has cached nothing, and knows the manifest.
    fn cold(&self) -> Sources {
        self.counting.take();
        Sources::new(Arc::new(NothingLive), Arc::clone(&self.manifests), Arc::clone(&self.clock) as _, CACHE_BYTES)
    }

    /// How many spans of the trace are found, and what that took.
    async fn look_up(&self, sources: &Sources, trace: u128) -> (u64, Vec<Request>) {
        let query = TraceQuery {
            tenants: vec![TenantId::single()],
            id: TraceId(trace.to_be_bytes()),
            hint: None,
            sources: WhichSources::All,
        };
        let snapshots: &dyn Snapshots = sources;
        let found = find_trace(snapshots, &self.memory, &query, QueryBounds::default()).await.expect("an answer");
        assert!(found.damage.is_empty(), "{:?}", found.damage);
        (found.pieces.iter().map(|piece| piece.len() as u64).sum(), self.counting.take())
    }

    /// Checks a look-up with nothing cached. Returns how many reads of filters it took.
    async fn check_cold(&self, trace: u128, holders: &[BlockId]) -> usize {
        let (spans, seen) = self.look_up(&self.cold(), trace).await;
        assert_eq!(spans, self.spans.get(&trace).copied().unwrap_or(0));
        assert!(seen.iter().all(|request| request.asked == Asked::Get), "{seen:?}");
        let is_spans = |key: &Path| block_of(key).filter(|(_, object)| *object == BlockObject::Spans).map(|(id, _)| id);
        let (of_blocks, of_filters): (Vec<_>, Vec<_>) = seen.iter().partition(|r| is_spans(&r.key).is_some());
        assert!(of_filters.iter().all(|r| pack_of(&r.key).is_some()), "{of_filters:?}");
        let mut reads: BTreeMap<BlockId, (usize, u64)> = BTreeMap::new();
        for (id, bytes) in of_blocks.iter().filter_map(|r| Some((is_spans(&r.key)?, r.bytes))) {
            let (count, sum) = reads.entry(id).or_default();
            (*count, *sum) = (*count + 1, *sum + bytes);
        }
        // A filter may be wrong now and then; where it is, a look at the block's trace ids tells.
        assert!(reads.len() <= holders.len() + 1 && holders.iter().all(|id| reads.contains_key(id)), "{reads:?}");
        println!("{} reads of filters, of blocks (reads, bytes): {:?}", of_filters.len(), reads.values());
        for (id, (count, bytes)) in &reads {
            assert!(*count <= MAX_BLOCK_READS && *bytes <= MAX_BLOCK_BYTES, "block {id}: {count} reads, {bytes} bytes");
        }
        of_filters.len()
    }
}

#[tokio::test]
async fn a_look_up_takes_the_reads_it_is_said_to_take() {
    let mut house = House::new().await;
    let everywhere: Vec<u128> = (0..3).map(|_| new_id()).collect();
    let places = [5, LARGE, 150, BLOCKS - 1];
    for number in 0..BLOCKS {
        let others = if places.contains(&number) { everywhere.as_slice() } else { &[] };
        match number {
            LARGE => house.block(LARGE_TRACES, LARGE_SPANS, others).await,
            _ => house.block(TRACES, SPANS, others).await,
        }
        if (number + 1) % PACKED_EVERY == 0 {
            house.pack().await;
        }
    }
    let holders: Vec<BlockId> = places.iter().map(|at| house.blocks[*at]).collect();
    let mut rng = SmallRng::seed_from_u64(7);
    let mut absent = || rng.random::<u128>();

    // As packs are while blocks keep coming, and then as they are when the tenant is quiet.
    for quiet in [false, true] {
        if quiet {
            house.clock.advance(Duration::from_secs(20 * 60));
            let packed = house.pack().await;
            assert!(packed.packs <= 1, "{packed:?}");
            assert_eq!(house.pack().await, Packed::default());
        }
        let allowed = if quiet { 1 } else { MAX_FILTER_READS };
        for trace in [absent(), absent(), absent()] {
            let reads = house.check_cold(trace, &[]).await;
            assert!(reads <= allowed, "{reads} reads of filters");
        }
        for trace in &everywhere {
            let reads = house.check_cold(*trace, &holders).await;
            assert!(reads <= allowed, "{reads} reads of filters");
        }
    }

    let sources = house.cold();
    house.look_up(&sources, absent()).await;
    let mut with_reads = 0;
    for _ in 0..ABSENT {
        let (spans, seen) = house.look_up(&sources, absent()).await;
        assert_eq!(spans, 0);
        with_reads += usize::from(!seen.is_empty());
    }
    println!("{with_reads} of {ABSENT} look-ups of absent traces read something");
    assert!(with_reads <= MAX_ABSENT_WITH_READS, "{with_reads} of {ABSENT} look-ups of absent traces read something");
}
