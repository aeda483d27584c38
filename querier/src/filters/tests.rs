use object_store::memory::InMemory;
use object_store::{ObjectStoreExt, PutPayload};
use spanhouse_common::batch::SpanBatch;
use spanhouse_common::block::filter_pack::encode_pack;
use spanhouse_common::block::{BlockInput, BlockOrigin, WriterOptions, window_of, write_block};
use spanhouse_common::manifest::{Change, ManifestStore, Manifests};
use spanhouse_common::model::Span;
use spanhouse_common::source::{LiveReader, LiveView, Snapshots};
use spanhouse_common::store::counting::{Asked, CountingStore, Request};
use spanhouse_common::store::paths::{BlockObject, TenantPaths, pack_of};
use spanhouse_common::store::{TenantRegistry, paths};
use spanhouse_common::time::{ManualClock, UnixNanos};

use super::*;
use crate::sources::Sources;
use crate::test_util::{span, stored};

const START: u64 = 1_700_000_000_000_000_000;
const ROOM: u64 = 32 << 20;

#[derive(Debug)]
struct NothingLive;

impl LiveReader for NothingLive {
    fn live(&self, _: &TenantId) -> LiveView {
        LiveView::default()
    }
}

/// The n-th trace, somewhere among all ids. Filters of ten are coarse: these ids are taken for no other block's.
fn id(n: u64) -> TraceId {
    TraceId(u128::from(n + 9000).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835).to_be_bytes())
}

/// Blocks of ten traces each: block `b` has the traces `10 b` to `10 b + 9`.
struct House {
    counting: Arc<CountingStore>,
    manifests: Arc<Manifests>,
    manifest: Arc<ManifestStore>,
    clock: Arc<ManualClock>,
    blocks: Vec<(BlockId, Bytes)>,
}

impl House {
    async fn new(blocks: u64) -> Self {
        let counting = CountingStore::new(Arc::new(InMemory::new()));
        let (store, clock) = (Arc::clone(&counting) as Arc<dyn ObjectStore>, ManualClock::at(UnixNanos(START)));
        let tenants = TenantRegistry::open(Arc::clone(&store), Arc::clone(&clock) as _, 10).await.unwrap();
        let manifests = Arc::new(Manifests::new(store, Arc::clone(&clock) as _, tenants));
        let manifest = manifests.for_writing(&TenantId::single()).await.unwrap();
        let mut house = Self { counting, manifests, manifest, clock, blocks: Vec::new() };
        for number in 0..blocks {
            house.block(number).await;
        }
        house
    }

    async fn block(&mut self, number: u64) {
        let spans = (0..10).map(|n| {
            let of_trace = span(number * 10 + n, 2, START);
            stored(Span { trace_id: id(number * 10 + n), ..of_trace })
        });
        let batches = vec![Arc::new(SpanBatch::of_spans(&spans.collect::<Vec<_>>()))];
        let origin = BlockOrigin {
            id: BlockId::generate(),
            tenant: TenantId::single(),
            created: UnixNanos(START),
            window: Some(window_of(UnixNanos(START), 86_400)),
            level: 0,
            wal: Vec::new(),
            inputs: Vec::new(),
            replaces: Vec::new(),
        };
        let block = write_block(&BlockInput { batches, rows: vec![None] }, origin, WriterOptions::default()).unwrap();
        let (id, paths) = (block.meta.origin.id, TenantPaths::new(&TenantId::single()));
        let mut entry = block.meta.entry_of(&block.parquet, block.tail_bytes, block.filter.len() as u64);
        // As wide as in blocks of many traces.
        (entry.min_trace_id, entry.max_trace_id) = (TraceId([0; 16]), TraceId([0xff; 16]));
        self.counting.put(&paths.block(id, BlockObject::Spans), block.parquet.into()).await.unwrap();
        self.counting.put(&paths.block(id, BlockObject::Filter), block.filter.clone().into()).await.unwrap();
        self.manifest.commit(Change { add: vec![entry], ..Change::default() }).await.unwrap();
        self.blocks.push((id, block.filter));
    }

    /// Packs the filters of some blocks.
    async fn pack(&self, blocks: std::ops::Range<usize>) -> PackId {
        let (pack, object) = encode_pack(&TenantId::single(), PackId::generate(), &self.blocks[blocks]).unwrap();
        let key = TenantPaths::new(&TenantId::single()).filter_pack(pack.id);
        self.counting.put(&key, object.into()).await.unwrap();
        let id = pack.id;
        self.manifest.commit(Change { add_packs: vec![pack], ..Change::default() }).await.unwrap();
        id
    }

    /// A process that has cached nothing yet.
    fn sources(&self, room: u64) -> Arc<Sources> {
        self.counting.take();
        let (manifests, clock) = (Arc::clone(&self.manifests), Arc::clone(&self.clock) as _);
        // A sixth of it is for filters.
        Arc::new(Sources::new(Arc::new(NothingLive), manifests, clock, room * 6))
    }

    /// Numbers of the blocks that may hold a trace.
    async fn holders(&self, sources: &Sources, id: TraceId) -> Vec<usize> {
        let answers = self.answers(sources, id).await;
        answers.into_iter().enumerate().filter(|(_, may)| *may.as_ref().unwrap()).map(|(at, _)| at).collect()
    }

    async fn answers(&self, sources: &Sources, id: TraceId) -> Vec<Answer> {
        let snapshot = sources.snapshot(&TenantId::single()).await.unwrap();
        let mut order: Vec<usize> = (0..self.blocks.len()).collect();
        // Sources come in order of the blocks' ids, which are made within a millisecond.
        order.sort_by_key(|at| snapshot.sources.iter().position(|s| s.name() == self.blocks[*at].0.to_string()));
        let asked: Vec<usize> = (0..snapshot.sources.len()).collect();
        let answers = snapshot.may_hold(id, &asked).await;
        let mut of_block = vec![Ok(false); self.blocks.len()];
        for (at, answer) in order.into_iter().zip(answers) {
            of_block[at] = answer;
        }
        of_block
    }

    /// Reads of packs and of single filters since the last look; anything else is a mistake.
    fn reads(&self) -> (usize, usize) {
        let seen = self.counting.take();
        let is = |request: &&Request| request.asked == Asked::Get && pack_of(&request.key).is_some();
        let single = |request: &&Request| matches!(paths::block_of(&request.key), Some((_, BlockObject::Filter)));
        let (packs, singles) = (seen.iter().filter(is).count(), seen.iter().filter(single).count());
        assert_eq!(packs + singles, seen.len(), "{seen:?}");
        (packs, singles)
    }

    async fn spoil(&self, pack: PackId) {
        let key = TenantPaths::new(&TenantId::single()).filter_pack(pack);
        let mut bytes = self.counting.get(&key).await.unwrap().bytes().await.unwrap().to_vec();
        bytes[40] ^= 1;
        self.counting.put(&key, PutPayload::from(bytes)).await.unwrap();
    }
}

#[tokio::test]
async fn a_pack_is_read_once_and_its_filters_kept() {
    let house = House::new(12).await;
    house.pack(0..6).await;
    house.pack(6..11).await;
    let sources = house.sources(ROOM);
    assert_eq!(house.holders(&sources, id(999)).await, [0; 0]);
    assert_eq!(house.reads(), (2, 1));
    for n in 0..120 {
        assert_eq!(house.holders(&sources, id(n)).await, [n as usize / 10]);
    }
    assert_eq!(house.reads(), (0, 0));
}

#[tokio::test]
async fn who_misses_a_pack_at_the_same_time_waits_for_one_read() {
    let house = House::new(20).await;
    house.pack(0..20).await;
    let sources = house.sources(ROOM);
    let looks = (0..100).map(|n| house.holders(&sources, id(n * 2)));
    let found = futures::future::join_all(looks).await;
    for (n, holders) in found.iter().enumerate() {
        assert_eq!(*holders, [n * 2 / 10], "trace {}", n * 2);
    }
    assert_eq!(house.reads(), (1, 0));
}

#[tokio::test]
async fn blocks_that_cannot_hold_the_id_are_not_asked_for() {
    let house = House::new(12).await;
    house.pack(0..6).await;
    let sources = house.sources(ROOM);
    let snapshot = sources.snapshot(&TenantId::single()).await.unwrap();
    assert!(snapshot.may_hold(id(0), &[]).await.is_empty());
    assert_eq!(house.reads(), (0, 0));
}

#[tokio::test]
async fn a_pack_of_no_use_is_gone_around_and_counted() {
    for lost in [false, true] {
        let house = House::new(8).await;
        let pack = house.pack(0..8).await;
        if lost {
            house.counting.delete(&TenantPaths::new(&TenantId::single()).filter_pack(pack)).await.unwrap();
        } else {
            house.spoil(pack).await;
        }
        let sources = house.sources(ROOM);
        let looks = (0..10).map(|n| house.holders(&sources, id(n)));
        assert!(futures::future::join_all(looks).await.iter().all(|holders| *holders == [0]));
        let (packs, singles) = house.reads();
        assert!(packs == 1 && singles >= 8, "{packs} {singles}");
        assert_eq!(sources.filter_metrics().spoiled_packs(), 1);
        assert_eq!(house.holders(&sources, id(75)).await, [7]);
        assert_eq!(house.reads(), (0, 0), "single filters are kept too");
    }
}

#[tokio::test]
async fn a_block_whose_filters_are_both_lost_cannot_be_judged_and_the_others_can() {
    let house = House::new(8).await;
    let pack = house.pack(0..8).await;
    house.spoil(pack).await;
    let filter = TenantPaths::new(&TenantId::single()).block(house.blocks[3].0, BlockObject::Filter);
    house.counting.delete(&filter).await.unwrap();
    let sources = house.sources(ROOM);
    let answers = house.answers(&sources, id(55)).await;
    assert!(matches!(&answers[3], Err(SourceError::Gone { .. })), "{answers:?}");
    assert!(answers.iter().enumerate().all(|(at, may)| at == 3 || *may.as_ref().unwrap() == (at == 5)), "{answers:?}");
}

#[tokio::test]
async fn where_a_pack_does_not_fit_only_what_is_needed_is_read() {
    let house = House::new(40).await;
    house.pack(0..40).await;
    // Room for a few filters: the pack is larger.
    let sources = house.sources(2_000);
    for n in [5, 155, 398, 999] {
        let expected: Vec<usize> = (n < 400).then_some(n as usize / 10).into_iter().collect();
        assert_eq!(house.holders(&sources, id(n)).await, expected);
        let (packs, singles) = house.reads();
        assert!(packs <= 4 && singles == 0, "{packs} {singles}");
    }
}

#[tokio::test]
async fn of_a_pack_that_is_mostly_kept_the_rest_is_read() {
    let house = House::new(20).await;
    house.pack(0..12).await;
    let sources = house.sources(ROOM);
    house.holders(&sources, id(0)).await;
    assert_eq!(house.reads(), (1, 8));
    // Packed anew with others meanwhile, and one block more.
    let mut house = house;
    house.block(20).await;
    let old = *house.manifest.current().packs.keys().next().unwrap();
    house.manifest.commit(Change { remove_packs: vec![old], ..Change::default() }).await.unwrap();
    house.pack(0..21).await;
    house.counting.take();
    assert_eq!(house.holders(&sources, id(205)).await, [20]);
    let seen = house.counting.take();
    assert!(seen.len() == 1 && seen[0].bytes == house.blocks[20].1.len() as u64, "{seen:?}");
}

#[tokio::test]
async fn a_search_opens_blocks_without_their_filters() {
    let house = House::new(5).await;
    let sources = house.sources(ROOM);
    let snapshot = sources.snapshot(&TenantId::single()).await.unwrap();
    for source in &snapshot.sources {
        source.open().await.unwrap();
    }
    let seen = house.counting.take();
    let footers = seen.iter().filter(|r| matches!(paths::block_of(&r.key), Some((_, BlockObject::Spans)))).count();
    assert_eq!((footers, seen.len()), (5, 5), "{seen:?}");
}
