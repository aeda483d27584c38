//! Trace by id from one block in memory, warm: everything it needs is in the cache.
//!
//! `cargo bench -p spanhouse-common`

use std::sync::Arc;

use divan::Bencher;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use spanhouse_common::batch::{ItemAttrs, ResourceEntry, Row, ShapeFinder, SpanBatch, ValueKind};
use spanhouse_common::block::{BlockCache, BlockInput, BlockLocation, BlockOrigin, BlockReader, WriterOptions, write_block};
use spanhouse_common::id::{BlockId, SpanId, TenantId, TraceId};
use spanhouse_common::source::Source;
use spanhouse_common::time::UnixNanos;

const TRACES: u64 = 10_000;
const SPANS: u64 = 10;
const KEYS: u64 = 40;
const KEYS_OF_A_SPAN: u64 = 12;

fn mix(n: u64) -> u64 {
    let n = (n ^ n >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ n >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ n >> 31
}

fn trace_id(trace: u64) -> TraceId {
    TraceId((u128::from(mix(trace + 1)) << 64 | u128::from(trace)).to_be_bytes())
}

/// Traces of ten spans, each span with twelve of forty attributes: some values few, some many, some distinct.
fn batch() -> SpanBatch {
    let mut batch = SpanBatch::default();
    let mut shapes = ShapeFinder::default();
    let keys: Vec<_> = (0..KEYS).map(|n| batch.strings.push(format!("app.key{n}").as_bytes())).collect();
    for service in 0..20 {
        let name = format!("service-{service}");
        let json = format!(r#"{{"attributes":[["service.name","{name}"],["host.name","host-{service}"]]}}"#);
        let (json, service_name) = (batch.strings.push(json.as_bytes()), batch.strings.push(name.as_bytes()));
        batch.resources.push(ResourceEntry { json, service_name });
    }
    let scope = batch.strings.push(br#"{"name":"lib","version":"1"}"#);
    batch.scopes.push(scope);
    for span in 0..TRACES * SPANS {
        let (trace, in_trace) = (span / SPANS, span % SPANS);
        let parent_span_id = if in_trace == 0 { 0 } else { mix(span - 1) };
        let mut shape = Default::default();
        for n in 0..KEYS_OF_A_SPAN {
            let key = (in_trace * 3 + n) % KEYS;
            let distinct = [8, 500, 30_000][key as usize % 3];
            let value = batch.strings.push(format!("value {}", mix(span * KEYS + key) % distinct).as_bytes());
            shape = shapes.with(&mut batch.shapes, shape, keys[key as usize], ValueKind::Str);
            batch.attrs.push(ValueKind::Str, u64::from(value.0));
        }
        let name = batch.strings.push(format!("operation {}", span % 50).as_bytes());
        let start = 1_700_000_000_000_000_000 + trace * 1_000_003 + in_trace * 1000;
        batch.rows.push(Row {
            trace_id: trace_id(trace),
            span_id: SpanId(mix(span).to_be_bytes()),
            parent_span_id: SpanId(parent_span_id.to_be_bytes()),
            start,
            end: start + mix(span) % 1_000_000,
            resource: (span % 20) as u32,
            name,
            kind: 2,
            attrs: ItemAttrs { shape, end: batch.attrs.end() },
            ..Row::default()
        });
    }
    batch
}

async fn open() -> Arc<BlockReader> {
    let origin = BlockOrigin {
        id: BlockId::generate(),
        tenant: TenantId::single(),
        created: UnixNanos(1_700_000_000_000_000_000),
        window: None,
        level: 0,
        wal: Vec::new(),
        inputs: Vec::new(),
        replaces: Vec::new(),
    };
    let input = BlockInput { batches: vec![Arc::new(batch())], rows: vec![None] };
    let block = write_block(&input, origin, WriterOptions::default()).expect("a block");
    let location = BlockLocation {
        parquet: Path::from("spans.parquet"),
        filter: Path::from("trace-ids.filter"),
        bytes: block.parquet.len() as u64,
        tail_bytes: block.tail_bytes,
    };
    let store = Arc::new(InMemory::new());
    store.put(&location.parquet, block.parquet.into()).await.expect("a put");
    store.put(&location.filter, block.filter.into()).await.expect("a put");
    let store: Arc<dyn ObjectStore> = store;
    Arc::new(BlockReader::open(store, BlockCache::new(256 << 20), location).await.expect("an open block"))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("a runtime")
}

#[divan::bench]
fn trace_by_id(bencher: Bencher<'_, '_>) {
    let runtime = runtime();
    let reader = runtime.block_on(open());
    let find = |trace| {
        let found = runtime.block_on(reader.find_trace(trace_id(trace))).expect("an answer");
        assert_eq!(found.spans.len() as u64, SPANS);
        found
    };
    (0..TRACES).step_by(7).for_each(|trace| drop(find(trace)));
    let mut trace = 0;
    bencher.bench_local(|| {
        trace = (trace + 4999) % TRACES;
        find(trace)
    });
}

#[divan::bench]
fn absent_trace(bencher: Bencher<'_, '_>) {
    let runtime = runtime();
    let reader = runtime.block_on(open());
    bencher.bench_local(|| runtime.block_on(reader.find_trace(trace_id(TRACES + 1))).expect("an answer"));
}

fn main() {
    divan::main();
}
