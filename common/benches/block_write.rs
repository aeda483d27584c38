//! Writing a block, by stage: ordering the rows, everything after it (columns, pages, footer), and the whole. Items are spans.
//!
//! 200,000 spans of a shop in batches of 2,000, as a flush gets them: the spans of a trace lie in several batches.

use std::sync::{Arc, LazyLock};

use divan::Bencher;
use divan::counter::ItemsCount;
use spanhouse_common::batch::{Interner, ItemAttrs, ResourceEntry, Row, Shape, ShapeFinder, SpanBatch, Sym, ValueKind};
use spanhouse_common::block::{BlockInput, BlockOrigin, WriterOptions, stages, write_block};
use spanhouse_common::id::{BlockId, SpanId, TenantId, TraceId};
use spanhouse_common::time::UnixNanos;

const SPANS: usize = 200_000;
const A_BATCH: usize = 2_000;
const A_TRACE: u64 = 25;

fn main() {
    divan::main();
}

/// A number that looks random and is the same in every run.
fn mix(n: u64) -> u64 {
    let mixed = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed ^ (mixed >> 31)
}

struct Filler {
    batch: SpanBatch,
    interner: Interner,
    shapes: ShapeFinder,
    /// Of the span being filled.
    shape: Shape,
}

impl Filler {
    fn text(&mut self, text: &str) -> Sym {
        let Ok(sym) =
            self.interner.intern(&mut self.batch.strings, text.as_bytes(), |_| Ok::<(), std::convert::Infallible>(()));
        sym
    }

    fn say(&mut self, key: &str, value: &str) {
        let value = self.text(value);
        self.add(key, ValueKind::Str, u64::from(value.0));
    }

    fn add(&mut self, key: &str, kind: ValueKind, bits: u64) {
        let key = self.text(key);
        self.shape = self.shapes.with(&mut self.batch.shapes, self.shape, key, kind);
        self.batch.attrs.push(kind, bits);
    }

    fn count(&mut self, key: &str, value: u64) {
        self.add(key, ValueKind::Int, value);
    }

    fn span(&mut self, number: u64) {
        // Traces overlap: neighbours belong to different ones.
        let (trace, n) = (number % 64 + number / (64 * A_TRACE) * 64, number / 64 % A_TRACE);
        let id = |n: u64| mix(trace * A_TRACE + n) | 1;
        let dice = mix(number.wrapping_mul(77));
        let start = 1_790_000_000_000_000_000 + number * 50_000 + dice % 1_000_000;
        match n % 3 {
            0 => {
                self.say("http.request.method", ["GET", "POST"][(dice % 2) as usize]);
                self.say("http.route", &format!("/api/v1/orders/{}", dice % 12));
                self.say("url.path", &format!("/api/v1/orders/{:08x}", dice as u32));
                self.count("http.response.status_code", 200);
                self.say("user.id", &format!("user-{:05}", dice % 20_000));
            }
            1 => {
                self.say("db.system.name", "postgresql");
                self.say("db.query.text", &format!("SELECT * FROM orders_{} WHERE id = $1", dice % 9));
                self.count("db.response.returned_rows", dice % 200);
                self.say("server.address", "db-1.shop.svc");
            }
            _ => {
                self.say("rpc.system", "grpc");
                self.say("rpc.method", ["Get", "Add", "Empty"][(dice % 3) as usize]);
                self.count("network.peer.port", 30_000 + dice % 20_000);
                self.say("network.peer.address", &format!("10.0.{}.{}", dice % 4, dice % 250));
            }
        }
        let name = self.text(["GET /api/v1/orders/{id}", "SELECT orders", "shop.Cart/Get"][n as usize % 3]);
        let [high, low] = [mix(trace), mix(trace + 1) | 1].map(u64::to_be_bytes);
        let mut trace_id = [0; 16];
        trace_id[..8].copy_from_slice(&high);
        trace_id[8..].copy_from_slice(&low);
        let attrs = ItemAttrs { shape: std::mem::take(&mut self.shape), end: self.batch.attrs.end() };
        self.batch.rows.push(Row {
            trace_id: TraceId(trace_id),
            span_id: SpanId(id(n).to_be_bytes()),
            parent_span_id: if n == 0 { SpanId::default() } else { SpanId(id((n - 1) / 2).to_be_bytes()) },
            name,
            kind: [2, 3, 3][n as usize % 3],
            start,
            end: start + dice % 50_000_000,
            resource: (n % 8) as u32,
            attrs,
            ..Row::default()
        });
    }
}

fn batch(first: usize) -> Arc<SpanBatch> {
    let mut filler = Filler {
        batch: SpanBatch::default(),
        interner: Interner::default(),
        shapes: ShapeFinder::default(),
        shape: Shape::EMPTY,
    };
    for service in 0..8 {
        let service_name = filler.text(&format!("service-{service}"));
        let json = filler.text(&format!(r#"{{"service.name":"service-{service}"}}"#));
        filler.batch.resources.push(ResourceEntry { json, service_name });
    }
    let scope = filler.text("{}");
    filler.batch.scopes.push(scope);
    (first..first + A_BATCH).for_each(|number| filler.span(number as u64));
    Arc::new(filler.batch)
}

static INPUT: LazyLock<BlockInput> = LazyLock::new(|| {
    let batches: Vec<Arc<SpanBatch>> = (0..SPANS).step_by(A_BATCH).map(batch).collect();
    BlockInput { rows: vec![None; batches.len()], batches }
});

fn origin() -> BlockOrigin {
    BlockOrigin {
        id: BlockId::generate(),
        tenant: TenantId::single(),
        created: UnixNanos(1_790_000_000_000_000_000),
        window: None,
        level: 0,
        wal: Vec::new(),
        inputs: Vec::new(),
        replaces: Vec::new(),
    }
}

#[divan::bench(sample_count = 10)]
fn order(bencher: Bencher<'_, '_>) {
    let input = &*INPUT;
    bencher.counter(ItemsCount::new(SPANS)).bench_local(|| stages::order(input));
}

#[divan::bench(sample_count = 10)]
fn columns_and_pages(bencher: Bencher<'_, '_>) {
    let input = &*INPUT;
    let mut ordered = stages::order(input).expect("an order");
    bencher.counter(ItemsCount::new(SPANS)).bench_local(|| stages::write(&mut ordered, origin(), WriterOptions::default()));
}

#[divan::bench(sample_count = 10)]
fn whole_block(bencher: Bencher<'_, '_>) {
    let input = &*INPUT;
    bencher.counter(ItemsCount::new(SPANS)).bench_local(|| write_block(input, origin(), WriterOptions::default()));
}
