//! Runs one merge: from blocks of the manifest to the commit that puts one in their place.
//!
//! Owns bringing inputs here, the memory and the thread of the merge, the upload, the commit. Does not own which blocks are merged
//! (the policy), nor how ([`spanhouse_common::block::merge`]).
//!
//! # Crash story
//!
//! 1. *Inputs fetched, output made*: on the local disk there are files without a name, which go with the process.
//! 2. *Filter, then spans put*: nobody knows of them, their names are unique to the attempt; the sweeper removes them.
//! 3. *Committed*: one version takes the inputs out and the output in. Readers of earlier versions still find the inputs, which
//!    the sweeper deletes after the query grace.
//!
//! Two compactors at the same inputs: the second commit finds them gone and is refused; its objects are deleted at once, or
//! swept if that fails too. A commit whose outcome stays unknown deletes nothing.

mod fetch;
mod spool;
mod upload;

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use object_store::ObjectStore;
use object_store::path::Path;
use spanhouse_common::block::BlockOrigin;
use spanhouse_common::block::merge::{MergeError, MergeInput, MergeSettings, Merged, merge};
use spanhouse_common::budget::{Share, ShareFull};
use spanhouse_common::fail_points::reached;
use spanhouse_common::id::{BlockId, TraceId};
use spanhouse_common::manifest::{BlockEntry, Change, CommitError, ManifestStore, Violation, WalRange, Window};
use spanhouse_common::store::paths::{BlockObject, TenantPaths};
use spanhouse_common::time::{Clock, UnixNanos};

use crate::policy::MAX_LEVEL;
use fetch::{FetchError, fetch};
use spool::Spool;

/// Memory of a merge: a row group's order and columns, pages, footers and dictionaries of the inputs.
pub const MERGE_BYTES: usize = 224 << 20;

/// How long a merge waits for memory that another has.
const PATIENCE: Duration = Duration::from_secs(60);

/// zstd level of a merged block. One that was merged twice is read for weeks and never written again: 3 % smaller for a third more of
/// the time its merge takes.
fn zstd_level(level: u8) -> i32 {
    if level >= MAX_LEVEL { 6 } else { 1 }
}

/// A merge to be run.
#[derive(Clone, Debug)]
pub struct Task {
    /// Of the output.
    pub window: Option<Window>,
    /// Of the output.
    pub level: u8,
    pub inputs: Vec<Arc<BlockEntry>>,
}

/// What a merge leaves out.
#[derive(Clone, Debug, Default)]
pub struct LeaveOut {
    pub traces: Arc<HashSet<TraceId>>,
    /// Spans go that started and were received before this.
    pub expired_before: UnixNanos,
}

/// How far a merge is, for whoever shows it.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes of inputs that are here.
    pub fetched: AtomicU64,
    /// Spans of inputs that are merged.
    pub merged: AtomicU64,
}

/// What a merge did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// `None` if nothing was left of the inputs.
    pub output: Option<BlockId>,
    pub rows_in: u64,
    pub rows_out: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub duplicates_removed: u64,
    pub expired: u64,
    pub dropped: u64,
}

/// Why a merge did not happen. Its inputs are as they were.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// Another compactor, retention or a deletion took an input out: plan anew.
    #[error("another commit took block {block} out first")]
    Overtaken { block: BlockId },
    /// The block must be left out of merges; see `spanhouse blocks verify`.
    #[error("block {block} is damaged: {why}")]
    Damaged { block: BlockId, why: String },
    #[error("no memory for a merge: {0}")]
    Memory(#[from] ShareFull),
    #[error("reading `{key}`: {source}")]
    Read { key: Path, source: object_store::Error },
    #[error("writing `{key}`: {source}")]
    Write { key: Path, source: object_store::Error },
    /// Room on the disk of the data directory is needed: about as much as the blocks being merged.
    #[error("spooling blocks to {}: {source}", dir.display())]
    Spool { dir: PathBuf, source: std::io::Error },
    /// A bug, or exhausted memory: these blocks are left alone for an hour.
    #[error("merging: {0}")]
    Merge(MergeError),
    /// As above: its place is in the log.
    #[error("merging panicked")]
    Panicked,
    #[error("starting the thread of a merge: {0}")]
    Thread(std::io::Error),
    #[error("committing the merge: {0}")]
    Commit(#[from] CommitError),
    #[error("stopped")]
    Stopped,
}

/// Runs merges of one process.
#[derive(Clone, Debug)]
pub struct Merger {
    pub store: Arc<dyn ObjectStore>,
    pub clock: Arc<dyn Clock>,
    pub memory: Share,
    /// Where files without a name are made.
    pub spool_dir: PathBuf,
}

/// Stops the merge on its thread when dropped.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

impl Merger {
    /// Runs one merge to its commit. It may be dropped at any wait.
    pub async fn run(
        &self,
        manifest: &ManifestStore,
        task: &Task,
        leave_out: LeaveOut,
        progress: &Arc<Progress>,
    ) -> Result<Done, TaskError> {
        let _memory = self.memory.take(MERGE_BYTES.min(self.memory.limit()), PATIENCE).await?;
        let inputs = self.fetch(manifest, task, progress).await?;
        reached("merge-fetched");
        let bytes_in = task.inputs.iter().map(|entry| entry.size_bytes + entry.filter_bytes).sum();
        let origin = BlockOrigin {
            id: BlockId::generate(),
            tenant: manifest.tenant().clone(),
            created: self.clock.now(),
            window: task.window,
            level: task.level,
            wal: joined(task.inputs.iter().flat_map(|entry| &entry.wal)),
            inputs: task.inputs.iter().map(|entry| entry.id).collect(),
            // The merge adds what the inputs themselves replaced.
            replaces: Vec::new(),
        };
        let id = origin.id;
        let (merged, spool) = self.merge(inputs, origin, leave_out, progress).await?;
        reached("merge-made");
        let paths = TenantPaths::new(manifest.tenant());
        let remove: Vec<BlockId> = task.inputs.iter().map(|entry| entry.id).collect();
        let mut done = Done {
            output: None,
            rows_in: merged.rows_in,
            rows_out: 0,
            bytes_in,
            bytes_out: 0,
            duplicates_removed: merged.duplicates_removed,
            expired: merged.expired,
            dropped: merged.dropped,
        };
        let mut change = Change { remove, ..Change::default() };
        if let Some(block) = &merged.block {
            let file = spool.finish().map_err(|source| self.spool_error(source))?;
            upload::put(&self.store, paths.block(id, BlockObject::Filter), &file_of(&block.filter)).await?;
            reached("merge-filter-put");
            upload::put(&self.store, paths.block(id, BlockObject::Spans), &file.bytes).await?;
            reached("merge-spans-put");
            let entry = block.meta.entry(file.bytes.len(), file.crc32c, block.tail_bytes, block.filter.len() as u64);
            (done.output, done.rows_out) = (Some(id), entry.rows);
            done.bytes_out = entry.size_bytes + entry.filter_bytes;
            change.add = vec![entry];
        }
        match manifest.commit_until_known(change).await {
            Ok(_) => {
                reached("merge-committed");
                Ok(done)
            }
            Err(CommitError::Conflict(Violation::BlockGone { id: block })) => {
                if manifest.current().blocks.contains_key(&id) {
                    // An attempt of ours whose reply was lost did succeed.
                    return Ok(done);
                }
                if let Some(output) = done.output {
                    self.discard(&paths, output).await;
                }
                Err(TaskError::Overtaken { block })
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn fetch(
        &self,
        manifest: &ManifestStore,
        task: &Task,
        progress: &Arc<Progress>,
    ) -> Result<Vec<MergeInput>, TaskError> {
        let paths = TenantPaths::new(manifest.tenant());
        let mut spool = Spool::new(self.spool_dir.clone());
        let mut places = Vec::with_capacity(task.inputs.len());
        for entry in &task.inputs {
            let key = paths.block(entry.id, BlockObject::Spans);
            match fetch(&self.store, &key, entry, &mut spool, progress).await {
                Ok(from) => places.push(from),
                Err(FetchError::Gone) => {
                    // The newest version tells whether it was replaced or lost.
                    let state =
                        manifest.refresh().await.map_err(|error| TaskError::Commit(CommitError::Unreadable(error)))?;
                    return Err(if state.blocks.contains_key(&entry.id) {
                        TaskError::Damaged { block: entry.id, why: format!("its object `{key}` is missing") }
                    } else {
                        TaskError::Overtaken { block: entry.id }
                    });
                }
                Err(FetchError::Damaged(why)) => return Err(TaskError::Damaged { block: entry.id, why }),
                Err(FetchError::Store(source)) => return Err(TaskError::Read { key, source }),
                Err(FetchError::Spool(source)) => return Err(self.spool_error(source)),
            }
        }
        let whole = spool.finish().map_err(|source| self.spool_error(source))?.bytes;
        let input = |(entry, from): (&Arc<BlockEntry>, u64)| MergeInput {
            id: entry.id,
            file: whole.slice(from, entry.size_bytes),
            tail_bytes: u64::from(entry.footer_bytes),
        };
        Ok(task.inputs.iter().zip(places).map(input).collect())
    }

    async fn merge(
        &self,
        inputs: Vec<MergeInput>,
        origin: BlockOrigin,
        leave_out: LeaveOut,
        progress: &Arc<Progress>,
    ) -> Result<(Merged, Spool), TaskError> {
        let stop = Arc::new(AtomicBool::new(false));
        let _stop_on_drop = StopOnDrop(Arc::clone(&stop));
        let (progress, dir) = (Arc::clone(progress), self.spool_dir.clone());
        let settings = MergeSettings {
            zstd_level: zstd_level(origin.level),
            dropped: leave_out.traces,
            expired_before: leave_out.expired_before,
            ..MergeSettings::default()
        };
        let work = move || {
            let mut spool = Spool::new(dir);
            let merged = merge(&inputs, origin, &settings, &mut spool, |rows| {
                progress.merged.store(rows, Relaxed);
                if stop.load(Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            merged.map(|merged| (merged, spool))
        };
        // A thread of its own, that ends with the merge: what its allocator kept goes back, which a pool's threads would hold on to.
        let (done, wait) = tokio::sync::oneshot::channel();
        let thread = std::thread::Builder::new().name("merge".to_owned()).spawn(move || {
            // Nobody waits if the merge was stopped. A panic drops the sender.
            drop(done.send(work()));
        });
        thread.map_err(TaskError::Thread)?;
        match wait.await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(MergeError::Input { block, why })) => Err(TaskError::Damaged { block, why }),
            Ok(Err(MergeError::Stopped)) => Err(TaskError::Stopped),
            Err(_) => Err(TaskError::Panicked),
            Ok(Err(error)) => Err(TaskError::Merge(error)),
        }
    }

    /// Deletes objects that were never referred to and never will be.
    async fn discard(&self, paths: &TenantPaths, id: BlockId) {
        use object_store::ObjectStoreExt as _;
        for object in [BlockObject::Spans, BlockObject::Filter] {
            if let Err(error) = self.store.delete(&paths.block(id, object)).await {
                tracing::debug!(block = %id, error = %error, "not deleted; the sweeper will");
            }
        }
    }

    fn spool_error(&self, source: std::io::Error) -> TaskError {
        TaskError::Spool { dir: self.spool_dir.clone(), source }
    }
}

fn file_of(bytes: &bytes::Bytes) -> spanhouse_common::block::merge::FileBytes {
    spanhouse_common::block::merge::FileBytes::Memory(bytes.clone())
}

/// WAL ranges of a writer that touch, as one.
fn joined<'a>(ranges: impl Iterator<Item = &'a WalRange>) -> Vec<WalRange> {
    let mut all: Vec<WalRange> = ranges.copied().collect();
    all.sort_unstable_by_key(|range| (range.writer, range.from, range.to));
    let mut out: Vec<WalRange> = Vec::new();
    for range in all {
        match out.last_mut() {
            Some(last) if last.writer == range.writer && range.from <= last.to => last.to = last.to.max(range.to),
            _ => out.push(range),
        }
    }
    out
}

#[cfg(test)]
mod tests;
