//! Replay: what the WAL holds and no block covers becomes live data again, before the server is ready.
//!
//! Never evaluates limits: each record names the spans that were refused when it was received. Records at or below their
//! tenant's watermark are in blocks already and skipped. What does not fit in memory is flushed on the way.

use std::collections::HashMap;
use std::path::PathBuf;

use spanhouse_common::budget::Share;
use spanhouse_common::fs::{Fs, write_atomic};
use spanhouse_common::id::{TenantId, WalPosition};
use spanhouse_common::manifest::Manifests;
use spanhouse_common::store::paths::encode_tenant;
use tokio::runtime::Handle;

use crate::flush::Flusher;
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

    pub(crate) fn record(&mut self, record: ReplayedRecord) -> Result<(), ReplayStopped> {
        let tenant = &record.meta.tenant;
        let watermark = match self.watermarks.get(tenant) {
            Some(known) => *known,
            None => {
                let opened = self.runtime.block_on(self.manifests.for_reading(tenant));
                let manifest = opened.map_err(|e| ReplayStopped::Manifest { tenant: tenant.clone(), why: e.to_string() })?;
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
        self.summary.records += 1;
        self.summary.spans += walked.batch.len() as u64;
        self.metrics.replayed(walked.batch.len());
        walked.batch.received_max = record.meta.received;
        let bytes = resident(walked.batch.heap_bytes());
        if self.memory.used() + bytes > self.memory.limit() / 2 {
            for cut in self.live.cut(true, false) {
                self.runtime.block_on(self.flusher.flush(&cut));
                self.watermarks.insert(cut.tenant.clone(), cut.to);
            }
        }
        // After the flush above there is room unless one record is larger than half the share: then it is taken all the same.
        let lease = self.memory.try_take(0).ok().map(|mut lease| {
            lease.resize(bytes);
            lease
        });
        self.live.publish(tenant, record.position, walked.batch, lease);
        Ok(())
    }
}
