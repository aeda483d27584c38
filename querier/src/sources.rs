//! Where spans come from: live data and the blocks of a manifest version, taken so that every span is seen exactly once.
//!
//! Owns open blocks and their cache. Does not own trace-id filters ([`crate::filters`]), live data (it comes through
//! [`LiveReader`]) or the manifest.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use object_store::ObjectStore;
use parking_lot::Mutex;
use spanhouse_common::block::{BlockCache, BlockLocation, BlockReader};
use spanhouse_common::id::{BlockId, TenantId, TraceId};
use spanhouse_common::manifest::{BlockEntry, ManifestState, ManifestStore, Manifests};
use spanhouse_common::source::{Found, LiveReader, Opened, Snapshot, Snapshots, Source, SourceError};
use spanhouse_common::time::{Clock, TimeRange};

use crate::filters::{FilterMetrics, Filters, SnapshotFilters};

/// How old this process's view of the manifest may be before a query looks for versions of other processes.
const REFRESH_EVERY: Duration = Duration::from_secs(5);

/// Makes snapshots of live data and blocks.
#[derive(Debug)]
pub struct Sources {
    live: Arc<dyn LiveReader>,
    manifests: Arc<Manifests>,
    clock: Arc<dyn Clock>,
    blocks: Arc<OpenBlocks>,
    filters: Arc<Filters>,
    refreshed: Mutex<HashMap<TenantId, Duration>>,
}

/// Part of the cache's bytes that open blocks may take: footers.
const FOOTERS_PART: u64 = 6;
/// Part of the cache's bytes for trace-id filters: every query that has no time asks all of them.
const FILTERS_PART: u64 = 6;

/// Blocks opened so far. What is used least is forgotten, that of retired blocks among it.
#[derive(Debug)]
struct OpenBlocks {
    store: Arc<dyn ObjectStore>,
    cache: Arc<BlockCache>,
    readers: moka::sync::Cache<BlockId, Arc<BlockReader>>,
}

/// A cache of at most `bytes`, by what its values take on the heap.
pub(crate) fn bounded<V: Clone + Send + Sync + 'static>(bytes: u64, of: fn(&V) -> usize) -> moka::sync::Cache<BlockId, V> {
    let weigher = move |_: &BlockId, value: &V| u32::try_from(of(value).saturating_add(200)).unwrap_or(u32::MAX);
    moka::sync::Cache::builder().max_capacity(bytes).weigher(weigher).build()
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

    fn stored_bytes(&self) -> u64 {
        self.entry.size_bytes
    }

    async fn open(&self) -> Result<Opened, SourceError> {
        self.blocks.reader(&self.tenant, &self.entry).await?.open().await
    }

    async fn find_trace(&self, id: TraceId) -> Result<Found, SourceError> {
        if id < self.entry.min_trace_id || id > self.entry.max_trace_id {
            return Ok(Found::default());
        }
        // Its filter was asked with those of all other blocks: see `Snapshot::may_hold`.
        self.blocks.reader(&self.tenant, &self.entry).await?.find_trace(id).await
    }
}

impl Sources {
    /// `cache_bytes` bounds all that is kept of blocks between queries.
    pub fn new(live: Arc<dyn LiveReader>, manifests: Arc<Manifests>, clock: Arc<dyn Clock>, cache_bytes: u64) -> Self {
        let (footers, filters) = (cache_bytes / FOOTERS_PART, cache_bytes / FILTERS_PART);
        let blocks = Arc::new(OpenBlocks {
            store: Arc::clone(manifests.store()),
            cache: BlockCache::new(cache_bytes - footers - filters),
            readers: bounded(footers, |reader: &Arc<BlockReader>| reader.heap_bytes()),
        });
        let filters = Filters::new(Arc::clone(manifests.store()), filters);
        Self { live, manifests, clock, blocks, filters, refreshed: Mutex::default() }
    }

    /// What is counted of reading filters, to be registered.
    pub fn filter_metrics(&self) -> &FilterMetrics {
        self.filters.metrics()
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
    async fn reader(&self, tenant: &TenantId, entry: &BlockEntry) -> Result<Arc<BlockReader>, SourceError> {
        if let Some(known) = self.readers.get(&entry.id) {
            return Ok(known);
        }
        let (store, cache) = (Arc::clone(&self.store), Arc::clone(&self.cache));
        let reader = Arc::new(BlockReader::open_footer(store, cache, BlockLocation::of(tenant, entry)).await?);
        let meta = reader.meta();
        if meta.origin.id != entry.id || meta.origin.tenant != *tenant || meta.rows != entry.rows {
            let what = format!("block {}", entry.id);
            return Err(SourceError::Damaged { what, why: "its footer describes another block".into() });
        }
        self.readers.insert(entry.id, Arc::clone(&reader));
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
            return Ok(Snapshot { sources, manifest_version: 0, tombstones: Arc::default(), filters: None });
        };
        let state = self.state(&manifest, live.manifest_version).await?;
        let mut sources: Vec<Arc<dyn Source>> =
            live.parts.into_iter().filter(|part| part.to > state.watermark(part.writer)).map(|part| part.source).collect();
        let filters = SnapshotFilters::new(Arc::clone(&self.filters), tenant.clone(), Arc::clone(&state), sources.len());
        sources.extend(state.blocks.values().map(|entry| {
            let blocks = Arc::clone(&self.blocks);
            Arc::new(SnapshotBlock { entry: Arc::clone(entry), tenant: tenant.clone(), blocks }) as Arc<dyn Source>
        }));
        let tombstones = Arc::clone(&state.tombstones);
        Ok(Snapshot { sources, manifest_version: state.version, tombstones, filters: Some(Arc::new(filters)) })
    }
}
