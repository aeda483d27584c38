//! Which blocks are merged next: a pure function of a manifest version, the time, the retention and the configuration.
//!
//! Owns the rules. Does not own the merge, its order among tenants, nor what to do if it fails. Reads no clock and no store, and
//! gives the same plan for the same arguments, so that two compactors and a dry run agree.
//!
//! **Groups.** A block belongs to one group, and only blocks of one group are merged with each other:
//! - its merge window (see [`windows`]), if it was received before that window closed: its end and [`PolicyConfig::slack`];
//! - if it came later, the day (24 h) around it, so that a trickle into every old window does not leave blocks in each;
//! - if it came after the day closed too, the late blocks of that day;
//! - outliers, which have no window, are a group by themselves.
//!
//! **Levels.** The level of a block counts the merges behind it, and two are the most. In a group, blocks of level 0 are merged
//! with each other to level 1 and those of level 1 to level 2 as soon as they fill a merge: [`PolicyConfig::fan_in`] of them,
//! or as much as one block may hold. So a group that is still open has fewer than fan-in blocks of each of the two levels, but
//! for those that are full. When its window has closed, what is left of both levels is merged: if that is more than fan-in,
//! level 0 first. Late blocks and outliers have no such end: they wait for their number, or until retention.
//!
//! **What is left alone.** A block of half the target or more is full and never written again. Nor is one that would be written
//! again for blocks that are together less than a quarter of it, unless they are as many as fan-in.
//!
//! A merged block is retired when its youngest span is, so a merge keeps spans longer by what lies between its blocks: in a
//! window its length at most; among late blocks and outliers the time they took to become enough.

mod pack;
pub mod windows;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use spanhouse_common::id::BlockId;
use spanhouse_common::manifest::{BlockEntry, ManifestState, Window};
use spanhouse_common::time::UnixNanos;

use crate::retention::is_past_retention;
use pack::{Chunk, Rest, pack};
use windows::{DAY, Lengths, enclosing, end_of};

/// Blocks one merge reads at most, whatever is configured: each is open at once.
pub const MAX_FAN_IN: usize = 32;

/// Merges behind a block at most.
pub const MAX_LEVEL: u8 = 2;

/// When merging is worth it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyConfig {
    /// Blocks one merge takes, 2 to [`MAX_FAN_IN`]. Fewer: more blocks to query, less memory in a merge.
    pub fan_in: usize,
    /// Bytes of all objects of a block. No merge has more in its inputs; a block of half of it is full.
    pub target_bytes: u64,
    /// Spans of a block, as above; never more than `u32::MAX`.
    pub target_spans: u64,
    /// How long after its end a window is still open: for spans that are under way or live.
    pub slack: Duration,
}

impl Default for PolicyConfig {
    fn default() -> Self {
        Self { fan_in: MAX_FAN_IN, target_bytes: 1 << 30, target_spans: 24_000_000, slack: Duration::from_secs(30 * 60) }
    }
}

impl PolicyConfig {
    /// With every value within its bounds.
    fn bounded(self) -> Self {
        Self { fan_in: self.fan_in.clamp(2, MAX_FAN_IN), target_spans: self.target_spans.min(u64::from(u32::MAX)), ..self }
    }

    /// Whether a block is left as it is: any two that are not fit into one.
    fn is_full(&self, entry: &BlockEntry) -> bool {
        entry.rows.saturating_mul(2) >= self.target_spans || bytes_of(entry).saturating_mul(2) >= self.target_bytes
    }
}

/// Everything there is to do, and what is left alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The most urgent first: of the window with most blocks that could be merged. No block is in two of them, so they may run
    /// side by side, and each remains valid as long as its inputs are in the manifest.
    pub jobs: Vec<Job>,
    /// All other blocks, by reason and window.
    pub waiting: Vec<Waiting>,
}

/// A merge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Of the output; it holds the windows of all inputs. `None` for outliers.
    pub window: Option<Window>,
    /// Of the output: one more than the highest of the inputs, at most [`MAX_LEVEL`].
    pub level: u8,
    /// In order of time, 2 to [`PolicyConfig::fan_in`].
    pub inputs: Vec<BlockId>,
    /// Of the inputs: the output has at most as many.
    pub rows: u64,
    /// Of all objects of the inputs.
    pub bytes: u64,
    pub why: Why,
}

/// Why a merge is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// As many as one merge takes, or as much as one block holds.
    Enough { blocks: usize, level: u8 },
    /// The same of blocks that came after their day had closed.
    Late { blocks: usize, level: u8 },
    /// The same of outliers.
    Outliers { blocks: usize, level: u8 },
    /// Nothing more is expected in the window, which ended so long ago.
    Closed { ago: Duration },
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Enough { blocks, level } => write!(f, "{blocks} blocks of level {level}"),
            Self::Late { blocks, level } => write!(f, "{blocks} late blocks of level {level}"),
            Self::Outliers { blocks, level } => write!(f, "{blocks} outlier blocks of level {level}"),
            Self::Closed { ago } => write!(f, "window closed {} ago", Coarse(*ago)),
        }
    }
}

/// Blocks that no job takes, all for one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// In which they would be merged; that of the blocks themselves where they are not to be. `None` for outliers.
    pub window: Option<Window>,
    pub why: WhyNot,
    /// In order of time.
    pub blocks: Vec<BlockId>,
    pub rows: u64,
    pub bytes: u64,
}

/// Why blocks are left alone. Those before `Full` may be merged later, the others not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WhyNot {
    /// Too few yet, and more are expected until the window closes, in so much time.
    Open { closes_in: Duration },
    /// Others of the window are merged first.
    Turn,
    /// Too late for their day's last merge, and too few yet.
    Late,
    /// Too few outliers yet.
    Outliers,
    /// In a closed window: the others are too small to write it again for them, or there are none.
    Alone,
    /// A merge of it failed before.
    Quarantined,
    /// Half the target or more.
    Full,
    /// Merged twice, which is the most.
    Rewritten,
    /// To be retired.
    PastRetention,
}

impl fmt::Display for WhyNot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open { closes_in } => write!(f, "window open, closes in {}", Coarse(*closes_in)),
            Self::Turn => f.write_str("after the merges of their window"),
            Self::Late => f.write_str("late blocks wait for fan-in"),
            Self::Outliers => f.write_str("outliers wait for fan-in"),
            Self::Alone => f.write_str("nothing comparable to merge with"),
            Self::Quarantined => f.write_str("quarantined after failed merges"),
            Self::Full => f.write_str("full"),
            Self::Rewritten => f.write_str("at most two rewrites"),
            Self::PastRetention => f.write_str("past retention, to be retired"),
        }
    }
}

/// A length of time to two digits.
struct Coarse(Duration);

impl fmt::Display for Coarse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_secs() {
            seconds @ 0..120 => write!(f, "{seconds} s"),
            seconds @ 120..7200 => write!(f, "{} min", seconds / 60),
            seconds @ 7200..172_800 => write!(f, "{} h", seconds / 3600),
            seconds => write!(f, "{} days", seconds / 86_400),
        }
    }
}

/// Bytes of a block's objects.
fn bytes_of(entry: &BlockEntry) -> u64 {
    entry.size_bytes.saturating_add(entry.filter_bytes)
}

/// The order of blocks in which they are merged. Outliers come as they were received: their starts say nothing.
fn in_time(entry: &BlockEntry) -> (Option<UnixNanos>, UnixNanos, BlockId) {
    (entry.window.map(|_| entry.min_start), entry.received_max, entry.id)
}

/// What is merged together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Group {
    Window(Window),
    /// Came after the day had closed.
    Late(Window),
    Outliers,
}

impl Group {
    fn of(entry: &BlockEntry, lengths: &Lengths, slack: Duration) -> Self {
        let Some(window) = entry.window else { return Self::Outliers };
        let before_close = |window: &Window| entry.received_max <= end_of(*window).saturating_add(slack);
        let (own, day) = (lengths.window_for(window), enclosing(window, DAY));
        [own, day].into_iter().find(before_close).map_or(Self::Late(day), Self::Window)
    }

    fn window(self) -> Option<Window> {
        match self {
            Self::Window(window) | Self::Late(window) => Some(window),
            Self::Outliers => None,
        }
    }
}

/// What to merge and what to leave of one tenant's blocks.
///
/// `quarantined` are blocks to be left out whatever else holds. Empty windows, times near the ends of what 64 bits hold and a
/// configuration out of bounds give a plan like any other.
pub fn plan(
    state: &ManifestState,
    now: UnixNanos,
    retention: Duration,
    quarantined: &BTreeSet<BlockId>,
    config: &PolicyConfig,
) -> Plan {
    let config = config.bounded();
    let lengths = Lengths::choose(state, &config);
    let mut waiting = WaitingList::default();
    let mut groups: BTreeMap<Group, Vec<&BlockEntry>> = BTreeMap::new();
    for entry in state.blocks.values().map(|entry| &**entry) {
        let never = if is_past_retention(entry, now, retention) {
            Some(WhyNot::PastRetention)
        } else if quarantined.contains(&entry.id) {
            Some(WhyNot::Quarantined)
        } else if entry.level >= MAX_LEVEL {
            Some(WhyNot::Rewritten)
        } else if config.is_full(entry) {
            Some(WhyNot::Full)
        } else {
            None
        };
        match never {
            Some(why) => waiting.add(entry.window, why, entry),
            None => groups.entry(Group::of(entry, &lengths, config.slack)).or_default().push(entry),
        }
    }
    let mut jobs = Vec::new();
    for (group, mut blocks) in groups {
        blocks.sort_by_key(|entry| in_time(entry));
        let outstanding = blocks.len();
        let (found, why_not) = jobs_of(group, &blocks, now, &config);
        let taken: BTreeSet<BlockId> = found.iter().flat_map(|job| job.inputs.iter().copied()).collect();
        for entry in blocks.into_iter().filter(|entry| !taken.contains(&entry.id)) {
            waiting.add(group.window(), why_not, entry);
        }
        jobs.extend(found.into_iter().map(|job| (outstanding, job)));
    }
    // Low levels first: they take most blocks away.
    jobs.sort_by_cached_key(|(outstanding, job)| (Reverse(*outstanding), job.level, job.window, job.inputs[0]));
    Plan { jobs: jobs.into_iter().map(|(_, job)| job).collect(), waiting: waiting.into_vec() }
}

/// The merges of one group, and why its other blocks wait.
fn jobs_of(group: Group, blocks: &[&BlockEntry], now: UnixNanos, config: &PolicyConfig) -> (Vec<Job>, WhyNot) {
    let level = |level: u8| -> Vec<&BlockEntry> { blocks.iter().copied().filter(|entry| entry.level == level).collect() };
    let (zero, one) = (level(0), level(1));
    let mut jobs = Vec::new();
    for (level, blocks) in [(0, &zero), (1, &one)] {
        for chunk in pack(blocks.clone(), Rest::Waits, config) {
            let blocks = chunk.inputs.len();
            let why = match group {
                Group::Window(_) => Why::Enough { blocks, level },
                Group::Late(_) => Why::Late { blocks, level },
                Group::Outliers => Why::Outliers { blocks, level },
            };
            jobs.push(job(group, chunk, why));
        }
    }
    let window = match group {
        Group::Window(window) => window,
        Group::Late(_) => return (jobs, WhyNot::Late),
        Group::Outliers => return (jobs, WhyNot::Outliers),
    };
    let closes = end_of(window).saturating_add(config.slack);
    if now < closes {
        return (jobs, WhyNot::Open { closes_in: Duration::from_nanos(closes.0 - now.0) });
    }
    if !jobs.is_empty() {
        // Their outputs have a part in the last merge.
        return (jobs, WhyNot::Turn);
    }
    let why = Why::Closed { ago: Duration::from_nanos(now.0.saturating_sub(end_of(window).0)) };
    let merge = |blocks: Vec<_>| pack(blocks, Rest::Merges, config).into_iter().map(|chunk| job(group, chunk, why));
    if blocks.len() > config.fan_in {
        // More than one merge takes: with level 0 as one block they are fewer.
        jobs.extend(merge(zero));
    }
    if jobs.is_empty() {
        jobs.extend(merge(blocks.to_vec()));
        (jobs, WhyNot::Alone)
    } else {
        (jobs, WhyNot::Turn)
    }
}

fn job(group: Group, chunk: Chunk<'_>, why: Why) -> Job {
    let highest = chunk.inputs.iter().map(|entry| entry.level).max().unwrap_or(0);
    Job {
        window: group.window(),
        level: highest.saturating_add(1),
        inputs: chunk.inputs.iter().map(|entry| entry.id).collect(),
        rows: chunk.rows,
        bytes: chunk.bytes,
        why,
    }
}

/// Gathers blocks by reason and window.
#[derive(Debug, Default)]
struct WaitingList<'a>(BTreeMap<(WhyNot, Option<Window>), Vec<&'a BlockEntry>>);

impl<'a> WaitingList<'a> {
    fn add(&mut self, window: Option<Window>, why: WhyNot, entry: &'a BlockEntry) {
        self.0.entry((why, window)).or_default().push(entry);
    }

    fn into_vec(self) -> Vec<Waiting> {
        let gather = |((why, window), mut blocks): ((WhyNot, Option<Window>), Vec<&BlockEntry>)| {
            blocks.sort_by_key(|entry| in_time(entry));
            let sum = |of: fn(&BlockEntry) -> u64| blocks.iter().fold(0u64, |sum, entry| sum.saturating_add(of(entry)));
            let (rows, bytes) = (sum(|entry| entry.rows), sum(bytes_of));
            Waiting { window, why, blocks: blocks.iter().map(|entry| entry.id).collect(), rows, bytes }
        };
        self.0.into_iter().map(gather).collect()
    }
}
