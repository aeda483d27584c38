//! What the tests of this crate share: entries, and a store whose objects age by the test's clock.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::Mutex;
use spanhouse_common::block::TraceIdFilter;
use spanhouse_common::budget::Share;
use spanhouse_common::id::{BlockId, TenantId, TraceId, WalPosition, WriterId};
use spanhouse_common::manifest::{BlockEntry, Change, Manifests, WalRange, Window};
use spanhouse_common::store::TenantRegistry;
use spanhouse_common::store::paths::{BlockObject, TenantPaths};
use spanhouse_common::time::{Clock, ManualClock, TimeRange, UnixNanos};

use crate::merge::{MERGE_BYTES, Merger};

pub(crate) const MINUTE: Duration = Duration::from_secs(60);
pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// A time in 2023, so that nothing saturates.
pub(crate) const START: UnixNanos = UnixNanos(1_700_000_000_000_000_000);

pub(crate) fn block_id(n: u64) -> BlockId {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&n.to_be_bytes());
    BlockId::from_bytes(id)
}

/// A valid entry whose id is made of `n`.
pub(crate) fn entry(n: u64) -> BlockEntry {
    BlockEntry {
        id: block_id(n),
        format: 1,
        size_bytes: 1000,
        footer_bytes: 100,
        filter_bytes: 10,
        crc32c: 7,
        rows: 5,
        traces: 2,
        range: TimeRange { min: START, max: START },
        min_start: START,
        max_start: START,
        window: Some(Window { start: 0, length: 900 }),
        min_trace_id: TraceId([1; 16]),
        max_trace_id: TraceId([2; 16]),
        received_max: START,
        level: 0,
        wal: Vec::new(),
        replaces: Vec::new(),
    }
}

/// The commit of a flush: the block, received at `at`, and the writer's watermark from `flushed` on by one.
pub(crate) fn flush_of(n: u64, at: UnixNanos, writer: u8, flushed: u64) -> Change {
    let mut block = entry(n);
    (block.max_start, block.received_max) = (at, at);
    let position = |sequence| WalPosition { epoch: u64::from(sequence > 0), sequence };
    let wal = WalRange { writer: WriterId::from_bytes([writer; 16]), from: position(flushed), to: position(flushed + 1) };
    Change { add: vec![block], watermarks: vec![wal], ..Change::default() }
}

pub(crate) fn objects_of(tenant: &TenantId, id: BlockId) -> [Path; 2] {
    let paths = TenantPaths::new(tenant);
    [paths.block(id, BlockObject::Filter), paths.block(id, BlockObject::Spans)]
}

/// Puts both objects of a block, through whatever weather.
pub(crate) async fn put_block(store: &dyn ObjectStore, tenant: &TenantId, id: BlockId) {
    put_block_with(store, tenant, id, PutPayload::from_static(b"12345678")).await;
}

/// As [`put_block`], with this filter.
pub(crate) async fn put_block_with(store: &dyn ObjectStore, tenant: &TenantId, id: BlockId, filter: PutPayload) {
    for (key, payload) in objects_of(tenant, id).into_iter().zip([filter, PutPayload::from_static(b"12345678")]) {
        loop {
            let reply = store.put_opts(&key, payload.clone(), PutMode::Create.into()).await;
            if reply.is_ok() || store.head(&key).await.is_ok() {
                break;
            }
        }
    }
}

/// A sound filter, of the same length for every block.
pub(crate) fn sidecar(id: BlockId) -> Bytes {
    let filter = TraceIdFilter::build([TraceId(*id.as_bytes())].into_iter(), 1).unwrap();
    filter.to_bytes().into()
}

/// As [`flush_of`], for a block with the filter [`sidecar`].
pub(crate) fn flush_with_sidecar(n: u64, at: UnixNanos, writer: u8, flushed: u64) -> Change {
    let mut change = flush_of(n, at, writer, flushed);
    change.add[0].filter_bytes = sidecar(block_id(n)).len() as u64;
    change
}

pub(crate) async fn has_block(store: &dyn ObjectStore, tenant: &TenantId, id: BlockId) -> bool {
    let [filter, spans] = objects_of(tenant, id);
    store.head(&filter).await.is_ok() && store.head(&spans).await.is_ok()
}

pub(crate) async fn has_any_of(store: &dyn ObjectStore, tenant: &TenantId, id: BlockId) -> bool {
    let [filter, spans] = objects_of(tenant, id);
    store.head(&filter).await.is_ok() || store.head(&spans).await.is_ok()
}

pub(crate) async fn manifests_on(
    store: &Arc<dyn ObjectStore>,
    clock: &Arc<ManualClock>,
) -> spanhouse_common::manifest::Manifests {
    let clock: Arc<dyn Clock> = Arc::clone(clock) as _;
    loop {
        if let Ok(tenants) = TenantRegistry::open(Arc::clone(store), Arc::clone(&clock), 100).await {
            return spanhouse_common::manifest::Manifests::new(Arc::clone(store), clock, tenants);
        }
    }
}

/// Runs merges over a store in memory; what it spools fits there too.
pub(crate) fn merger_on(manifests: &Manifests, clock: &Arc<ManualClock>) -> Merger {
    Merger {
        store: Arc::clone(manifests.store()),
        clock: Arc::clone(clock) as _,
        memory: Share::new("compaction", MERGE_BYTES),
        spool_dir: std::env::temp_dir(),
    }
}

/// A store in memory that says objects were modified when the manual clock says they were put.
#[derive(Debug)]
pub(crate) struct AgedStore {
    inner: InMemory,
    clock: Arc<ManualClock>,
    put_at: Mutex<HashMap<Path, UnixNanos>>,
}

impl AgedStore {
    pub(crate) fn new(clock: &Arc<ManualClock>) -> Arc<Self> {
        Arc::new(Self { inner: InMemory::new(), clock: Arc::clone(clock), put_at: Mutex::default() })
    }

    fn aged(&self, mut meta: ObjectMeta) -> ObjectMeta {
        let at = self.put_at.lock().get(&meta.location).copied().unwrap_or_default();
        meta.last_modified = (UNIX_EPOCH + Duration::from_nanos(at.0)).into();
        meta
    }
}

impl fmt::Display for AgedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Aged")
    }
}

#[async_trait]
impl ObjectStore for AgedStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let result = self.inner.put_opts(location, payload, opts).await?;
        self.put_at.lock().insert(location.clone(), self.clock.now());
        Ok(result)
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        // Collected: the stream may not borrow from here. What is in memory is listed without waiting.
        let listed: Vec<_> = self.inner.list(prefix).collect().now_or_never().unwrap();
        let aged: Vec<_> = listed.into_iter().map(|meta| meta.map(|meta| self.aged(meta))).collect();
        futures::stream::iter(aged).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
