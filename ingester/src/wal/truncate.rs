//! Which segments exist, whose records are in them, and when one goes.
//!
//! Owns: the list of segment files, their sizes, and per segment the highest position of each tenant not yet released. Does
//! not own: writing to segments, deciding what is committed.
//!
//! Crash story: a removal is not synced. A segment that comes back after a power cut is replayed again; the records are
//! below their tenants' watermarks, so the caller skips them, and the segment goes at the next release.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use spanhouse_common::fail_points::reached;
use spanhouse_common::fs::Fs;
use spanhouse_common::id::{TenantId, WalPosition};

use super::metrics::WalMetrics;
use super::segment::SegmentId;

#[derive(Debug)]
struct Segment {
    path: PathBuf,
    bytes: u64,
    closed: bool,
    /// Keeps bytes that are nowhere else: stays until an operator looked.
    pinned: bool,
    /// Being removed by someone right now.
    going: bool,
    /// Highest sequence per tenant with records that are not released.
    tenants: HashMap<TenantId, u64>,
}

#[derive(Debug, Default)]
struct Ledger {
    segments: BTreeMap<SegmentId, Segment>,
    total_bytes: u64,
}

/// All segments of one WAL. Shared by the writer thread and whoever releases.
#[derive(Debug)]
pub(super) struct Segments {
    fs: Arc<dyn Fs>,
    metrics: WalMetrics,
    ledger: Mutex<Ledger>,
}

impl Segments {
    pub(super) fn new(fs: Arc<dyn Fs>, metrics: WalMetrics) -> Self {
        Self { fs, metrics, ledger: Mutex::default() }
    }

    /// A segment being written.
    pub(super) fn open(&self, id: SegmentId, path: PathBuf, bytes: u64) {
        self.insert(id, Segment { path, bytes, closed: false, pinned: false, going: false, tenants: HashMap::new() });
    }

    /// A segment of an earlier epoch, with what replay found in it.
    pub(super) fn replayed(&self, id: SegmentId, path: PathBuf, bytes: u64, tenants: HashMap<TenantId, u64>, pinned: bool) {
        self.insert(id, Segment { path, bytes, closed: true, pinned, going: false, tenants });
    }

    fn insert(&self, id: SegmentId, segment: Segment) {
        let mut ledger = self.ledger.lock();
        ledger.total_bytes += segment.bytes;
        ledger.segments.insert(id, segment);
        self.show(&ledger);
    }

    /// The segment's file now has `bytes` bytes.
    pub(super) fn resize(&self, id: SegmentId, bytes: u64) {
        let mut ledger = self.ledger.lock();
        if let Some(segment) = ledger.segments.get_mut(&id) {
            let before = std::mem::replace(&mut segment.bytes, bytes);
            ledger.total_bytes = ledger.total_bytes.saturating_sub(before) + bytes;
        }
        self.show(&ledger);
    }

    /// Records of these tenants are durable in the segment. Must come before they are published, or a release could pass them by.
    pub(super) fn note<'a>(&self, id: SegmentId, records: impl Iterator<Item = (&'a TenantId, u64)>) {
        let mut ledger = self.ledger.lock();
        let Some(segment) = ledger.segments.get_mut(&id) else { return };
        for (tenant, sequence) in records {
            match segment.tenants.get_mut(tenant) {
                Some(highest) => *highest = (*highest).max(sequence),
                None => {
                    segment.tenants.insert(tenant.clone(), sequence);
                }
            }
        }
    }

    /// Nothing more is written to the segment; it goes if nobody needs it.
    pub(super) fn close(&self, id: SegmentId) {
        if let Some(segment) = self.ledger.lock().segments.get_mut(&id) {
            segment.closed = true;
        }
        self.sweep();
    }

    /// Whether every record of the segment is released.
    pub(super) fn is_covered(&self, id: SegmentId) -> bool {
        self.ledger.lock().segments.get(&id).is_some_and(|segment| segment.tenants.is_empty())
    }

    /// Everything of `tenant` up to and including `watermark` is committed. Removes the segments this sets free.
    pub(super) fn release(&self, tenant: &TenantId, watermark: WalPosition) {
        {
            let mut ledger = self.ledger.lock();
            for (id, segment) in &mut ledger.segments {
                let covered = |highest: &u64| WalPosition { epoch: id.epoch, sequence: *highest } <= watermark;
                if segment.tenants.get(tenant).is_some_and(covered) {
                    segment.tenants.remove(tenant);
                }
            }
        }
        self.sweep();
    }

    /// Removes every closed segment nobody needs. What cannot be removed now is tried again at the next call.
    pub(super) fn sweep(&self) {
        let doomed: Vec<(SegmentId, PathBuf)> = {
            let mut ledger = self.ledger.lock();
            let free = |s: &&mut Segment| s.closed && !s.pinned && !s.going && s.tenants.is_empty();
            let segments = ledger.segments.iter_mut().map(|(id, segment)| (*id, segment));
            segments
                .filter(|(_, s)| free(s))
                .map(|(id, s)| {
                    (id, {
                        s.going = true;
                        s.path.clone()
                    })
                })
                .collect()
        };
        // Without the lock: removing 64 MiB can take longer than a group commit may.
        for (id, path) in doomed {
            let removed = match self.fs.remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(segment_id = %id, %error, "cannot remove a WAL segment nobody needs; will try again");
                    false
                }
                _ => true,
            };
            reached("wal-segment-removed");
            let mut ledger = self.ledger.lock();
            if removed {
                if let Some(gone) = ledger.segments.remove(&id) {
                    ledger.total_bytes = ledger.total_bytes.saturating_sub(gone.bytes);
                }
            } else if let Some(segment) = ledger.segments.get_mut(&id) {
                segment.going = false;
            }
            self.show(&ledger);
        }
    }

    pub(super) fn total_bytes(&self) -> u64 {
        self.ledger.lock().total_bytes
    }

    pub(super) fn count(&self) -> usize {
        self.ledger.lock().segments.len()
    }

    fn show(&self, ledger: &Ledger) {
        self.metrics.segments.set(ledger.segments.len() as i64);
        self.metrics.bytes.set(ledger.total_bytes as i64);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use spanhouse_common::fs::sim::SimFs;

    use super::*;

    #[test]
    fn wal_truncate_removes_a_segment_when_its_last_tenant_is_past_it() {
        let fs = SimFs::new(1);
        let path = PathBuf::from("/s");
        fs.create(&path).unwrap();
        let segments = Segments::new(Arc::new(fs.clone()), WalMetrics::default());
        let id = SegmentId { epoch: 2, index: 0 };
        let (a, b): (TenantId, TenantId) = ("a".parse().unwrap(), "b".parse().unwrap());
        let at = |epoch, sequence| WalPosition { epoch, sequence };
        segments.open(id, path.clone(), 100);
        segments.note(id, [(&a, 1), (&b, 2), (&a, 3)].into_iter());
        segments.release(&a, at(2, 2));
        segments.release(&b, at(2, 2));
        segments.close(id);
        assert_eq!((segments.total_bytes(), segments.is_covered(id)), (100, false));
        fs.set_faults(|faults| faults.read_only = true);
        segments.release(&a, at(3, 0));
        assert_eq!((segments.total_bytes(), segments.count()), (100, 1));
        fs.set_faults(|faults| faults.read_only = false);
        segments.sweep();
        assert_eq!((segments.total_bytes(), segments.count()), (0, 0));
        assert!(fs.open_read(Path::new("/s")).is_err());
    }
}
