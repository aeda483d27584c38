//! Sources held in memory, which fail when told to, small traces, and an engine that answers what it was given.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use async_trait::async_trait;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use parking_lot::Mutex;
use spanhouse_common::batch::SpanBatch;
use spanhouse_common::block::{
    BlockCache, BlockInput, BlockLocation, BlockOrigin, BlockReader, WriterOptions, window_of, write_block,
};
use spanhouse_common::id::{BlockId, SpanId, TenantId, TraceId};
use spanhouse_common::manifest::{Tombstone, Tombstones};
use spanhouse_common::model::{Attribute, Event, Resource, Scope, Span, StoredSpan, Value};
use spanhouse_common::source::{Found, Opened, Snapshot, Snapshots, Source, SourceError};
use spanhouse_common::time::{TimeRange, UnixNanos};

use crate::engine::answer::{
    EdgesAnswer, OperationsAnswer, QueryStats, SearchAnswer, SeriesAnswer, TagNamesAnswer, TagValuesAnswer,
};
use crate::engine::{
    EdgesRequest, EngineError, MetricsRequest, OperationsRequest, Progress, QueryEngine, SearchRequest, SpanPredicate,
    TagNamesRequest, TagValuesRequest,
};
use crate::traceql::ast::{FieldExpr, Static};

/// A source of given spans.
#[derive(Debug, Clone)]
pub struct FakeSource {
    pub name: String,
    pub live: bool,
    pub range: TimeRange,
    pub spans: Vec<StoredSpan>,
    /// Told instead of an answer.
    pub error: Option<SourceError>,
    /// Time an answer takes.
    pub delay: Duration,
}

impl FakeSource {
    /// A block that covers exactly its spans.
    pub fn block(name: &str, spans: Vec<StoredSpan>) -> Self {
        let mut range = TimeRange::EMPTY;
        for stored in &spans {
            range.include(UnixNanos(stored.span.start_unix_nano));
            range.include(UnixNanos(stored.span.end_unix_nano));
        }
        Self { name: name.to_owned(), live: false, range, spans, error: None, delay: Duration::ZERO }
    }

    pub fn live(spans: Vec<StoredSpan>) -> Self {
        Self { live: true, ..Self::block("live", spans) }
    }

    #[must_use]
    pub fn failing(self, error: SourceError) -> Self {
        Self { error: Some(error), ..self }
    }
}

#[async_trait]
impl Source for FakeSource {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn time_range(&self) -> TimeRange {
        self.range
    }

    fn is_live(&self) -> bool {
        self.live
    }

    async fn open(&self) -> Result<Opened, SourceError> {
        match &self.error {
            Some(error) => Err(error.clone()),
            None => Ok(Opened::Live(Arc::new(SpanBatch::of_spans(&self.spans)))),
        }
    }

    async fn find_trace(&self, id: TraceId) -> Result<Found, SourceError> {
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        if let Some(error) = &self.error {
            return Err(error.clone());
        }
        let spans: Vec<StoredSpan> = self.spans.iter().filter(|s| s.span.trace_id == id).cloned().collect();
        let inspected_bytes = 100 * spans.len() as u64;
        Ok(Found { spans, inspected_bytes })
    }
}

/// Hands out a list of snapshots one after the other, then the last one for good. Counts how often it was asked.
pub struct FakeSnapshots {
    tenants: Vec<(TenantId, Vec<Vec<FakeSource>>)>,
    taken: AtomicUsize,
}

impl FakeSnapshots {
    pub fn new(tenants: Vec<(TenantId, Vec<Vec<FakeSource>>)>) -> Arc<Self> {
        Arc::new(Self { tenants, taken: AtomicUsize::new(0) })
    }

    /// One tenant whose sources never change.
    pub fn of(sources: Vec<FakeSource>) -> Arc<Self> {
        Self::new(vec![(TenantId::single(), vec![sources])])
    }

    pub fn taken(&self) -> usize {
        self.taken.load(SeqCst)
    }
}

impl fmt::Debug for FakeSnapshots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeSnapshots").field("taken", &self.taken()).finish_non_exhaustive()
    }
}

#[async_trait]
impl Snapshots for FakeSnapshots {
    async fn snapshot(&self, tenant: &TenantId) -> Result<Snapshot, SourceError> {
        let nth = self.taken.fetch_add(1, SeqCst);
        let versions = self.tenants.iter().find(|(name, _)| name == tenant).map(|(_, versions)| versions.as_slice());
        let sources = versions.and_then(|versions| versions.get(nth).or(versions.last())).cloned().unwrap_or_default();
        let sources = sources.into_iter().map(|source| Arc::new(source) as Arc<dyn Source>).collect();
        Ok(Snapshot { sources, manifest_version: nth as u64, tombstones: Arc::default(), filters: None })
    }
}

/// Writes a block of these spans to memory and opens it: a source as a store has them.
pub async fn block_source(spans: &[StoredSpan]) -> Arc<dyn Source> {
    block_source_in_groups(spans, WriterOptions::default().row_group_rows).await
}

/// As [`block_source`], with so many rows in a row group: each is a part of its own.
///
/// # Panics
///
/// Without spans: a block has at least one.
pub async fn block_source_in_groups(spans: &[StoredSpan], row_group_rows: usize) -> Arc<dyn Source> {
    let start = spans.iter().map(|stored| stored.span.start_unix_nano).min().expect("at least one span");
    let origin = BlockOrigin {
        id: BlockId::generate(),
        tenant: TenantId::single(),
        created: UnixNanos(start),
        window: Some(window_of(UnixNanos(start), 86_400)),
        level: 0,
        wal: Vec::new(),
        inputs: Vec::new(),
        replaces: Vec::new(),
    };
    let input = BlockInput { batches: vec![Arc::new(SpanBatch::of_spans(spans))], rows: vec![None] };
    let options = WriterOptions { row_group_rows, ..WriterOptions::default() };
    let block = write_block(&input, origin, options).expect("spans can be written");
    let location = BlockLocation {
        parquet: Path::from("spans.parquet"),
        filter: Path::from("trace-ids.filter"),
        bytes: block.parquet.len() as u64,
        tail_bytes: block.tail_bytes,
    };
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    store.put(&location.parquet, block.parquet.into()).await.expect("memory takes it");
    store.put(&location.filter, block.filter.into()).await.expect("memory takes it");
    // Whether something is still in the cache must never matter: every other block has none.
    static WITHOUT: AtomicBool = AtomicBool::new(false);
    let cache = BlockCache::new(if WITHOUT.fetch_xor(true, SeqCst) { 0 } else { 64 << 20 });
    let reader = BlockReader::open(store, cache, location).await.expect("what was written opens");
    Arc::new(Arc::new(reader))
}

/// Sources of any kind, the same for every tenant and at all times; of their traces, some may be deleted.
#[derive(Debug, Clone, Default)]
pub struct GivenSources {
    sources: Vec<Arc<dyn Source>>,
    deleted: Arc<Mutex<Arc<Tombstones>>>,
}

impl GivenSources {
    pub fn new(sources: Vec<Arc<dyn Source>>) -> Self {
        Self { sources, ..Self::default() }
    }

    /// From now on these traces are deleted, and no others.
    pub fn delete(&self, ids: impl IntoIterator<Item = TraceId>) {
        let stone = |trace_id| (trace_id, Tombstone { trace_id, deleted_at: UnixNanos(1) });
        *self.deleted.lock() = Arc::new(ids.into_iter().map(stone).collect());
    }
}

#[async_trait]
impl Snapshots for GivenSources {
    async fn snapshot(&self, _: &TenantId) -> Result<Snapshot, SourceError> {
        let (sources, tombstones) = (self.sources.clone(), Arc::clone(&self.deleted.lock()));
        Ok(Snapshot { sources, manifest_version: 1, tombstones, filters: None })
    }
}

/// The id `000102..0f`, that of the reference's example.
pub fn trace_id() -> TraceId {
    TraceId(std::array::from_fn(|at| at as u8))
}

pub fn span_id(n: u64) -> SpanId {
    SpanId(n.to_be_bytes())
}

pub fn attribute(key: &str, value: Value) -> Attribute {
    Attribute { key: key.to_owned(), value }
}

pub fn resource(service: &str) -> Resource {
    Resource { attributes: vec![attribute("service.name", Value::Str(service.to_owned()))], ..Resource::default() }
}

/// A span of [`trace_id`] that lasts 10 ns.
pub fn span(id: u64, kind: i32, start: u64) -> Span {
    Span {
        trace_id: trace_id(),
        span_id: span_id(id),
        name: format!("span-{id}"),
        kind,
        start_unix_nano: start,
        end_unix_nano: start + 10,
        ..Span::default()
    }
}

/// `span` of the service `shop`, without a scope.
pub fn stored(span: Span) -> StoredSpan {
    stored_by(span, resource("shop"), Scope::default())
}

pub fn stored_by(span: Span, resource: Resource, scope: Scope) -> StoredSpan {
    StoredSpan { span, resource: Arc::new(resource), scope: Arc::new(scope), maybe_duplicate: false }
}

/// The span of the reference's example of trace by id.
pub fn example() -> StoredSpan {
    let span = Span {
        trace_id: trace_id(),
        span_id: SpanId(std::array::from_fn(|at| at as u8)),
        parent_span_id: Some(SpanId(std::array::from_fn(|at| at as u8 + 8))),
        name: "GET /cart".into(),
        kind: 2,
        start_unix_nano: 1_700_000_000_000_000_000,
        end_unix_nano: 1_700_000_000_250_000_000,
        attributes: vec![attribute("http.status_code", Value::Int(200))],
        events: vec![Event { time_unix_nano: 1_700_000_000_100_000_000, name: "exception".into(), ..Event::default() }],
        status_message: "x".into(),
        status_code: 2,
        ..Span::default()
    };
    stored_by(span, resource("shop"), Scope { name: "lib".into(), version: "1".into(), ..Scope::default() })
}

/// What a [`FakeEngine`] was asked.
#[derive(Debug, Clone)]
pub enum Asked {
    Search(SearchRequest),
    Metrics(MetricsRequest),
    TagNames(TagNamesRequest),
    TagValues(TagValuesRequest),
    Operations(OperationsRequest),
    Edges(EdgesRequest),
}

/// Answers what it was given, whatever it is asked, and remembers the questions.
#[derive(Debug, Clone)]
pub struct FakeEngine {
    pub search: Result<SearchAnswer, EngineError>,
    pub metrics: Result<SeriesAnswer, EngineError>,
    pub tag_names: Result<TagNamesAnswer, EngineError>,
    pub tag_values: Result<TagValuesAnswer, EngineError>,
    pub operations: Result<OperationsAnswer, EngineError>,
    pub edges: Result<EdgesAnswer, EngineError>,
    /// Told before the answer, `pause` apart.
    pub progress: Vec<QueryStats>,
    pub pause: Duration,
    pub asked: Arc<Mutex<Vec<Asked>>>,
}

impl Default for FakeEngine {
    fn default() -> Self {
        Self {
            search: Ok(SearchAnswer::default()),
            metrics: Ok(SeriesAnswer::default()),
            tag_names: Ok(TagNamesAnswer::default()),
            tag_values: Ok(TagValuesAnswer::default()),
            operations: Ok(OperationsAnswer::default()),
            edges: Ok(EdgesAnswer::default()),
            progress: Vec::new(),
            pause: Duration::ZERO,
            asked: Arc::default(),
        }
    }
}

impl FakeEngine {
    /// The same failure for everything.
    pub fn failing(error: EngineError) -> Self {
        Self {
            search: Err(error.clone()),
            metrics: Err(error.clone()),
            tag_names: Err(error.clone()),
            tag_values: Err(error.clone()),
            operations: Err(error.clone()),
            edges: Err(error),
            ..Self::default()
        }
    }

    /// Nothing, and that this is not all.
    pub fn partial(why: &str) -> Self {
        let stats = || QueryStats { partial: Some(why.to_owned()), ..QueryStats::default() };
        Self {
            search: Ok(SearchAnswer { stats: stats(), ..SearchAnswer::default() }),
            metrics: Ok(SeriesAnswer { stats: stats(), ..SeriesAnswer::default() }),
            tag_names: Ok(TagNamesAnswer { stats: stats(), ..TagNamesAnswer::default() }),
            tag_values: Ok(TagValuesAnswer { stats: stats(), ..TagValuesAnswer::default() }),
            operations: Ok(OperationsAnswer { stats: stats(), ..OperationsAnswer::default() }),
            edges: Ok(EdgesAnswer { stats: stats(), ..EdgesAnswer::default() }),
            ..Self::default()
        }
    }

    async fn tell(&self, so_far: impl Fn(QueryStats)) {
        for stats in &self.progress {
            tokio::time::sleep(self.pause).await;
            so_far(stats.clone());
        }
        if !self.progress.is_empty() {
            tokio::time::sleep(self.pause).await;
        }
    }
}

#[async_trait]
impl QueryEngine for FakeEngine {
    async fn search(
        &self,
        request: SearchRequest,
        progress: &dyn Progress<SearchAnswer>,
    ) -> Result<SearchAnswer, EngineError> {
        self.asked.lock().push(Asked::Search(request));
        self.tell(|stats| progress.so_far(SearchAnswer { stats, ..self.search.clone().unwrap_or_default() })).await;
        self.search.clone()
    }

    async fn metrics(
        &self,
        request: MetricsRequest,
        progress: &dyn Progress<SeriesAnswer>,
    ) -> Result<SeriesAnswer, EngineError> {
        self.asked.lock().push(Asked::Metrics(request));
        self.tell(|stats| progress.so_far(SeriesAnswer { stats, ..self.metrics.clone().unwrap_or_default() })).await;
        self.metrics.clone()
    }

    async fn tag_names(&self, request: TagNamesRequest) -> Result<TagNamesAnswer, EngineError> {
        self.asked.lock().push(Asked::TagNames(request));
        self.tag_names.clone()
    }

    async fn tag_values(&self, request: TagValuesRequest) -> Result<TagValuesAnswer, EngineError> {
        self.asked.lock().push(Asked::TagValues(request));
        self.tag_values.clone()
    }

    async fn operations(&self, request: OperationsRequest) -> Result<OperationsAnswer, EngineError> {
        self.asked.lock().push(Asked::Operations(request));
        self.operations.clone()
    }

    async fn edges(&self, request: EdgesRequest) -> Result<EdgesAnswer, EngineError> {
        self.asked.lock().push(Asked::Edges(request));
        self.edges.clone()
    }

    /// Understands `name = "text"` alone.
    fn span_filter(&self, filter: &FieldExpr) -> SpanPredicate {
        let name = match filter {
            FieldExpr::Binary { right, .. } => match &**right {
                FieldExpr::Static(Static::Str(name)) => Arc::clone(name),
                _ => "".into(),
            },
            _ => "".into(),
        };
        Box::new(move |stored| stored.span.name == *name)
    }
}
