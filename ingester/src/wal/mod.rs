//! The write-ahead log on local disk: an append that returned is durable, and visible in live data.
//!
//! Owns: segments, records, group commit, replay, removal of segments nobody needs, the identity of the writer. Does not
//! own: what a body means, limits and refusals (a record names the refused spans, replay applies them), watermarks (the
//! manifest has them, the caller skips what they cover and tells [`Wal::release`]), the lock on the data directory
//! ([`spanhouse_common::fs::DataDirLock`], taken by whoever opens the directory before it opens the WAL).
//!
//! Reading order: `FORMAT.md`, [`record`](RecordMeta), `segment`, `identity`, `core` (one group), `writer` (the thread),
//! `replay`, `progress`, `truncate`.
//!
//! # Crash story
//!
//! What is on disk after kill -9 or a power cut, by what was going on:
//!
//! 1. *First start.* The directory and the `writer` file are made durable before anything else; a cut leaves no `writer` file
//!    or a whole one, never a segment without one.
//! 2. *Start.* Nothing is changed but `replay-progress`. The new epoch is one above everything seen.
//! 3. *Opening a segment.* The epoch is durable in `writer`, then the segment's header is synced, then the directory. Until
//!    all three returned, no record is written to it: a cut leaves a file without records, or none.
//! 4. *Writing a group.* A cut leaves any part of it, torn at any block, possibly with holes. Nobody was told yes. Replay hands
//!    out those of its records that are whole; senders retry, the copies are found by fingerprint later.
//! 5. *After fdatasync.* All of the group is there, also if nobody was told yet.
//! 6. *Write or fdatasync fails.* The segment is closed for good: pages of a failed sync may be gone though marked clean, so a
//!    second sync proves nothing. What was acknowledged before is durable; what was not may show up at replay. The next
//!    group goes to a new file. Its sequences are above those of the failed group, which are not used again.
//! 7. *Removal.* Not synced: a segment may come back, all of it below the watermarks.
//! 8. *Replay.* A cut changes nothing. Damage is copied to `quarantine/` and skipped at each replay until the segment goes.

mod core;
mod identity;
mod metrics;
mod progress;
mod record;
mod replay;
mod segment;
#[cfg(test)]
mod tests;
mod truncate;
mod writer;

use std::sync::Arc;
use std::time::Duration;

use spanhouse_common::id::WalPosition;

pub use metrics::WalMetrics;
pub use record::{MAX_RECORD_BYTES, NewRecord, RecordMeta};
pub use replay::{Damage, OpenError, Opened, ReplayError, ReplayReport, Replayed, ReplayedRecord, open};
pub use writer::Wal;

/// Makes a durable record visible. Runs on the writer thread, in sequence order, before the sender gets its answer: be quick,
/// and do not panic, or the WAL closes.
pub trait Publish<P>: Send {
    fn publish(&self, position: WalPosition, record: &RecordMeta, payload: P);
}

/// Settings of the WAL.
#[derive(Clone, Debug)]
pub struct WalConfig {
    /// Largest segment file. Smaller ones go sooner; larger ones need fewer directory syncs. Also bounds a record.
    pub segment_bytes: u64,
    /// Most bytes of all segments; appends beyond are refused. Bounds disk and the time a replay takes.
    pub max_bytes: u64,
    /// A group is closed for more records at this size.
    pub group_bytes: u64,
    /// How long a group waits for company. Zero is best unless a sync is dear: while one runs, the next group forms by itself.
    pub linger: Duration,
    /// Records that may wait in the queue; senders beyond wait for a place.
    pub queue_records: usize,
    /// An open segment that is fully released goes after this long without an append.
    pub idle_rotate: Duration,
    /// A bug planted to see that the tests find it.
    #[cfg(any(test, feature = "test-util"))]
    pub canary: Option<Canary>,
}

impl Default for WalConfig {
    fn default() -> Self {
        Self {
            segment_bytes: 64 * 1024 * 1024,
            max_bytes: 4 * 1024 * 1024 * 1024,
            group_bytes: 1024 * 1024,
            linger: Duration::ZERO,
            queue_records: 1024,
            idle_rotate: Duration::from_secs(60),
            #[cfg(any(test, feature = "test-util"))]
            canary: None,
        }
    }
}

impl WalConfig {
    /// Largest record an append takes.
    pub(crate) fn max_record_bytes(&self) -> u64 {
        self.segment_bytes.saturating_sub(segment::HEADER_BYTES as u64).min(MAX_RECORD_BYTES as u64)
    }
}

/// Bugs that can be planted in the writer: each must be caught by the power cut test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Canary {
    SkipSync,
    SkipDirSync,
    AckEarly,
}

/// Why a record was not appended. Nothing of it is published. It may still be found by the next replay, as any request that
/// got no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WalError {
    /// Free space on the disk of the data directory; the WAL goes on by itself. Senders: retry later.
    #[error("the disk of the WAL is full")]
    Full,
    /// Find out why nothing is flushed to blocks, or raise the cap. Senders: retry later.
    #[error("the WAL has reached its cap of {limit} bytes")]
    Capped { limit: u64 },
    /// Look at the disk; the WAL retries with a new segment by itself. Senders: retry, elsewhere if possible.
    #[error("{why}")]
    Failed { why: Arc<str> },
    /// The process is stopping. Senders: retry, elsewhere if possible.
    #[error("the WAL is closed")]
    Closed,
    /// Send smaller batches, or raise the segment size.
    #[error("a record of up to {bytes} bytes does not fit the WAL's limit of {limit} bytes")]
    TooLarge { bytes: u64, limit: u64 },
}

impl WalError {
    /// Whether the same record can succeed later.
    pub fn is_retryable(&self) -> bool {
        !matches!(self, Self::TooLarge { .. })
    }

    /// When a sender should try again, if it should.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Full | Self::Capped { .. } => Some(Duration::from_secs(5)),
            Self::Failed { .. } | Self::Closed => Some(Duration::from_secs(1)),
            Self::TooLarge { .. } => None,
        }
    }
}

#[doc = include_str!("FORMAT.md")]
pub mod format {}
