//! Tags: which attributes spans have, and which values these take.
//!
//! A block's summary answers where it can; rows are read of live data, of blocks whose summary is cut, and where a filter says
//! which spans count. A value is listed exactly if a comparison with it finds a span, so an empty text stands for a name,
//! service or message that is not there.
//!
//! Owns what is read for an answer and how large it may be. Does not own the names of intrinsics nor the values that are
//! always the same: the API knows both without asking.

mod distinct;
mod names;
mod operations;
mod scan;
#[cfg(test)]
mod tests;
mod values;

use std::collections::BTreeSet;

use super::EngineError;
use super::answer::QueryStats;
use super::budget::Budget;

pub(crate) use names::{KeptNames, names};
pub(crate) use operations::{KeptOperations, operations};
pub(crate) use values::values;

/// Distinct things, as many as an answer may have.
#[derive(Debug)]
struct Gathered<T> {
    all: BTreeSet<T>,
    bytes: usize,
    max_bytes: usize,
    /// 0 for none.
    limit: usize,
    /// Something was left out because of its size, not because nobody asked for it.
    over: bool,
}

impl<T: Ord> Gathered<T> {
    fn new(limit: usize, max_bytes: usize) -> Self {
        Self { all: BTreeSet::new(), bytes: 0, max_bytes, limit, over: false }
    }

    /// Whether more would be left out.
    fn is_enough(&self) -> bool {
        self.over || (self.limit > 0 && self.all.len() >= self.limit)
    }

    /// Adds something whose text has so many bytes.
    fn add(&mut self, item: T, bytes: usize) {
        if self.is_enough() || self.all.contains(&item) {
            return;
        }
        if self.bytes.saturating_add(bytes) > self.max_bytes {
            self.over = true;
            return;
        }
        self.bytes += bytes;
        self.all.insert(item);
    }

    /// Adds what another place has, and accounts for it.
    fn merge(&mut self, other: Self, bytes_of: impl Fn(&T) -> usize, budget: &Budget) -> Result<(), EngineError> {
        let before = (self.bytes, self.all.len());
        let over = other.over;
        for item in other.all {
            let bytes = bytes_of(&item);
            self.add(item, bytes);
        }
        // Too much of one place is too much of all, unless that is enough.
        self.over |= over && !self.is_enough();
        budget.keep(self.bytes - before.0 + (self.all.len() - before.1) * (size_of::<T>() + 16))
    }
}

/// Says that an answer is cut.
fn mark_cut(stats: &mut QueryStats, max_bytes: usize, what: &str) {
    let text = format!("more than {max_bytes} bytes of {what}: ask for a shorter time range, or with a filter");
    stats.miss(text);
    stats.leave_a_job_open();
}
