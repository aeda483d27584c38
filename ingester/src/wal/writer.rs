//! The writer thread, and the handle that feeds it.
//!
//! Owns: the queue, how groups form, the thread's life. Does not own: what happens to a group (`core.rs`).
//!
//! While one `fdatasync` runs, the next group queues up: with many senders one sync carries many records, with one sender
//! nothing waits for company unless `linger` says so.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use spanhouse_common::id::{TenantId, WalPosition, WriterId};
use tokio::sync::{mpsc, oneshot};

use super::core::{Append, WalCore};
use super::record::{self, NewRecord};
use super::truncate::Segments;
use super::{Publish, WalConfig, WalError};

/// How often the thread looks for new work while it lingers or waits for a backoff to end.
const POLL: Duration = Duration::from_millis(5);

enum Command<P> {
    Append(Append<P>),
    RotateIfIdle,
    Close(oneshot::Sender<()>),
}

/// The WAL, open for appending. Clones share it; the thread ends when the last one is dropped or [`Wal::close`] is called,
/// after everything queued is written.
pub struct Wal<P> {
    queue: mpsc::Sender<Command<P>>,
    shared: Arc<Shared>,
}

struct Shared {
    segments: Arc<Segments>,
    ready: Arc<AtomicBool>,
    writer: WriterId,
    epoch: u64,
    max_record_bytes: u64,
}

impl<P> Clone for Wal<P> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), shared: Arc::clone(&self.shared) }
    }
}

impl<P> fmt::Debug for Wal<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shared { writer, epoch, .. } = &*self.shared;
        write!(f, "Wal({writer} epoch {epoch}, {} bytes)", self.shared.segments.total_bytes())
    }
}

impl<P: Send + 'static> Wal<P> {
    pub(super) fn spawn(
        mut core: WalCore,
        writer: WriterId,
        epoch: u64,
        config: &WalConfig,
        publish: impl Publish<P> + 'static,
    ) -> io::Result<Self> {
        let (queue, commands) = mpsc::channel(config.queue_records.max(1));
        let ready = Arc::clone(core.ready());
        let segments = Arc::clone(core.segments());
        let shared = Shared { segments, ready, writer, epoch, max_record_bytes: config.max_record_bytes() };
        let mut thread = WriterThread { commands, group_bytes: config.group_bytes, linger: config.linger };
        thread::Builder::new().name("wal-writer".into()).spawn(move || {
            // Also if `publish` panics: then appends are answered `Closed` and the process must not look ready.
            let guard = NotReadyAtEnd(Arc::clone(core.ready()));
            // At once, so that readiness is known before the first request.
            core.try_recover();
            let closing = thread.run(&mut core, &publish);
            if !closing.is_empty() {
                core.close_if_released();
            }
            // Files closed and not ready: only then is it said that the WAL is closed.
            drop((core, guard));
            for done in closing {
                // Whoever closed it may have stopped waiting.
                let _ = done.send(());
            }
        })?;
        Ok(Self { queue, shared: Arc::new(shared) })
    }

    /// Returns once the record is durable and published. Dropping the future after it was first polled to the queue does not
    /// take the record back: it is written and published all the same.
    pub async fn append(&self, record: NewRecord, payload: P) -> Result<WalPosition, WalError> {
        let (bytes, limit) = (record::max_encoded_len(&record) as u64, self.shared.max_record_bytes);
        if bytes > limit {
            return Err(WalError::TooLarge { bytes, limit });
        }
        let (reply, answer) = oneshot::channel();
        let append = Command::Append(Append { record, payload, reply });
        self.queue.send(append).await.map_err(|_| WalError::Closed)?;
        answer.await.unwrap_or(Err(WalError::Closed))
    }

    /// Everything of `tenant` up to and including `watermark` is committed to blocks. Removes files: call it where blocking is
    /// allowed.
    pub fn release(&self, tenant: &TenantId, watermark: WalPosition) {
        self.shared.segments.release(tenant, watermark);
    }

    /// Lets the open segment go if everything in it is released and nothing was written for `idle_rotate`. Call it now and
    /// then, so that an idle server ends with an almost empty WAL.
    pub fn rotate_if_idle(&self) {
        // A full queue means it is not idle.
        let _ = self.queue.try_send(Command::RotateIfIdle);
    }

    /// Writes what is queued and ends the thread. Appends that come later are answered `Closed`.
    pub async fn close(&self) {
        let (done, ended) = oneshot::channel();
        if self.queue.send(Command::Close(done)).await.is_ok() {
            // An error means the thread has ended already.
            let _ = ended.await;
        }
    }

    /// Whether appends can succeed: false before the first segment synced and after a failure until a new one has.
    pub fn is_ready(&self) -> bool {
        self.shared.ready.load(SeqCst)
    }

    pub fn writer_id(&self) -> WriterId {
        self.shared.writer
    }

    /// The epoch of every position given out by this process.
    pub fn epoch(&self) -> u64 {
        self.shared.epoch
    }

    /// Bytes of all segments.
    pub fn bytes(&self) -> u64 {
        self.shared.segments.total_bytes()
    }

    /// Number of segment files.
    pub fn segments(&self) -> usize {
        self.shared.segments.count()
    }
}

struct NotReadyAtEnd(Arc<AtomicBool>);

impl Drop for NotReadyAtEnd {
    fn drop(&mut self) {
        self.0.store(false, SeqCst);
    }
}

struct WriterThread<P> {
    commands: mpsc::Receiver<Command<P>>,
    group_bytes: u64,
    linger: Duration,
}

impl<P> WriterThread<P> {
    /// Runs until every handle is gone or one of them closed the WAL; returns who waits for the end.
    fn run(&mut self, core: &mut WalCore, publish: &dyn Publish<P>) -> Vec<oneshot::Sender<()>> {
        let mut closing = Vec::new();
        while let Some(first) = self.first(core) {
            let mut group = Vec::new();
            let mut bytes = 0;
            self.handle(first, core, &mut group, &mut bytes, &mut closing);
            let started = Instant::now();
            while bytes < self.group_bytes {
                match self.commands.try_recv() {
                    Ok(command) => self.handle(command, core, &mut group, &mut bytes, &mut closing),
                    Err(mpsc::error::TryRecvError::Disconnected) => break,
                    Err(mpsc::error::TryRecvError::Empty) => {
                        let left = self.linger.saturating_sub(started.elapsed());
                        if left.is_zero() || group.is_empty() || !closing.is_empty() {
                            break;
                        }
                        thread::sleep(left.min(Duration::from_micros(200)));
                    }
                }
            }
            core.commit(group, publish);
        }
        closing
    }

    /// Waits for a command; while the WAL is failed, tries to recover in between. `None`: closed and empty.
    fn first(&mut self, core: &mut WalCore) -> Option<Command<P>> {
        while core.is_failed() {
            match self.commands.try_recv() {
                Ok(command) => return Some(command),
                Err(mpsc::error::TryRecvError::Disconnected) => return None,
                Err(mpsc::error::TryRecvError::Empty) => thread::sleep(POLL),
            }
            core.try_recover();
        }
        self.commands.blocking_recv()
    }

    fn handle(
        &mut self,
        command: Command<P>,
        core: &mut WalCore,
        group: &mut Vec<Append<P>>,
        bytes: &mut u64,
        closing: &mut Vec<oneshot::Sender<()>>,
    ) {
        match command {
            Command::Append(append) => {
                *bytes += append.record.body.len() as u64;
                group.push(append);
            }
            Command::RotateIfIdle => core.rotate_if_idle(),
            Command::Close(done) => {
                // What is queued can still be received; nothing new can be sent.
                self.commands.close();
                closing.push(done);
            }
        }
    }
}
