//! Where spans come from: live data and the blocks of a manifest version, taken so that every span is seen exactly once.
//!
//! Owns open blocks and their cache. Does not own live data (it comes through [`LiveReader`]) or the manifest.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use object_store::ObjectStore;
use parking_lot::Mutex;
use spanhouse_common::block::{BlockLocation, BlockReader, SegmentCache};
use spanhouse_common::id::{BlockId, TenantId, TraceId};
use spanhouse_common::manifest::{BlockEntry, ManifestState, ManifestStore, Manifests};
use spanhouse_common::source::{Found, LiveReader, Snapshot, Snapshots, Source, SourceError};
use spanhouse_common::store::paths::{BlockObject, TenantPaths};
use spanhouse_common::time::{Clock, TimeRange};

/// How old this process's view of the manifest may be before a query looks for versions of other processes.
const REFRESH_EVERY: Duration = Duration::from_secs(5);

/// Makes snapshots of live data and blocks.
#[derive(Debug)]
pub struct Sources {
    live: Arc<dyn LiveReader>,
    manifests: Arc<Manifests>,
    clock: Arc<dyn Clock>,
    blocks: Arc<OpenBlocks>,
    refreshed: Mutex<HashMap<TenantId, Duration>>,
}

/// Blocks opened so far.
#[derive(Debug)]
struct OpenBlocks {
    store: Arc<dyn ObjectStore>,
    cache: Arc<SegmentCache>,
    open: Mutex<HashMap<BlockId, Arc<BlockReader>>>,
}

/// A block of a snapshot, opened when something is looked for in it.
#[derive(Debug)]
struct SnapshotBlock {
    entry: Arc<BlockEntry>,
    tenant: TenantId,
    blocks: Arc<OpenBlocks>,
}

#[async_trait]
impl Source for SnapshotBlock {
    fn name(&self) -> String {
        self.entry.id.to_string()
    }

    fn time_range(&self) -> TimeRange {
        // The range of an outlier block leaves out the times it cannot express: no hint may exclude it.
        if self.entry.window.is_none() { TimeRange::ALL } else { self.entry.range }
    }

    fn is_live(&self) -> bool {
        false
    }

    async fn find_trace(&self, id: TraceId) -> Result<Found, SourceError> {
        if id < self.entry.min_trace_id || id > self.entry.max_trace_id {
            return Ok(Found::default());
        }
        self.blocks.reader(&self.tenant, &self.entry).await?.find_trace(id).await
    }
}

impl Sources {
    /// `cache_bytes` bounds the file segments kept; footers and filters of open blocks come on top.
    pub fn new(live: Arc<dyn LiveReader>, manifests: Arc<Manifests>, clock: Arc<dyn Clock>, cache_bytes: u64) -> Self {
        let (store, cache) = (Arc::clone(manifests.store()), SegmentCache::new(cache_bytes));
        let blocks = Arc::new(OpenBlocks { store, cache, open: Mutex::default() });
        Self { live, manifests, clock, blocks, refreshed: Mutex::default() }
    }

    async fn state(&self, manifest: &ManifestStore, at_least: u64) -> Result<Arc<ManifestState>, SourceError> {
        let now = self.clock.monotonic();
        let due = {
            let mut refreshed = self.refreshed.lock();
            let last = refreshed.entry(manifest.tenant().clone()).or_insert(now);
            let due = now.saturating_sub(*last) >= REFRESH_EVERY;
            if due {
                *last = now;
            }
            due
        };
        let current = manifest.current();
        if !due && current.version >= at_least {
            return Ok(current);
        }
        match manifest.refresh().await {
            Ok(state) => Ok(state),
            // What is known is whole up to its version: an unreachable store shows when its blocks are read.
            Err(error) if manifest.damage().is_none() && current.version >= at_least => {
                tracing::warn!(tenant = %manifest.tenant(), error = %error, "manifest not refreshed");
                Ok(current)
            }
            Err(error) => Err(SourceError::Unreadable {
                what: format!("manifest of tenant `{}`", manifest.tenant()),
                why: error.to_string(),
            }),
        }
    }
}

impl OpenBlocks {
    /// Forgets readers of blocks that are in no manifest any more.
    fn forget_retired(&self, tenant: &TenantId, state: &ManifestState) {
        let mut open = self.open.lock();
        if open.len() <= 2 * state.blocks.len() + 64 {
            return;
        }
        open.retain(|id, reader| reader.meta().origin.tenant != *tenant || state.blocks.contains_key(id));
    }

    async fn reader(&self, tenant: &TenantId, entry: &BlockEntry) -> Result<Arc<BlockReader>, SourceError> {
        if let Some(known) = self.open.lock().get(&entry.id) {
            return Ok(Arc::clone(known));
        }
        let paths = TenantPaths::new(tenant);
        let location = BlockLocation {
            parquet: paths.block(entry.id, BlockObject::Spans),
            filter: paths.block(entry.id, BlockObject::Filter),
            bytes: entry.size_bytes,
            tail_bytes: u64::from(entry.footer_bytes),
        };
        let store = Arc::clone(&self.store);
        let reader = Arc::new(BlockReader::open(store, Arc::clone(&self.cache), location).await?);
        let meta = reader.meta();
        if meta.origin.id != entry.id || meta.origin.tenant != *tenant || meta.rows != entry.rows {
            let what = format!("block {}", entry.id);
            return Err(SourceError::Damaged { what, why: "its footer describes another block".into() });
        }
        self.open.lock().insert(entry.id, Arc::clone(&reader));
        Ok(reader)
    }
}

#[async_trait]
impl Snapshots for Sources {
    async fn snapshot(&self, tenant: &TenantId) -> Result<Snapshot, SourceError> {
        // Live data first: what a commit moves to blocks after this is in both, and the watermark tells which to drop.
        let live = self.live.live(tenant);
        let manifest = self.manifests.for_reading(tenant).await.map_err(|error| SourceError::Unreadable {
            what: format!("manifest of tenant `{tenant}`"),
            why: error.to_string(),
        })?;
        let Some(manifest) = manifest else {
            let sources = live.parts.into_iter().map(|part| part.source).collect();
            return Ok(Snapshot { sources, manifest_version: 0 });
        };
        let state = self.state(&manifest, live.manifest_version).await?;
        let mut sources: Vec<Arc<dyn Source>> =
            live.parts.into_iter().filter(|part| part.to > state.watermark(part.writer)).map(|part| part.source).collect();
        self.blocks.forget_retired(tenant, &state);
        sources.extend(state.blocks.values().map(|entry| {
            let blocks = Arc::clone(&self.blocks);
            Arc::new(SnapshotBlock { entry: Arc::clone(entry), tenant: tenant.clone(), blocks }) as Arc<dyn Source>
        }));
        Ok(Snapshot { sources, manifest_version: state.version })
    }
}
