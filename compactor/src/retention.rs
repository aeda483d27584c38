//! Which blocks are past retention: a pure function of a manifest version, the time and the retention.
//!
//! Owns the rule. Does not own the commit that retires them, nor the objects, which the sweeper deletes after a grace.

use std::time::Duration;

use spanhouse_common::id::BlockId;
use spanhouse_common::manifest::{BlockEntry, ManifestState};
use spanhouse_common::time::UnixNanos;

/// The blocks in which every span is older than `retention`, in order of their ids.
///
/// A span's age counts from the later of its start and its receive time, so that data sent late is kept as long as any.
pub fn past_retention(state: &ManifestState, now: UnixNanos, retention: Duration) -> Vec<BlockId> {
    state.blocks.values().filter(|block| is_past_retention(block, now, retention)).map(|block| block.id).collect()
}

/// Whether every span of the block is older than `retention`.
pub(crate) fn is_past_retention(block: &BlockEntry, now: UnixNanos, retention: Duration) -> bool {
    counts_from(block) < now.saturating_sub(retention)
}

/// When the age of the block's youngest span begins. Starts of outliers are not trusted: one of the year 2500 would stay
/// until then.
fn counts_from(block: &BlockEntry) -> UnixNanos {
    match block.window {
        Some(_) => block.max_start.max(block.received_max),
        None => block.received_max,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::entry;

    #[test]
    fn ages_count_from_the_later_time() {
        // now = 1000 s, retention 100 s: the cut-off is 900 s.
        let cases = [
            ("both old", true, 899, 899, true),
            ("exactly at the cut-off", true, 900, 900, false),
            ("started long ago, received lately", true, 10, 950, false),
            ("received long ago by a clock that is behind", true, 950, 10, false),
            ("started in the future", true, 5000, 10, false),
            ("outliers, received long ago", false, 5000, 899, true),
            ("outliers, received lately", false, 0, 950, false),
            ("outliers without any sane time", false, 0, 0, true),
        ];
        for (what, windowed, max_start, received, retired) in cases {
            let mut block = entry(1);
            block.max_start = UnixNanos::from_seconds(max_start);
            block.received_max = UnixNanos::from_seconds(received);
            block.window = block.window.filter(|_| windowed);
            let (id, mut state) = (block.id, ManifestState::default());
            state.blocks.insert(id, block.into());
            let found = past_retention(&state, UnixNanos::from_seconds(1000), Duration::from_secs(100));
            assert_eq!(found, if retired { vec![id] } else { vec![] }, "{what}");
        }
    }

    #[test]
    fn a_retention_longer_than_time_keeps_everything() {
        let mut state = ManifestState::default();
        let mut block = entry(1);
        (block.max_start, block.received_max) = (UnixNanos(0), UnixNanos(0));
        state.blocks.insert(block.id, block.into());
        for (now, retention) in [(0, Duration::ZERO), (1000, Duration::MAX), (1000, Duration::from_secs(1000))] {
            assert_eq!(past_retention(&state, UnixNanos::from_seconds(now), retention), [], "{now} {retention:?}");
        }
    }
}
