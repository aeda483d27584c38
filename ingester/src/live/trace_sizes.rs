//! How large live traces are, for the limit on the bytes of one trace.

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use foldhash::fast::RandomState;
use spanhouse_common::id::{TenantId, TraceId};

const CELLS: usize = 1 << 18;
/// Cells count in units of this many bytes, so that 32 bits reach far beyond any limit.
const UNIT: u64 = 16;

/// Counts bytes by a hash of tenant and trace. Two traces may share a count, so it can be a little too high (some kilobytes
/// while gigabytes are live), never too low: the limit protects the process, it does not bill.
#[derive(Debug)]
pub struct TraceSizes {
    cells: std::sync::OnceLock<Box<[AtomicU32]>>,
    hasher: RandomState,
}

impl TraceSizes {
    pub(super) fn new() -> Self {
        Self { cells: std::sync::OnceLock::new(), hasher: RandomState::default() }
    }

    /// Adds a span to its trace unless that takes the trace over `limit`. Whether it was added.
    pub fn add(&self, tenant: &TenantId, trace: TraceId, bytes: u32, limit: u64) -> bool {
        let cells = self.cells.get_or_init(|| (0..CELLS).map(|_| AtomicU32::new(0)).collect());
        let hash = self.hasher.hash_one((tenant, trace));
        let cell = &cells[hash as usize % CELLS];
        let units = u64::from(bytes).div_ceil(UNIT) as u32;
        let before = cell.fetch_add(units, Relaxed);
        let fits = u64::from(before.saturating_add(units)) * UNIT <= limit.saturating_add(UNIT);
        if !fits {
            cell.fetch_sub(units, Relaxed);
        }
        fits
    }

    /// Starts from zero: called when a tenant's live data has all gone to blocks.
    pub(super) fn forget(&self) {
        for cell in self.cells.get().into_iter().flatten() {
            cell.store(0, Relaxed);
        }
    }
}
