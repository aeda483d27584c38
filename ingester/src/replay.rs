//! Replay: what the WAL holds and no block covers becomes live data again, before the server is ready.
//!
//! Never evaluates limits: each record names the spans that were refused when it was received. Records at or below their
//! tenant's watermark are in blocks already and skipped. What does not fit in memory is flushed on the way. A tenant whose
//! manifest must be repaired first does not keep the others waiting: what does not fit of it stays in the WAL alone, is not
//! found by queries until the repair and a restart, and the tenant is among the stopped ones.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use spanhouse_common::budget::Share;
use spanhouse_common::fs::{Fs, write_atomic};
use spanhouse_common::id::{TenantId, WalPosition};
use spanhouse_common::manifest::{ManifestError, Manifests};
use spanhouse_common::store::paths::encode_tenant;
use tokio::runtime::Handle;

use crate::flush::{Flusher, Until};
use crate::ingest::{decode, resident};
use crate::live::Live;
use crate::metrics::PipelineMetrics;
use crate::otlp::walk::WalkOptions;
use crate::wal::{RecordMeta, ReplayedRecord};

/// What replay did, for the log and `/status`.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReplaySummary {
    pub records: u64,
    pub spans: u64,
    /// Records that blocks cover already.
    pub covered: u64,
    /// Records whose checksum is right but whose body does not decode: a bug, or a record of another version. Their bodies are
    /// kept in the WAL's `undecodable` directory, from which only an operator removes them.
    pub undecodable: u64,
    /// Records that stay in the WAL only, as their tenant is stopped.
    pub left: u64,
}

/// Decoded bytes are not limited at replay: what was accepted must come back. Bounds only what a damaged length could ask for.
const MAX_DECODED: usize = 1 << 30;

/// Why replay stopped.
#[derive(Debug, thiserror::Error)]
pub enum ReplayStopped {
    #[error("reading the manifest of tenant `{tenant}`: {why}")]
    Manifest { tenant: TenantId, why: String },
    /// The segment of the record would be removed with the next flush: without a copy the server must not go on.
    #[error("keeping a record that does not decode in {}: {why}", path.display())]
    Keep { path: PathBuf, why: std::io::Error },
}

/// Takes replayed records in. Blocking: run it where blocking is allowed.
pub(crate) struct Replayer<'a> {
    pub(crate) live: &'a Live,
    pub(crate) flusher: &'a Flusher,
    pub(crate) manifests: &'a Manifests,
    pub(crate) memory: &'a Share,
    pub(crate) metrics: &'a PipelineMetrics,
    pub(crate) runtime: Handle,
    pub(crate) fs: &'a dyn Fs,
    /// Where records that do not decode are kept.
    pub(crate) undecodable: PathBuf,
    pub(crate) watermarks: HashMap<TenantId, WalPosition>,
    /// Of these a record was left, and so must be every later one: a watermark may not pass over it.
    pub(crate) left: HashSet<TenantId>,
    /// Memory of cuts that stay live because their tenant was stopped.
    pub(crate) stuck_bytes: usize,
    pub(crate) summary: ReplaySummary,
}

impl Replayer<'_> {
    /// Copies the body of a record aside, durably.
    fn keep(&self, record: &ReplayedRecord) -> Result<PathBuf, ReplayStopped> {
        let RecordMeta { tenant, encoding, compression, .. } = &record.meta;
        let WalPosition { epoch, sequence } = record.position;
        let name = format!("{epoch:016x}-{sequence:016x}.{}.{encoding:?}.{compression:?}", encode_tenant(tenant));
        let path = self.undecodable.join(name);
        let kept = self.fs.create_dir_all(&self.undecodable).and_then(|()| write_atomic(self.fs, &path, &record.body));
        kept.map(|()| path.clone()).map_err(|why| ReplayStopped::Keep { path, why })
    }

    /// Leaves a record in the WAL alone.
    fn leave(&mut self, tenant: &TenantId, why: String) {
        self.flusher.stopped().stop(tenant, Until::Restart, why);
        self.left.insert(tenant.clone());
        self.summary.left += 1;
    }

    pub(crate) fn record(&mut self, record: ReplayedRecord) -> Result<(), ReplayStopped> {
        let tenant = &record.meta.tenant;
        if self.left.contains(tenant) {
            self.summary.left += 1;
            return Ok(());
        }
        // Nothing of it would leave memory again: what is in the WAL stays there.
        if let Some(why) = self.flusher.stopped().why(tenant) {
            self.leave(tenant, why.to_string());
            return Ok(());
        }
        let watermark = match self.watermarks.get(tenant) {
            Some(known) => *known,
            None => {
                let manifest = match self.runtime.block_on(self.manifests.for_reading(tenant)) {
                    Ok(manifest) => manifest,
                    // What blocks cover is unknown: any record of it shown might be shown twice.
                    Err(error @ ManifestError::Damaged(_)) => {
                        self.leave(tenant, error.to_string());
                        return Ok(());
                    }
                    Err(error) => {
                        return Err(ReplayStopped::Manifest { tenant: tenant.clone(), why: error.to_string() });
                    }
                };
                let watermark = manifest.map(|m| m.current().watermark(self.live.writer())).unwrap_or_default();
                self.watermarks.insert(tenant.clone(), watermark);
                watermark
            }
        };
        if record.position <= watermark {
            self.summary.covered += 1;
            return Ok(());
        }
        let options = WalkOptions { max_attribute_bytes: None, refused: &record.meta.refused };
        let decoded = decode(&record.body, record.meta.encoding, record.meta.compression, MAX_DECODED, options);
        let (mut walked, _) = match decoded {
            Ok(decoded) => decoded,
            Err(error) => {
                let kept = self.keep(&record)?;
                tracing::error!(tenant = %tenant, position = %record.position, error = %error, kept = %kept.display(), "wal record does not decode");
                self.summary.undecodable += 1;
                self.metrics.replay_failed();
                return Ok(());
            }
        };
        walked.batch.received_max = record.meta.received;
        let bytes = resident(walked.batch.heap_bytes());
        // What a stopped tenant keeps for good must not make the others flush at every record.
        let room = self.memory.limit() / 2 + self.stuck_bytes.min(self.memory.limit() / 4);
        if self.memory.used() + bytes > room {
            for cut in self.live.cut(true, false) {
                if self.runtime.block_on(self.flusher.flush_until(&cut, Until::Restart)).is_ok() {
                    self.watermarks.insert(cut.tenant.clone(), cut.to);
                } else {
                    self.stuck_bytes += cut.batches.iter().map(|live| resident(live.spans.heap_bytes())).sum::<usize>();
                }
            }
            if let Some(why) = self.flusher.stopped().why(tenant)
                && self.memory.used() + bytes > room
            {
                self.leave(tenant, why.to_string());
                return Ok(());
            }
        }
        self.summary.records += 1;
        self.summary.spans += walked.batch.len() as u64;
        self.metrics.replayed(walked.batch.len());
        // After the flush above there is room unless one record is larger than half the share: then it is taken all the same.
        let lease = self.memory.try_take(0).ok().map(|mut lease| {
            lease.resize(bytes);
            lease
        });
        self.live.publish(tenant, record.position, walked.batch, lease);
        Ok(())
    }
}
