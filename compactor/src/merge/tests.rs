//! Merges of real blocks over stores that misbehave.

use std::collections::BTreeSet;

use object_store::memory::InMemory;
use object_store::{ObjectStoreExt, PutPayload};
use spanhouse_common::batch::SpanBatch;
use spanhouse_common::block::{BlockCache, BlockInput, BlockLocation, BlockReader, WriterOptions, write_block};
use spanhouse_common::id::{SpanId, TenantId};
use spanhouse_common::manifest::{ManifestSettings, Tombstone};
use spanhouse_common::model::{Span, StoredSpan};
use spanhouse_common::store::faults::{FaultConfig, FaultyStore};
use spanhouse_common::time::ManualClock;

use super::*;
use crate::merging::{MergeLimits, Merging, Turn};
use crate::metrics::{CompactorMetrics, JobOutcome};
use crate::policy::PolicyConfig;
use crate::testing::START;

struct House {
    inner: Arc<InMemory>,
    store: Arc<FaultyStore>,
    manifest: ManifestStore,
    merger: Merger,
}

fn span(trace: u8, number: u64) -> StoredSpan {
    let span = Span {
        trace_id: TraceId([trace; 16]),
        span_id: SpanId(number.to_be_bytes()),
        start_unix_nano: START.0 + number,
        end_unix_nano: START.0 + number + 5,
        name: format!("n{number}"),
        ..Span::default()
    };
    StoredSpan { span, resource: Arc::default(), scope: Arc::default(), maybe_duplicate: false }
}

impl House {
    async fn new(seed: u64) -> Self {
        let inner = Arc::new(InMemory::new());
        let store = Arc::new(FaultyStore::new(Arc::clone(&inner) as _, FaultConfig::default(), seed));
        Self::over(inner, store).await
    }

    async fn over(inner: Arc<InMemory>, store: Arc<FaultyStore>) -> Self {
        let clock: Arc<dyn Clock> = ManualClock::at(START);
        let open = || {
            let (store, clock) = (Arc::clone(&store) as _, Arc::clone(&clock));
            ManifestStore::open_or_create(store, TenantId::single(), clock, ManifestSettings::default())
        };
        let manifest = loop {
            if let Ok(manifest) = open().await {
                break manifest;
            }
        };
        let merger = Merger {
            store: Arc::clone(&store) as _,
            clock: Arc::clone(&clock),
            memory: Share::new("compaction", MERGE_BYTES),
            spool_dir: std::env::temp_dir(),
        };
        Self { inner, store, manifest, merger }
    }

    /// A second process on the same objects, with weather of its own.
    async fn beside(&self, config: FaultConfig, seed: u64) -> Self {
        let store = Arc::new(FaultyStore::new(Arc::clone(&self.inner) as _, config, seed));
        Self::over(Arc::clone(&self.inner), store).await
    }

    async fn add(&self, spans: &[StoredSpan]) -> Arc<BlockEntry> {
        let origin = BlockOrigin {
            id: BlockId::generate(),
            tenant: TenantId::single(),
            created: START,
            window: Some(Window { start: START.as_seconds() / 900 * 900, length: 900 }),
            level: 0,
            wal: Vec::new(),
            inputs: Vec::new(),
            replaces: Vec::new(),
        };
        let input = BlockInput { batches: vec![Arc::new(SpanBatch::of_spans(spans))], rows: vec![None] };
        let block = write_block(&input, origin, WriterOptions::default()).unwrap();
        let (id, paths) = (block.meta.origin.id, TenantPaths::new(&TenantId::single()));
        let put = async |object, bytes: bytes::Bytes| {
            self.inner.put(&paths.block(id, object), PutPayload::from(bytes)).await.unwrap();
        };
        put(BlockObject::Filter, block.filter.clone()).await;
        put(BlockObject::Spans, block.parquet.clone()).await;
        let entry = block.meta.entry_of(&block.parquet, block.tail_bytes, block.filter.len() as u64);
        self.manifest.commit(Change { add: vec![entry.clone()], ..Change::default() }).await.unwrap();
        Arc::new(entry)
    }

    async fn blocks(&self, count: u64) -> Vec<Arc<BlockEntry>> {
        let mut out = Vec::new();
        for n in 0..count {
            let spans: Vec<StoredSpan> = (0..20).map(|s| span(1 + (s % 7) as u8, n * 20 + s)).collect();
            out.push(self.add(&spans).await);
        }
        out
    }

    async fn run(&self, inputs: &[Arc<BlockEntry>], leave_out: LeaveOut) -> Result<Done, TaskError> {
        let task = Task { window: inputs[0].window, level: 1, inputs: inputs.to_vec() };
        self.merger.run(&self.manifest, &task, leave_out, &Arc::default()).await
    }

    /// Ids of all spans in all blocks, in order.
    async fn spans(&self) -> Vec<u64> {
        let state = self.manifest.refresh().await.unwrap();
        let mut out = Vec::new();
        for entry in state.blocks.values() {
            let location = BlockLocation::of(&TenantId::single(), entry);
            let store: Arc<dyn ObjectStore> = Arc::clone(&self.inner) as _;
            let reader = Arc::new(BlockReader::open(store, BlockCache::new(1 << 20), location).await.unwrap());
            let spans = reader.all_spans().await.unwrap();
            out.extend(spans.iter().map(|stored| u64::from_be_bytes(stored.span.span_id.0)));
        }
        out.sort_unstable();
        out
    }
}

#[tokio::test]
async fn a_merge_takes_the_place_of_its_inputs() {
    let house = House::new(1).await;
    let blocks = house.blocks(4).await;
    let before = house.spans().await;
    let done = house.run(&blocks, LeaveOut::default()).await.unwrap();
    assert_eq!((done.rows_in, done.rows_out, house.spans().await), (80, 80, before));
    let state = house.manifest.current();
    let [entry] = state.blocks.values().collect::<Vec<_>>()[..] else { panic!("{:?}", state.blocks) };
    assert_eq!((Some(entry.id), entry.level), (done.output, 1));
    let inputs: BTreeSet<BlockId> = blocks.iter().map(|block| block.id).collect();
    assert_eq!(entry.replaces.iter().copied().collect::<BTreeSet<_>>(), inputs);
    // The same job again, as a compactor that slept would run it.
    assert!(matches!(house.run(&blocks, LeaveOut::default()).await, Err(TaskError::Overtaken { .. })));
    assert_eq!(house.manifest.current().blocks.len(), 1);
}

#[tokio::test]
async fn what_is_left_out_is_gone_and_an_empty_output_is_none() {
    let house = House::new(1).await;
    let blocks = house.blocks(2).await;
    let some = LeaveOut { traces: Arc::new(HashSet::from([TraceId([1; 16])])), ..LeaveOut::default() };
    let done = house.run(&blocks, some).await.unwrap();
    assert_eq!((done.dropped, done.rows_out, house.spans().await.len()), (6, 34, 34));
    let rest = house.manifest.current().blocks.values().cloned().collect::<Vec<_>>();
    let all = LeaveOut { traces: Arc::new((1..=7).map(|n| TraceId([n; 16])).collect()), ..LeaveOut::default() };
    let done = house.run(&rest, all).await.unwrap();
    assert_eq!((done.output, done.rows_out), (None, 0));
    assert!(house.manifest.current().blocks.is_empty());
}

#[tokio::test]
async fn damage_is_named_and_changes_nothing() {
    let house = House::new(1).await;
    let blocks = house.blocks(3).await;
    let key = TenantPaths::new(&TenantId::single()).block(blocks[1].id, BlockObject::Spans);
    let mut bytes = house.inner.get(&key).await.unwrap().bytes().await.unwrap().to_vec();
    bytes[100] ^= 1;
    house.inner.put(&key, PutPayload::from(bytes)).await.unwrap();
    let error = house.run(&blocks, LeaveOut::default()).await.unwrap_err();
    assert!(matches!(error, TaskError::Damaged { block, .. } if block == blocks[1].id), "{error}");
    assert_eq!(house.manifest.current().blocks.len(), 3);
    let others = [Arc::clone(&blocks[0]), Arc::clone(&blocks[2])];
    assert_eq!(house.run(&others, LeaveOut::default()).await.unwrap().rows_out, 40);
    house.inner.delete(&key).await.unwrap();
    let error = house.run(&blocks[1..2], LeaveOut::default()).await.unwrap_err();
    assert!(matches!(error, TaskError::Damaged { .. }), "{error}");
}

/// A whole turn: damage is left alone and named, the rest merges, and a block with a deleted trace is written anew at its level.
#[tokio::test]
async fn a_turn_leaves_damage_alone_and_rewrites_for_deletions() {
    let house = House::new(1).await;
    let blocks = house.blocks(5).await;
    let key = TenantPaths::new(&TenantId::single()).block(blocks[2].id, BlockObject::Spans);
    let mut bytes = house.inner.get(&key).await.unwrap().bytes().await.unwrap().to_vec();
    bytes[100] ^= 1;
    house.inner.put(&key, PutPayload::from(bytes)).await.unwrap();
    let limits = MergeLimits {
        retention: Duration::from_secs(14 * 86_400),
        policy: PolicyConfig { fan_in: 4, ..PolicyConfig::default() },
        most: 10,
        rewrite_after: Duration::ZERO,
    };
    let (mut merging, metrics) = (Merging::default(), CompactorMetrics::default());
    let turn = merging.turn(&house.merger, &house.manifest, &limits, &metrics, |_, _, _| {}).await.unwrap();
    assert_eq!(turn, Turn { merges: 1, has_more: false });
    assert_eq!(merging.quarantined().keys().collect::<Vec<_>>(), [&blocks[2].id]);
    let outcomes = [JobOutcome::Merged, JobOutcome::Damaged, JobOutcome::Rewritten].map(|outcome| metrics.jobs(outcome));
    assert_eq!(outcomes, [1, 1, 0]);

    let stone = |n: u8| Tombstone { trace_id: TraceId([n; 16]), deleted_at: UnixNanos(START.0 - 1) };
    // Two of the seven traces, three spans of each in every block.
    let bury = Change { bury: vec![stone(2), stone(3)], ..Change::default() };
    house.manifest.commit(bury).await.unwrap();
    let before = house.manifest.current();
    let level = before.blocks.values().find(|entry| entry.level == 1).map(Arc::clone).unwrap();
    let turn = merging.turn(&house.merger, &house.manifest, &limits, &metrics, |_, _, _| {}).await.unwrap();
    assert_eq!((turn.merges, metrics.jobs(JobOutcome::Rewritten)), (1, 1));
    let state = house.manifest.current();
    let anew = state.blocks.values().find(|entry| entry.id != blocks[2].id).unwrap();
    assert_eq!((anew.level, anew.rows, anew.replaces.clone()), (1, level.rows - 4 * 6, vec![level.id]));
    // Looked through once, it is not looked at again.
    let turn = merging.turn(&house.merger, &house.manifest, &limits, &metrics, |_, _, _| {}).await.unwrap();
    assert_eq!(turn, Turn::default());
}

/// Two compactors at the same blocks, each with its own weather: one output at most, no span lost or doubled.
#[tokio::test(start_paused = true)]
async fn racing_compactors_over_bad_stores_lose_nothing() {
    let seeds = std::env::var("SPANHOUSE_SEED").map_or(0..60, |seed| {
        let seed: u64 = seed.parse().unwrap();
        seed..seed + 1
    });
    let (mut merged, mut failed) = (0, 0);
    for seed in seeds {
        let house = House::new(seed).await;
        let blocks = house.blocks(5).await;
        let expected = house.spans().await;
        let weather = [0.0, 0.02, 0.08, 0.2][seed as usize % 4];
        let (a, b) = tokio::join!(
            house.beside(FaultConfig::chaos(weather), seed * 2 + 1),
            house.beside(FaultConfig::chaos(weather), seed * 2 + 2),
        );
        let (results, others) = tokio::join!(a.run(&blocks, LeaveOut::default()), b.run(&blocks[..4], LeaveOut::default()));
        for result in [results, others] {
            match result {
                Ok(_) => merged += 1,
                // Replies that are cut short again and again look like damage.
                Err(_) => failed += 1,
            }
        }
        tokio::time::sleep(Duration::from_secs(10)).await;
        house.store.set(FaultConfig::default());
        assert_eq!(house.spans().await, expected, "SPANHOUSE_SEED={seed}");
    }
    assert!(merged > 20 && failed > 20, "{merged} merged, {failed} failed");
}
