//! Which time window a block is merged in: aligned, one nesting in the next, chosen per tenant and day by volume.
//!
//! Owns the lengths and their choice. Does not own which blocks of a window are merged, nor when.
//!
//! **The choice**, made for each day (UTC) apart, so that it changes only where every window ends:
//! 1. What was begun goes on: a day that has merged blocks keeps the shortest window that one of them has.
//! 2. Otherwise volume decides: the longest window that holds at most [`FEW`] blocks of final size. Volume is the larger of two
//!    figures, both in bytes and in spans: what the day before has in the snapshot, and what the day itself has, scaled from
//!    the time it covers (an hour at least, so that a burst of seconds is not taken for a day of it) to 24 hours.
//!
//! A first day under load so begins with windows somewhat long, which costs nothing but that their last merge comes later:
//! within them blocks are merged in order of time as soon as there are enough. The other way round, a quiet tenant would be
//! left with many small blocks for good.

use std::collections::BTreeMap;

use spanhouse_common::manifest::{BlockEntry, ManifestState, Window};
use spanhouse_common::time::UnixNanos;

use super::PolicyConfig;

/// Lengths of merge windows in seconds, each a multiple of the one before.
pub const LENGTHS: [u64; 4] = [900, 3600, 21_600, DAY];

pub(super) const DAY: u64 = 86_400;

/// Blocks of final size a window holds at most, if a shorter one is to be had. As much as the largest step between two
/// lengths, so that a window of a tenant with volume holds one to six.
const FEW: u128 = 6;

/// What the day's own volume is scaled from at least, in seconds.
const COVERED_AT_LEAST: u64 = 3600;

/// The shortest of [`LENGTHS`] from `length` on whose window holds all of `window`. `window` itself if none does: windows of
/// other lengths may lie across a boundary, and those longer than a day are nobody's part.
pub(super) fn enclosing(window: Window, length: u64) -> Window {
    let last = window.start.saturating_add(window.length.max(1) - 1);
    let fits = |length: u64| {
        let start = window.start / length * length;
        (start.checked_add(length)? > last).then_some(Window { start, length })
    };
    LENGTHS.into_iter().filter(|l| *l >= length).find_map(fits).unwrap_or(window)
}

/// When a window is over.
pub(super) fn end_of(window: Window) -> UnixNanos {
    UnixNanos::from_seconds(window.start.saturating_add(window.length))
}

/// The day a window lies in, counted from 1970.
fn day_of(window: Window) -> Option<u64> {
    let day = enclosing(window, DAY);
    (day.length == DAY && day.start.is_multiple_of(DAY)).then_some(day.start / DAY)
}

/// What the snapshot has of one day.
#[derive(Debug)]
struct Volume {
    bytes: u128,
    spans: u128,
    first: UnixNanos,
    last: UnixNanos,
    /// The shortest window of a merged block.
    merged: Option<u64>,
}

impl Default for Volume {
    fn default() -> Self {
        Self { bytes: 0, spans: 0, first: UnixNanos(u64::MAX), last: UnixNanos(0), merged: None }
    }
}

impl Volume {
    fn add(&mut self, entry: &BlockEntry, window: Window) {
        self.bytes += u128::from(super::bytes_of(entry));
        self.spans += u128::from(entry.rows);
        self.first = self.first.min(entry.min_start);
        self.last = self.last.max(entry.max_start);
        if entry.level > 0 {
            self.merged = Some(self.merged.map_or(window.length, |length| length.min(window.length)));
        }
    }

    /// Bytes and spans of 24 hours at the pace of what is there.
    fn scaled(&self) -> (u128, u128) {
        let covered = self.last.as_seconds().saturating_sub(self.first.as_seconds()).clamp(COVERED_AT_LEAST, DAY);
        let scale = |amount: u128| amount.saturating_mul(u128::from(DAY)) / u128::from(covered);
        (scale(self.bytes), scale(self.spans))
    }
}

/// The length of merge windows on every day of one tenant.
#[derive(Debug)]
pub(super) struct Lengths(BTreeMap<u64, u64>);

impl Lengths {
    pub(super) fn choose(state: &ManifestState, config: &PolicyConfig) -> Self {
        let mut days: BTreeMap<u64, Volume> = BTreeMap::new();
        for entry in state.blocks.values() {
            if let Some((window, day)) = entry.window.and_then(|window| Some((window, day_of(window)?))) {
                days.entry(day).or_default().add(entry, window);
            }
        }
        let before = |day: u64| day.checked_sub(1).and_then(|day| days.get(&day)).map_or((0, 0), |v| (v.bytes, v.spans));
        let choose = |(day, volume): (&u64, &Volume)| {
            let length = volume.merged.unwrap_or_else(|| {
                let (before, today) = (before(*day), volume.scaled());
                by_volume(before.0.max(today.0), before.1.max(today.1), config)
            });
            (*day, length)
        };
        Self(days.iter().map(choose).collect())
    }

    /// The window in which a block of `window` is merged.
    pub(super) fn window_for(&self, window: Window) -> Window {
        let chosen = day_of(window).and_then(|day| self.0.get(&day)).copied().unwrap_or(DAY);
        enclosing(window, chosen)
    }
}

/// The longest window in which a day of so much leaves at most [`FEW`] blocks of final size.
fn by_volume(bytes: u128, spans: u128, config: &PolicyConfig) -> u64 {
    let few = |length: u64| {
        let fits = |amount: u128, target: u64| {
            amount.saturating_mul(u128::from(length)) <= FEW * u128::from(target) * u128::from(DAY)
        };
        fits(bytes, config.target_bytes) && fits(spans, config.target_spans)
    };
    LENGTHS.into_iter().rev().find(|length| few(*length)).unwrap_or(LENGTHS[0])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::entry;

    #[test]
    fn windows_are_aligned_and_hold_what_they_are_for() {
        let of = |start, length| Window { start, length };
        for (what, window, length, expected) in [
            ("the flush window itself", of(900, 900), 900, of(900, 900)),
            ("an hour", of(4500, 900), 3600, of(3600, 3600)),
            ("six hours", of(36_000, 3600), 21_600, of(21_600, 21_600)),
            ("a day", of(90_000, 3600), DAY, of(DAY, DAY)),
            ("never shorter than what it holds", of(3600, 3600), 900, of(3600, 3600)),
            ("half an hour", of(1800, 1800), 900, of(0, 3600)),
            ("two hours", of(7200, 7200), 900, of(0, 21_600)),
            ("90 minutes, across an hour", of(5400, 5400), 900, of(0, 21_600)),
            ("seven hours, across six", of(25_200, 25_200), 3600, of(0, DAY)),
            ("five hours, across midnight", of(72_000, 18_000), 900, of(72_000, 18_000)),
            ("longer than a day", of(0, 2 * DAY), 900, of(0, 2 * DAY)),
            ("not aligned", of(450, 900), 900, of(0, 3600)),
            ("without length", of(900, 0), 900, of(900, 900)),
            ("at the end of time", of(u64::MAX, 900), 900, of(u64::MAX, 900)),
        ] {
            assert_eq!(enclosing(window, length), expected, "{what}");
        }
        for pair in LENGTHS.windows(2) {
            assert!(pair[1].is_multiple_of(pair[0]));
        }
    }

    /// A block of a flush window of an hour, `hour` hours after 1970.
    fn block(n: u64, hour: u64, spans: u64, level: u8, length: u64) -> BlockEntry {
        let window = enclosing(Window { start: hour * 3600, length: 3600 }, length);
        let (min_start, max_start) = (UnixNanos::from_seconds(hour * 3600), UnixNanos::from_seconds(hour * 3600 + 3599));
        BlockEntry { rows: spans, size_bytes: spans * 28, window: Some(window), level, min_start, max_start, ..entry(n) }
    }

    #[test]
    fn volume_chooses_and_what_was_begun_goes_on() {
        const M: u64 = 1_000_000;
        // Blocks as (hour since 1970, spans, level, length of their window); the length of the windows of the second day.
        type Blocks = &'static [(u64, u64, u8, u64)];
        let cases: [(&str, Blocks, u64); 10] = [
            ("next to nothing", &[(24, 10, 0, 3600)], DAY),
            ("a burst of the first hour, scaled", &[(24, 6 * M, 0, 3600)], DAY),
            ("more than six blocks a day", &[(24, 7 * M, 0, 3600)], 21_600),
            ("more than six blocks in six hours", &[(24, 25 * M, 0, 3600)], 3600),
            ("the shortest there is", &[(24, 1000 * M, 0, 3600)], 900),
            ("the day before counts as it is", &[(0, 600 * M, 0, 3600), (24, 10, 0, 3600)], 3600),
            ("scaled by the time it covers", &[(24, 3 * M, 0, 3600), (29, 40 * M, 0, 3600)], 21_600),
            ("merged blocks of the day decide", &[(24, 1000 * M, 0, 3600), (25, M, 1, DAY)], DAY),
            ("the shortest of them", &[(24, 10, 1, 21_600), (24, 10, 2, DAY)], 21_600),
            ("not those of another day", &[(0, 10, 1, 3600), (24, 10, 0, 3600)], DAY),
        ];
        for (what, blocks, expected) in cases {
            let mut state = ManifestState::default();
            for (n, (hour, spans, level, length)) in blocks.iter().enumerate() {
                let block = block(n as u64, *hour, *spans, *level, *length);
                state.blocks.insert(block.id, block.into());
            }
            let lengths = Lengths::choose(&state, &PolicyConfig::default());
            let window = lengths.window_for(Window { start: 90_000, length: 900 });
            assert_eq!(window, enclosing(Window { start: 90_000, length: 900 }, expected), "{what}");
        }
    }

    #[test]
    fn many_bytes_count_as_many_spans() {
        let config = PolicyConfig::default();
        assert_eq!(by_volume(6 << 30, 0, &config), DAY);
        assert_eq!(by_volume(7 << 30, 0, &config), 21_600);
        assert_eq!(by_volume(u128::MAX, u128::MAX, &config), 900);
        assert_eq!(by_volume(1, 1, &PolicyConfig { target_bytes: 0, target_spans: 0, ..config }), 900);
    }
}
