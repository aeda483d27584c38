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
//! for new ones, because the sweeper takes what is long there and unreferenced. Where trying again cannot help, or not until
//! somebody repairs the manifest, the tenant is stopped: see [`StoppedTenants`].

mod metrics;
mod stopped;
mod windows;

use std::sync::Arc;
use std::time::Duration;

use object_store::path::Path;
use spanhouse_common::batch::SpanBatch;
use spanhouse_common::block::{Block, BlockInput, BlockOrigin, WriterOptions, write_block};
use spanhouse_common::budget::Share;
use spanhouse_common::fail_points::reached;
use spanhouse_common::id::{BlockId, TenantId, WalPosition};
use spanhouse_common::manifest::{
    Change, CommitError, ManifestError, ManifestState, Manifests, Violation, WalRange, WriteManifestError,
};
use spanhouse_common::retention::Retention;
use spanhouse_common::store::paths::{BlockObject, TenantPaths};
use spanhouse_common::store::put_new;
use spanhouse_common::time::Clock;

use crate::live::{Cut, Live};
pub use metrics::FlushMetrics;
pub use stopped::StoppedTenants;
pub(crate) use stopped::Until;
use windows::split;

/// Far below the age at which the sweeper deletes objects that nothing refers to.
const REBUILD_AFTER: Duration = Duration::from_secs(6 * 3600);

/// A manifest that is damaged for so long is damaged: a reply that was cut short looks the same once. Longer than it takes until
/// the manifest is looked at again.
const DAMAGED_AFTER: Duration = Duration::from_secs(12);

/// Memory of a flush beside the spans it reads: row order, copied rows (112), attributes by column
/// (12 each), one column's values, encoded pages. Summed from their sizes, not measured.
const ENCODER_BYTES_PER_SPAN: usize = 250;

/// Settings of the flush.
#[derive(Clone, Copy, Debug)]
pub struct FlushConfig {
    /// Length of a time window in seconds.
    pub window_seconds: u64,
    pub writer: WriterOptions,
}

/// Writes cuts to blocks.
#[derive(Debug)]
pub struct Flusher {
    live: Arc<Live>,
    manifests: Arc<Manifests>,
    clock: Arc<dyn Clock>,
    config: FlushConfig,
    /// Starts further back than this go to the outlier block.
    retention: Retention,
    metrics: FlushMetrics,
    stopped: Arc<StoppedTenants>,
    /// One block after the other: each takes a CPU and its memory for a moment.
    building: tokio::sync::Semaphore,
    /// Where the encoder's memory is taken from.
    memory: Option<Share>,
}

/// The cut was not flushed and this process will not try again: its tenant is among [`StoppedTenants`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped;

/// What a failed attempt means for the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outlook {
    /// It may succeed.
    TryAgain,
    /// It may succeed once somebody repaired the manifest.
    Repair,
    /// The same cut will never succeed.
    Hopeless,
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
    Manifest(#[from] WriteManifestError),
    /// Blocks of another process, or of this one before a repair of the manifest: what is live might be stored twice.
    #[error(
        "blocks hold a part of it already, up to {covered}: see that no other process runs on a copy of this data directory, \
         then restart this one; its replay skips what is covered"
    )]
    Covered { covered: WalPosition },
}

impl FlushError {
    fn outlook(&self) -> Outlook {
        match self {
            Self::Put { .. } | Self::Manifest(WriteManifestError::Tenants(_)) => Outlook::TryAgain,
            // The same rows give the same error or panic.
            Self::Build(_) | Self::Covered { .. } => Outlook::Hopeless,
            Self::Commit(error) | Self::Manifest(WriteManifestError::Commit(error)) => match error {
                CommitError::Unreadable(ManifestError::Damaged(_)) => Outlook::Repair,
                error if error.is_retryable() => Outlook::TryAgain,
                _ => Outlook::Hopeless,
            },
        }
    }
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
        retention: Retention,
        metrics: FlushMetrics,
    ) -> Self {
        let stopped = Arc::new(StoppedTenants::new(metrics.stopped_tenants.clone()));
        let building = tokio::sync::Semaphore::new(1);
        Self { live, manifests, clock, config, retention, metrics, stopped, building, memory: None }
    }

    /// Takes what the encoder needs beside the spans from `memory`: senders wait rather than memory grow.
    #[must_use]
    pub fn charging(self, memory: Share) -> Self {
        Self { memory: Some(memory), ..self }
    }

    pub fn stopped(&self) -> &Arc<StoppedTenants> {
        &self.stopped
    }

    /// Flushes one cut, trying again until it is committed. Returns the position the tenant's records are released to.
    ///
    /// Not cancel-safe in the sense of work done: dropping it leaves the cut frozen, so only a process that ends may.
    pub async fn flush(&self, cut: &Cut) -> Result<WalPosition, Stopped> {
        self.flush_until(cut, Until::Repaired).await
    }

    /// The same, but a manifest that must be repaired ends it too.
    pub(crate) async fn flush_until(&self, cut: &Cut, until: Until) -> Result<WalPosition, Stopped> {
        let began = self.clock.monotonic();
        let mut damaged: Option<Duration> = None;
        let mut built: Option<BuiltCut> = None;
        let mut wait = Duration::from_millis(100);
        loop {
            built = built.filter(|cut| self.clock.monotonic().saturating_sub(cut.at) < REBUILD_AFTER);
            match self.attempt(cut, &mut built).await {
                Ok(version) => {
                    self.live.committed(cut, version);
                    self.metrics.flushed(self.clock.monotonic().saturating_sub(began));
                    self.stopped.repaired(&cut.tenant);
                    return Ok(cut.to);
                }
                Err(error) => {
                    self.metrics.failed();
                    let (outlook, now) = (error.outlook(), self.clock.monotonic());
                    damaged = (outlook == Outlook::Repair).then(|| damaged.unwrap_or(now));
                    if outlook == Outlook::Hopeless {
                        self.stopped.stop(&cut.tenant, Until::Restart, error.to_string());
                        return Err(Stopped);
                    }
                    if damaged.is_some_and(|since| now.saturating_sub(since) >= DAMAGED_AFTER) {
                        self.stopped.stop(&cut.tenant, until, error.to_string());
                        if until == Until::Restart {
                            return Err(Stopped);
                        }
                    } else {
                        let retry_ms = wait.as_millis() as u64;
                        tracing::warn!(tenant = %cut.tenant, error = %error, retry_ms, "flush failed");
                    }
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
                if cut.batches.first().is_some_and(|first| first.from <= wal.from) {
                    return Err(FlushError::Covered { covered: wal.from });
                }
                let blocks = self.build(cut, wal).await?;
                built.insert(BuiltCut { blocks, wal, at })
            }
        };
        reached("flush-built");
        let paths = TenantPaths::new(&cut.tenant);
        for Built { block, uploaded } in blocks.iter_mut().filter(|b| !b.uploaded) {
            let id = block.meta.origin.id;
            self.put(paths.block(id, BlockObject::Filter), &block.filter).await?;
            reached("flush-filter-put");
            self.put(paths.block(id, BlockObject::Spans), &block.parquet).await?;
            reached("flush-spans-put");
            *uploaded = true;
        }
        let add = blocks
            .iter()
            .map(|Built { block, .. }| block.meta.entry_of(&block.parquet, block.tail_bytes, block.filter.len() as u64))
            .collect();
        let change = Change { add, watermarks: vec![*wal], ..Change::default() };
        let state = match manifest.commit_until_known(change).await {
            // An attempt whose outcome was unknown, and is no longer remembered, did succeed.
            Err(CommitError::Conflict(Violation::AlreadyCovered { .. })) if has_all(&manifest.current(), blocks) => {
                manifest.current().version
            }
            other => other?.version,
        };
        reached("flush-committed");
        for Built { block, .. } in blocks {
            self.metrics.block(block.parquet.len() + block.filter.len(), block.meta.rows, block.meta.duplicates_removed);
        }
        Ok(state)
    }

    async fn build(&self, cut: &Cut, wal: WalRange) -> Result<Vec<Built>, FlushError> {
        let batches: Vec<Arc<SpanBatch>> = cut.batches.iter().map(|live| Arc::clone(&live.spans)).collect();
        let (tenant, now, config) = (cut.tenant.clone(), self.clock.now(), self.config);
        let retention = self.retention.of(&tenant);
        let build = move || -> Result<Vec<Built>, String> {
            let mut out = Vec::new();
            for (window, rows) in split(&batches, now, config.window_seconds, retention) {
                let origin = BlockOrigin {
                    id: BlockId::generate(),
                    tenant: TenantId::clone(&tenant),
                    created: now,
                    window,
                    level: 0,
                    wal: vec![wal],
                    inputs: Vec::new(),
                    replaces: Vec::new(),
                };
                let input = BlockInput { batches: batches.clone(), rows };
                let block = write_block(&input, origin, config.writer).map_err(|e| e.to_string())?;
                out.push(Built { block, uploaded: false });
            }
            Ok(out)
        };
        // Closed never: it lives as long as the flusher.
        let _turn = self.building.acquire().await.ok();
        let mut scratch = self.memory.as_ref().and_then(|memory| memory.try_take(0).ok());
        if let Some(lease) = &mut scratch {
            lease.resize(cut.spans * ENCODER_BYTES_PER_SPAN);
        }
        match tokio::task::spawn_blocking(build).await {
            Ok(result) => result.map_err(FlushError::Build),
            Err(panic) => Err(FlushError::Build(panic.to_string())),
        }
    }

    /// Puts an object whose name no other attempt has.
    async fn put(&self, path: Path, bytes: &bytes::Bytes) -> Result<(), FlushError> {
        let put = put_new(self.manifests.store().as_ref(), &path, bytes.clone()).await;
        put.map_err(|source| FlushError::Put { path, source })
    }
}

/// Whether the manifest names each of the blocks, or one that replaced it.
fn has_all(state: &ManifestState, blocks: &[Built]) -> bool {
    let replaced = |id: &BlockId| state.blocks.values().any(|entry| entry.replaces.contains(id));
    blocks.iter().map(|built| built.block.meta.origin.id).all(|id| state.blocks.contains_key(&id) || replaced(&id))
}

#[cfg(test)]
mod tests;
