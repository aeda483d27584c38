//! The writer without its thread: groups of records in, durable positions out. Synchronous, so that tests drive it step by step.
//!
//! Owns: the open segment, sequences, the failed state and its backoff. Does not own: the queue (`writer.rs`), replay, when a
//! segment may go (`truncate.rs`). The crash story of each step is in `mod.rs`.

use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use spanhouse_common::fail_points::reached;
use spanhouse_common::fs::{Fs, FsFile};
use spanhouse_common::id::{TenantId, WalPosition};
use spanhouse_common::time::Clock;
use tokio::sync::oneshot;

use super::identity::Identity;
use super::metrics::WalMetrics;
use super::record::{self, NewRecord, Salt};
use super::segment::{HEADER_BYTES, SegmentHeader, SegmentId};
use super::truncate::Segments;
use super::{Publish, WalConfig, WalError};

const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(2);

/// A record on its way: what to write, what to publish, whom to tell.
#[derive(Debug)]
pub(super) struct Append<P> {
    pub record: NewRecord,
    pub payload: P,
    pub reply: oneshot::Sender<Result<WalPosition, WalError>>,
}

impl<P> Append<P> {
    fn refuse(self, why: WalError) {
        // A caller that went away does not need to know.
        let _ = self.reply.send(Err(why));
    }
}

#[derive(Debug)]
struct OpenSegment {
    id: SegmentId,
    file: Box<dyn FsFile>,
    salt: Salt,
    /// Length up to which everything is durable; equal to the file's length between groups.
    len: u64,
    last_append: Duration,
}

#[derive(Debug)]
struct Failure {
    error: WalError,
    retry_at: Duration,
}

#[derive(Debug)]
pub(super) struct WalCore {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    config: WalConfig,
    clock: Arc<dyn Clock>,
    metrics: WalMetrics,
    segments: Arc<Segments>,
    ready: Arc<AtomicBool>,
    identity: Identity,
    epoch: u64,
    next_sequence: u64,
    next_index: u32,
    current: Option<OpenSegment>,
    failure: Option<Failure>,
    backoff: Duration,
}

/// A group that fits the open segment, encoded: positions given out, nothing written yet.
struct Batch<P> {
    appends: Vec<(WalPosition, Append<P>)>,
    /// Heads of all records back to back, and where each ends; bodies stay where they are.
    heads: Vec<u8>,
    head_ends: Vec<usize>,
    bytes: u64,
}

#[derive(Debug)]
pub(super) struct CoreParts {
    pub fs: Arc<dyn Fs>,
    pub dir: PathBuf,
    pub config: WalConfig,
    pub clock: Arc<dyn Clock>,
    pub metrics: WalMetrics,
    pub segments: Arc<Segments>,
    pub identity: Identity,
    pub epoch: u64,
}

impl WalCore {
    pub(super) fn new(parts: CoreParts) -> Self {
        let CoreParts { fs, dir, config, clock, metrics, segments, identity, epoch } = parts;
        let ready = Arc::new(AtomicBool::new(false));
        let (next_sequence, next_index, backoff) = (1, 0, FIRST_BACKOFF);
        Self {
            fs,
            dir,
            config,
            clock,
            metrics,
            segments,
            ready,
            identity,
            epoch,
            next_sequence,
            next_index,
            current: None,
            failure: None,
            backoff,
        }
    }

    pub(super) fn ready(&self) -> &Arc<AtomicBool> {
        &self.ready
    }

    pub(super) fn segments(&self) -> &Arc<Segments> {
        &self.segments
    }

    pub(super) fn is_failed(&self) -> bool {
        self.failure.is_some()
    }

    /// Writes `group` with as few syncs as there are segments to write to, publishes in sequence order, then answers.
    pub(super) fn commit<P>(&mut self, group: Vec<Append<P>>, publish: &dyn Publish<P>) {
        let mut queue = group.into_iter().peekable();
        while queue.peek().is_some() {
            let done = self.ensure_segment().and_then(|()| {
                let batch = self.take_batch(&mut queue);
                if batch.appends.is_empty() {
                    if queue.peek().is_some() {
                        self.close_current();
                    }
                    return Ok(());
                }
                self.commit_batch(batch, publish)
            });
            if let Err(error) = done {
                // Without trying each of them against a failed disk: all get the same answer at once.
                queue.by_ref().for_each(|append| append.refuse(error.clone()));
            }
        }
    }

    /// Tries to open a segment if the last one failed and the backoff is over: without traffic nobody else would, and a
    /// server that is not ready gets no traffic.
    pub(super) fn try_recover(&mut self) {
        // The answer is in the ready flag and in the failure kept for the next append.
        let _ = self.ensure_segment();
    }

    /// Closes a segment that holds nothing anybody needs and that nobody wrote to for a while, so that it can go.
    pub(super) fn rotate_if_idle(&mut self) {
        let Some(open) = &self.current else { return };
        let idle = self.clock.monotonic().saturating_sub(open.last_append) >= self.config.idle_rotate;
        if idle && open.len > HEADER_BYTES as u64 && self.segments.is_covered(open.id) {
            self.close_current();
        }
    }

    /// At the end of a process: a segment that holds nothing anybody needs would only be read again by the next start.
    pub(super) fn close_if_released(&mut self) {
        if self.current.as_ref().is_some_and(|open| self.segments.is_covered(open.id)) {
            self.close_current();
        }
    }

    fn ensure_segment(&mut self) -> Result<(), WalError> {
        if self.current.is_some() {
            return Ok(());
        }
        if let Some(failure) = &self.failure
            && self.clock.monotonic() < failure.retry_at
        {
            return Err(failure.error.clone());
        }
        match self.open_segment() {
            Ok(open) => {
                self.current = Some(open);
                if self.failure.take().is_some() {
                    tracing::info!(epoch = self.epoch, "the WAL takes records again");
                }
                self.set_ready(true);
                Ok(())
            }
            Err(error) => Err(self.fail("open a segment", &error)),
        }
    }

    fn open_segment(&mut self) -> io::Result<OpenSegment> {
        if self.identity.epoch < self.epoch {
            let raised = Identity { epoch: self.epoch, ..self.identity };
            raised.save(&*self.fs, &self.dir)?;
            self.identity = raised;
        }
        let id = SegmentId { epoch: self.epoch, index: self.next_index };
        // Also after a failure: the file may exist.
        self.next_index =
            self.next_index.checked_add(1).ok_or_else(|| io::Error::other("no segment index is left in this epoch"))?;
        let header = SegmentHeader::new(self.identity.writer, &self.identity.secret, id, self.next_sequence);
        let path = self.dir.join(id.file_name());
        let mut file = self.fs.create(&path)?;
        let durable = file
            .append(&mut [IoSlice::new(&header.encode())])
            .and_then(|()| self.sync(&mut *file))
            .and_then(|()| if self.planted(super::Canary::SkipDirSync) { Ok(()) } else { self.fs.sync_dir(&self.dir) });
        if let Err(error) = durable {
            // It holds no record. If it stays, the next start removes it.
            let _ = self.fs.remove_file(&path);
            return Err(error);
        }
        let len = HEADER_BYTES as u64;
        self.segments.open(id, path, len);
        reached("wal-segment-opened");
        Ok(OpenSegment { id, file, salt: header.salt, len, last_append: self.clock.monotonic() })
    }

    /// Takes from the queue what fits the open segment and the cap, and gives it positions. Empty with a queue that is not:
    /// the segment is full.
    fn take_batch<P>(&mut self, queue: &mut std::iter::Peekable<std::vec::IntoIter<Append<P>>>) -> Batch<P> {
        let mut batch = Batch { appends: Vec::new(), heads: Vec::new(), head_ends: Vec::new(), bytes: 0 };
        let Some(open) = &self.current else { return batch };
        let total = self.segments.total_bytes();
        let room = self.config.segment_bytes.saturating_sub(open.len);
        while let Some(next) = queue.peek() {
            let need = record::max_encoded_len(&next.record) as u64;
            let limit = self.config.max_record_bytes();
            let refusal = if need > limit {
                Some(WalError::TooLarge { bytes: need, limit })
            } else if total + batch.bytes + need > self.config.max_bytes {
                Some(WalError::Capped { limit: self.config.max_bytes })
            } else {
                None
            };
            if refusal.is_none() && batch.bytes + need > room {
                break;
            }
            let Some(append) = queue.next() else { break };
            if let Some(why) = refusal {
                append.refuse(why);
                continue;
            }
            let position = WalPosition { epoch: self.epoch, sequence: self.next_sequence };
            self.next_sequence += 1;
            let before = batch.heads.len();
            record::encode_head(&mut batch.heads, open.salt, position, &append.record);
            batch.bytes += (batch.heads.len() - before + append.record.body.len()) as u64;
            batch.head_ends.push(batch.heads.len());
            batch.appends.push((position, append));
        }
        batch
    }

    fn commit_batch<P>(&mut self, batch: Batch<P>, publish: &dyn Publish<P>) -> Result<(), WalError> {
        let Some(mut open) = self.current.take() else { return Ok(()) };
        let written = {
            let mut parts = Vec::with_capacity(batch.appends.len() * 2);
            let mut from = 0;
            for (end, (_, append)) in batch.head_ends.iter().zip(&batch.appends) {
                parts.push(IoSlice::new(&batch.heads[from..*end]));
                parts.push(IoSlice::new(&append.record.body));
                from = *end;
            }
            open.file.append(&mut parts)
        };
        if let Err(error) = written {
            self.metrics.write_failures.inc();
            if error.kind() == io::ErrorKind::StorageFull {
                // Give back what the half-written group took. Only here: a file with a failed sync must not be touched.
                let _ = open.file.truncate(open.len);
            }
            return Err(self.abandon(open, batch, "write to", &error));
        }
        if self.planted(super::Canary::AckEarly) {
            open.len += batch.bytes;
            self.finish(&open, batch, publish);
            let _ = self.sync(&mut *open.file);
            self.current = Some(open);
            return Ok(());
        }
        if let Err(error) = self.sync(&mut *open.file) {
            return Err(self.abandon(open, batch, "sync", &error));
        }
        open.len += batch.bytes;
        open.last_append = self.clock.monotonic();
        self.backoff = FIRST_BACKOFF;
        self.finish(&open, batch, publish);
        self.current = Some(open);
        Ok(())
    }

    /// The group is durable: note it, make it visible in order, tell its senders.
    fn finish<P>(&mut self, open: &OpenSegment, batch: Batch<P>, publish: &dyn Publish<P>) {
        self.metrics.records.inc_by(batch.appends.len() as u64);
        self.metrics.written_bytes.inc_by(batch.bytes);
        self.metrics.group_records.observe(batch.appends.len() as f64);
        self.segments.resize(open.id, open.len);
        let tenant = |(position, append): &'_ (WalPosition, Append<P>)| -> (TenantId, u64) {
            (append.record.meta.tenant.clone(), position.sequence)
        };
        let noted: Vec<(TenantId, u64)> = batch.appends.iter().map(tenant).collect();
        self.segments.note(open.id, noted.iter().map(|(tenant, sequence)| (tenant, *sequence)));
        let mut replies = Vec::with_capacity(batch.appends.len());
        for (position, append) in batch.appends {
            publish.publish(position, &append.record.meta, append.payload);
            replies.push((position, append.reply));
        }
        reached("wal-published");
        for (position, reply) in replies {
            // A caller that went away has its record all the same.
            let _ = reply.send(Ok(position));
        }
    }

    /// The group failed: seal its segment for good, enter the failed state, tell the group's senders.
    fn abandon<P>(&mut self, open: OpenSegment, batch: Batch<P>, doing: &str, error: &io::Error) -> WalError {
        if let Ok(len) = open.file.len() {
            self.segments.resize(open.id, len);
        }
        let id = open.id;
        drop(open);
        // Goes at once if nothing acknowledged is in it.
        self.segments.close(id);
        let error = self.fail(doing, error);
        batch.appends.into_iter().for_each(|(_, append)| append.refuse(error.clone()));
        error
    }

    fn fail(&mut self, doing: &str, error: &io::Error) -> WalError {
        tracing::error!(%error, epoch = self.epoch, retry_in = ?self.backoff, "cannot {doing} the WAL; nothing is acknowledged until a new segment syncs");
        let error = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => WalError::Full,
            _ => WalError::Failed { why: format!("cannot {doing} the WAL: {error}").into() },
        };
        self.failure = Some(Failure { error: error.clone(), retry_at: self.clock.monotonic() + self.backoff });
        self.backoff = (self.backoff * 2).min(LONGEST_BACKOFF);
        self.set_ready(false);
        error
    }

    fn close_current(&mut self) {
        if let Some(open) = self.current.take() {
            self.segments.close(open.id);
        }
    }

    fn sync(&self, file: &mut dyn FsFile) -> io::Result<()> {
        if self.planted(super::Canary::SkipSync) {
            return Ok(());
        }
        reached("wal-written");
        let started = self.clock.monotonic();
        let synced = file.sync_data();
        reached("wal-synced");
        self.metrics.sync_seconds.observe(self.clock.monotonic().saturating_sub(started).as_secs_f64());
        let counter = if synced.is_ok() { &self.metrics.syncs } else { &self.metrics.sync_failures };
        counter.inc();
        synced
    }

    fn set_ready(&self, ready: bool) {
        self.ready.store(ready, SeqCst);
        self.metrics.ready.set(i64::from(ready));
    }

    /// Whether a test planted this bug. Never, outside of tests.
    fn planted(&self, bug: super::Canary) -> bool {
        #[cfg(any(test, feature = "test-util"))]
        return self.config.canary == Some(bug);
        #[cfg(not(any(test, feature = "test-util")))]
        {
            let _ = bug;
            false
        }
    }
}
