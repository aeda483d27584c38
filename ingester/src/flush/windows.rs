//! Which block of a cut each span goes to: one per time window of its start, and one for outliers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use spanhouse_common::batch::SpanBatch;
use spanhouse_common::block::window_of;
use spanhouse_common::caps::MAX_BLOCKS_PER_CUT;
use spanhouse_common::manifest::Window;
use spanhouse_common::time::UnixNanos;

/// Starts later than this from now are outliers: clocks differ by minutes, not by an hour.
const FUTURE: Duration = Duration::from_secs(3600);

/// By batch: the rows that belong to a block; `None` for all of them.
type Rows = Vec<Option<Vec<u32>>>;

/// Splits a cut. Windows come oldest first, outliers (no window) last. Every row is in exactly one part.
pub(super) fn split(
    batches: &[Arc<SpanBatch>],
    now: UnixNanos,
    window_seconds: u64,
    retention: Duration,
) -> Vec<(Option<Window>, Rows)> {
    let (oldest, newest) = (now.saturating_sub(retention), now.saturating_add(FUTURE));
    let window = |start: u64| {
        let at = UnixNanos(start);
        (start != 0 && at >= oldest && at <= newest).then(|| window_of(at, window_seconds))
    };
    let mut counts: BTreeMap<Option<Window>, usize> = BTreeMap::new();
    let mut last = (None, 0);
    for row in batches.iter().flat_map(|batch| &batch.rows) {
        let of = window(row.start);
        if last.0 != of {
            *counts.entry(last.0).or_default() += last.1;
            last = (of, 0);
        }
        last.1 += 1;
    }
    *counts.entry(last.0).or_default() += last.1;
    counts.retain(|_, spans| *spans > 0);
    // The fullest windows get a block each; what does not fit in the number of blocks goes with the outliers.
    let mut kept: Vec<(usize, Window)> = counts.iter().filter_map(|(w, n)| w.map(|w| (*n, w))).collect();
    kept.sort_unstable_by(|a, b| b.cmp(a));
    kept.truncate(MAX_BLOCKS_PER_CUT - 1);
    let kept: Vec<Window> = kept.into_iter().map(|(_, window)| window).collect();
    let place = |start: u64| window(start).filter(|of| kept.contains(of));
    if counts.len() == 1 {
        let only = counts.keys().next().copied().flatten();
        return vec![(only, vec![None; batches.len()])];
    }
    let mut parts: BTreeMap<Option<Window>, Rows> = BTreeMap::new();
    for (number, batch) in batches.iter().enumerate() {
        for (at, row) in batch.rows.iter().enumerate() {
            let rows = parts.entry(place(row.start)).or_insert_with(|| vec![Some(Vec::new()); batches.len()]);
            if let Some(rows) = &mut rows[number] {
                rows.push(at as u32);
            }
        }
    }
    let outliers = parts.remove(&None);
    parts.into_iter().chain(outliers.map(|rows| (None, rows))).collect()
}

#[cfg(test)]
mod tests {
    use spanhouse_common::batch::Row;

    use super::*;

    fn batch(starts: &[u64]) -> Arc<SpanBatch> {
        let row = |start: &u64| Row { start: *start, end: *start, ..Row::default() };
        Arc::new(SpanBatch { rows: starts.iter().map(row).collect(), ..SpanBatch::default() })
    }

    const HOUR: u64 = 3600;
    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn at(hour: u64) -> u64 {
        UnixNanos::from_seconds(hour * HOUR).0 + 5
    }

    #[test]
    fn a_cut_of_one_window_is_one_block() {
        let parts = split(&[batch(&[at(100), at(100) + 1])], UnixNanos(at(100)), HOUR, DAY);
        assert_eq!(parts, [(Some(Window { start: 100 * HOUR, length: HOUR }), vec![None])]);
    }

    #[test]
    fn absurd_times_go_to_the_outliers() {
        let starts = [0, u64::MAX, at(1), at(100), at(103), at(99)];
        let parts = split(&[batch(&starts)], UnixNanos(at(100)), HOUR, DAY);
        let shape: Vec<_> = parts.iter().map(|(w, rows)| (w.map(|w| w.start / HOUR), rows[0].clone().unwrap())).collect();
        assert_eq!(shape, [(Some(99), vec![5]), (Some(100), vec![3]), (None, vec![0, 1, 2, 4])]);
    }

    #[test]
    fn at_most_eight_blocks_and_every_row_once() {
        let starts: Vec<u64> = (80..100).flat_map(|hour| vec![at(hour); hour as usize - 70]).collect();
        let parts = split(&[batch(&starts)], UnixNanos(at(100)), HOUR, DAY);
        assert_eq!(parts.len(), MAX_BLOCKS_PER_CUT);
        let rows: usize = parts.iter().map(|(_, rows)| rows[0].as_ref().unwrap().len()).sum();
        assert_eq!(rows, starts.len());
        assert!(parts.iter().any(|(w, _)| *w == Some(Window { start: 99 * HOUR, length: HOUR })));
    }
}
