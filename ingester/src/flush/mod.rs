//! Flush: from a cut of live data to committed blocks.
//!
//! Owns: splitting a cut into windows, building blocks on a CPU thread, putting their objects, the commit that names them and
//! moves the tenant's watermark. Does not own: when to cut ([`crate::live::CutPolicy`]) and what happens to a block later.
//!
//! # Crash story
//!
//! 1. *Before any put*: everything is in the WAL; replay brings it back.
//! 2. *Objects put, not committed*: nobody knows of them (names are unique to the attempt); replay brings the spans back; the
//!    sweeper removes the objects.
//! 3. *Committed*: the blocks exist and the watermark is past the records, in one version. Replay skips the records.
//! 4. *WAL segments removed*: only after 3, and only when every tenant in a segment is past it.
//!
//! A flush that fails is tried again with the same objects until it succeeds or the process ends: the spans stay live and in
//! the WAL meanwhile, and the WAL's cap turns a lasting outage into refusals. Objects older than [`REBUILD_AFTER`] are given up
//! for new ones, because the sweeper takes what is long there and unreferenced.

mod metrics;
mod windows;

use std::sync::Arc;
use std::time::Duration;

use object_store::path::Path;
use object_store::{ObjectStore, PutMode, PutPayload};
use spanhouse_common::batch::SpanBatch;
use spanhouse_common::block::{Block, BlockInput, BlockOrigin, WriterOptions, write_block};
use spanhouse_common::id::{BlockId, TenantId, WalPosition};
use spanhouse_common::manifest::{Change, CommitError, ManifestStore, Manifests, WalRange};
use spanhouse_common::store::paths::{BlockObject, TenantPaths};
use spanhouse_common::time::Clock;

use crate::live::{Cut, Live};
pub use metrics::FlushMetrics;
use windows::split;

/// Far below the age at which the sweeper deletes objects that nothing refers to.
const REBUILD_AFTER: Duration = Duration::from_secs(6 * 3600);

/// Settings of the flush.
#[derive(Clone, Copy, Debug)]
pub struct FlushConfig {
    /// Length of a time window in seconds.
    pub window_seconds: u64,
    /// Starts further back than this go to the outlier block.
    pub retention: Duration,
    pub writer: WriterOptions,
}

/// Writes cuts to blocks.
#[derive(Debug)]
pub struct Flusher {
    live: Arc<Live>,
    manifests: Arc<Manifests>,
    clock: Arc<dyn Clock>,
    config: FlushConfig,
    metrics: FlushMetrics,
}

/// Why an attempt to flush failed. The cut is still live and in the WAL.
#[derive(Debug, thiserror::Error)]
pub enum FlushError {
    #[error("building a block: {0}")]
    Build(String),
    #[error("putting {path}: {source}")]
    Put { path: Path, source: object_store::Error },
    #[error("committing: {0}")]
    Commit(#[from] CommitError),
    #[error("opening the manifest: {0}")]
    Manifest(#[from] spanhouse_common::manifest::WriteManifestError),
}

/// A block as it goes to the store.
struct Built {
    block: Block,
    uploaded: bool,
}

/// The blocks of a cut, built once and put until they are there.
struct BuiltCut {
    blocks: Vec<Built>,
    wal: WalRange,
    at: Duration,
}

impl Flusher {
    pub fn new(
        live: Arc<Live>,
        manifests: Arc<Manifests>,
        clock: Arc<dyn Clock>,
        config: FlushConfig,
        metrics: FlushMetrics,
    ) -> Self {
        Self { live, manifests, clock, config, metrics }
    }

    /// Flushes one cut, trying again until it is committed. Returns the position the tenant's records are released to.
    ///
    /// Not cancel-safe in the sense of work done: dropping it leaves the cut frozen, so only a process that ends may.
    pub async fn flush(&self, cut: &Cut) -> WalPosition {
        let began = self.clock.monotonic();
        let mut built: Option<BuiltCut> = None;
        let mut wait = Duration::from_millis(100);
        loop {
            built = built.filter(|cut| self.clock.monotonic().saturating_sub(cut.at) < REBUILD_AFTER);
            match self.attempt(cut, &mut built).await {
                Ok(version) => {
                    self.live.committed(cut, version);
                    self.metrics.flushed(self.clock.monotonic().saturating_sub(began));
                    return cut.to;
                }
                Err(error) => {
                    self.metrics.failed();
                    tracing::warn!(tenant = %cut.tenant, error = %error, retry_ms = wait.as_millis() as u64, "flush failed");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(Duration::from_secs(10));
                }
            }
        }
    }

    async fn attempt(&self, cut: &Cut, built: &mut Option<BuiltCut>) -> Result<u64, FlushError> {
        let manifest = self.manifests.for_writing(&cut.tenant).await?;
        let BuiltCut { blocks, wal, .. } = match built {
            Some(known) => known,
            None => {
                let at = self.clock.monotonic();
                let wal = WalRange {
                    writer: self.live.writer(),
                    from: manifest.current().watermark(self.live.writer()),
                    to: cut.to,
                };
                let blocks = self.build(cut, wal).await?;
                built.insert(BuiltCut { blocks, wal, at })
            }
        };
        let paths = TenantPaths::new(&cut.tenant);
        for Built { block, uploaded } in blocks.iter_mut().filter(|b| !b.uploaded) {
            let id = block.meta.origin.id;
            self.put(paths.block(id, BlockObject::Filter), &block.filter).await?;
            self.put(paths.block(id, BlockObject::Spans), &block.parquet).await?;
            *uploaded = true;
        }
        let add = blocks
            .iter()
            .map(|Built { block, .. }| block.meta.entry(&block.parquet, block.tail_bytes, block.filter.len() as u64))
            .collect();
        let change = Change { add, remove: Vec::new(), watermarks: vec![*wal] };
        let state = commit(&manifest, change).await?;
        for Built { block, .. } in blocks {
            self.metrics.block(block.parquet.len() + block.filter.len(), block.meta.rows, block.meta.duplicates_removed);
        }
        Ok(state)
    }

    async fn build(&self, cut: &Cut, wal: WalRange) -> Result<Vec<Built>, FlushError> {
        let batches: Vec<Arc<SpanBatch>> = cut.batches.iter().map(|live| Arc::clone(&live.spans)).collect();
        let (tenant, now, config) = (cut.tenant.clone(), self.clock.now(), self.config);
        let build = move || -> Result<Vec<Built>, String> {
            let mut out = Vec::new();
            for (window, rows) in split(&batches, now, config.window_seconds, config.retention) {
                let origin = BlockOrigin {
                    id: BlockId::generate(),
                    tenant: TenantId::clone(&tenant),
                    created: now,
                    window,
                    level: 0,
                    wal: vec![wal],
                    replaces: Vec::new(),
                };
                let input = BlockInput { batches: batches.clone(), rows };
                let block = write_block(&input, origin, config.writer).map_err(|e| e.to_string())?;
                out.push(Built { block, uploaded: false });
            }
            Ok(out)
        };
        match tokio::task::spawn_blocking(build).await {
            Ok(result) => result.map_err(FlushError::Build),
            Err(panic) => Err(FlushError::Build(panic.to_string())),
        }
    }

    /// Puts an object whose name no other attempt has: that it exists already means that an earlier try got through.
    async fn put(&self, path: Path, bytes: &bytes::Bytes) -> Result<(), FlushError> {
        let store: &Arc<dyn ObjectStore> = self.manifests.store();
        match store.put_opts(&path, PutPayload::from(bytes.clone()), PutMode::Create.into()).await {
            Ok(_) => Ok(()),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. })
                if self.is_whole(&path, bytes.len()).await =>
            {
                Ok(())
            }
            Err(source) => Err(FlushError::Put { path, source }),
        }
    }

    /// Stores report conflicts that wrote nothing as "exists" too, so the object is looked at.
    async fn is_whole(&self, path: &Path, length: usize) -> bool {
        let options = object_store::GetOptions::new().with_head(true);
        let found = self.manifests.store().get_opts(path, options).await;
        found.is_ok_and(|object| object.meta.size == length as u64)
    }
}

/// Commits, repeating the very same change while its outcome is unknown.
async fn commit(manifest: &ManifestStore, change: Change) -> Result<u64, CommitError> {
    let mut tries = 0;
    loop {
        match manifest.commit(change.clone()).await {
            Ok(state) => return Ok(state.version),
            Err(error) if error.is_unknown() && tries < 5 => {
                tries += 1;
                tokio::time::sleep(Duration::from_millis(200 << tries)).await;
            }
            Err(error) => return Err(error),
        }
    }
}
