//! Small states and what is planned of them.

use super::*;
use crate::testing::{HOUR, MINUTE, block_id, entry};

/// A Tuesday, at midnight.
pub(super) const MIDNIGHT: u64 = 1_700_006_400;
const M: u64 = 1_000_000;

/// A block of one hour of the day, received at some minute of that day; 28 bytes a span.
#[derive(Clone, Copy)]
struct Block {
    hour: u64,
    received_minute: u64,
    spans: u64,
    level: u8,
    /// `None` for outliers.
    length: Option<u64>,
}

/// A flushed block, received in its hour.
fn flushed(hour: u64, spans: u64) -> Block {
    Block { hour, received_minute: hour * 60 + 30, spans, level: 0, length: Some(3600) }
}

fn late(hour: u64, received_hour: u64, spans: u64) -> Block {
    Block { received_minute: received_hour * 60, ..flushed(hour, spans) }
}

fn merged(hour: u64, length: u64, level: u8, spans: u64) -> Block {
    Block { level, length: Some(length), ..flushed(hour, spans) }
}

fn outlier(received_hour: u64, level: u8) -> Block {
    Block { level, length: None, ..flushed(received_hour, 10) }
}

fn state_of(blocks: &[Block]) -> ManifestState {
    let mut state = ManifestState::default();
    for (n, block) in (0..).zip(blocks) {
        let at = MIDNIGHT + block.hour * 3600;
        let window = block.length.map(|length| Window { start: at / length * length, length });
        let entry = BlockEntry {
            rows: block.spans,
            size_bytes: block.spans * 28,
            filter_bytes: 0,
            level: block.level,
            min_start: UnixNanos::from_seconds(at),
            max_start: UnixNanos::from_seconds(at + 3599),
            received_max: UnixNanos::from_seconds(MIDNIGHT + block.received_minute * 60),
            window,
            ..entry(n)
        };
        state.blocks.insert(entry.id, entry.into());
    }
    state
}

fn minute(minute: u64) -> UnixNanos {
    UnixNanos::from_seconds(MIDNIGHT + minute * 60)
}

const RETENTION: Duration = Duration::from_secs(14 * 86_400);

fn plan_of(blocks: &[Block], now: UnixNanos, config: &PolicyConfig) -> Plan {
    plan(&state_of(blocks), now, RETENTION, &BTreeSet::new(), config)
}

fn numbers(ids: &[BlockId]) -> Vec<u64> {
    ids.iter().map(|id| u64::from_be_bytes(id.as_bytes()[..8].try_into().unwrap())).collect()
}

/// A plan in one line for each job and each reason, blocks by their numbers.
fn text(plan: &Plan) -> Vec<String> {
    let window = |window: Option<Window>| match window {
        None => "outliers".to_owned(),
        Some(window) => format!("{}h+{}h", (window.start as i64 - MIDNIGHT as i64) / 3600, window.length / 3600),
    };
    let list = |ids: &[BlockId]| match numbers(ids).as_slice() {
        all @ [first, .., last] if all.len() > 3 && *last == first + all.len() as u64 - 1 => format!("{first}..={last}"),
        all => format!("{all:?}"),
    };
    let jobs =
        plan.jobs.iter().map(|job| format!("{} to {}: {} {}", window(job.window), job.level, list(&job.inputs), job.why));
    let waiting = plan.waiting.iter().map(|w| format!("{} waits: {} {}", window(w.window), list(&w.blocks), w.why));
    jobs.chain(waiting).collect()
}

#[test]
fn small_states() {
    let day = |blocks: Vec<Vec<Block>>| blocks.concat();
    let next_day = 24 * 60 + 31;
    let cases: Vec<(&str, Vec<Block>, u64, Vec<&str>)> = vec![
        ("nothing", vec![], 60, vec![]),
        (
            "too few in an open window",
            vec![flushed(0, 10); 3],
            60,
            vec!["0h+24h waits: [0, 1, 2] window open, closes in 23 h"],
        ),
        (
            "fan-in, at once",
            vec![flushed(0, 10); 33],
            60,
            vec!["0h+24h to 1: 0..=31 32 blocks of level 0", "0h+24h waits: [32] window open, closes in 23 h"],
        ),
        (
            "as much as a block holds, at once",
            vec![flushed(0, 9 * M); 5],
            60,
            vec![
                "0h+1h to 1: [0, 1] 2 blocks of level 0",
                "0h+1h to 1: [2, 3] 2 blocks of level 0",
                "0h+1h waits: [4] window open, closes in 30 min",
            ],
        ),
        ("not yet closed", vec![flushed(0, 10); 2], 24 * 60 + 29, vec!["0h+24h waits: [0, 1] window open, closes in 60 s"]),
        ("closed", vec![flushed(0, 10); 2], next_day, vec!["0h+24h to 1: [0, 1] window closed 31 min ago"]),
        (
            "closed, both levels together",
            day(vec![vec![merged(0, 86_400, 1, 100); 2], vec![flushed(5, 10); 3]]),
            next_day,
            vec!["0h+24h to 2: 0..=4 window closed 31 min ago"],
        ),
        (
            "closed, more than one merge takes: level 0 first",
            day(vec![vec![merged(0, 86_400, 1, 320); 31], vec![flushed(5, 10); 3]]),
            next_day,
            vec![
                "0h+24h to 1: [31, 32, 33] window closed 31 min ago",
                "0h+24h waits: 0..=30 after the merges of their window",
            ],
        ),
        (
            "closed, with a merge that was due before",
            day(vec![vec![flushed(0, 10); 32], vec![merged(0, 86_400, 1, 10)]]),
            next_day,
            vec!["0h+24h to 1: 0..=31 32 blocks of level 0", "0h+24h waits: [32] after the merges of their window"],
        ),
        (
            "closed, and one too large for the others",
            vec![flushed(0, 900), flushed(1, 100), flushed(2, 100)],
            next_day,
            vec!["0h+24h to 1: [1, 2] window closed 31 min ago", "0h+24h waits: [0] nothing comparable to merge with"],
        ),
        ("alone", vec![flushed(0, 10)], next_day, vec!["0h+24h waits: [0] nothing comparable to merge with"]),
        (
            "full and merged twice",
            vec![flushed(0, 12 * M), merged(0, 86_400, 2, 10), merged(0, 86_400, 1, 10)],
            next_day,
            vec![
                "0h+24h waits: [2] nothing comparable to merge with",
                "0h+1h waits: [0] full",
                "0h+24h waits: [1] at most two rewrites",
            ],
        ),
        (
            "late for their hours: merged with their day",
            day(vec![vec![merged(0, 3600, 1, 100)], vec![late(0, 3, 10), late(1, 5, 10), late(2, 9, 10)]]),
            12 * 60,
            vec!["0h+24h waits: [1, 2, 3] window open, closes in 12 h", "0h+1h waits: [0] nothing comparable to merge with"],
        ),
        (
            "late for their hours, at the end of the day",
            day(vec![vec![merged(0, 3600, 1, 100)], vec![late(0, 3, 10), late(1, 5, 10), late(2, 9, 10)]]),
            next_day,
            vec!["0h+24h to 1: [1, 2, 3] window closed 31 min ago", "0h+1h waits: [0] nothing comparable to merge with"],
        ),
        ("late for their day", vec![late(0, 30, 10); 31], 40 * 60, vec!["0h+24h waits: 0..=30 late blocks wait for fan-in"]),
        (
            "late for their day, and enough, of whatever hour",
            day(vec![vec![late(0, 30, 10); 20], vec![late(7, 31, 10); 12], vec![merged(0, 86_400, 2, 10)]]),
            40 * 60,
            vec!["0h+24h to 1: 0..=31 32 late blocks of level 0", "0h+24h waits: [32] at most two rewrites"],
        ),
        ("outliers, too few", vec![outlier(0, 0); 31], next_day, vec!["outliers waits: 0..=30 outliers wait for fan-in"]),
        (
            "outliers, enough, and with nothing else",
            day(vec![vec![flushed(0, 10)], vec![outlier(0, 0); 32], vec![outlier(1, 1)]]),
            60,
            vec![
                "outliers to 1: 1..=32 32 outlier blocks of level 0",
                "0h+24h waits: [0] window open, closes in 23 h",
                "outliers waits: [33] outliers wait for fan-in",
            ],
        ),
        (
            "past retention",
            day(vec![vec![late(0, 0, 10); 2], vec![late(0, 30, 10); 2]]),
            15 * 24 * 60 + 31,
            vec!["0h+24h waits: [2, 3] late blocks wait for fan-in", "0h+1h waits: [0, 1] past retention, to be retired"],
        ),
    ];
    for (what, blocks, now, expected) in cases {
        let found = text(&plan_of(&blocks, minute(now), &PolicyConfig::default()));
        assert_eq!(found, expected, "{what}");
    }
}

#[test]
fn the_fullest_windows_come_first_and_every_block_once() {
    // Three days; the second has most blocks.
    let of_day = |day: u64, count: usize| vec![flushed(day * 24, 10); count];
    let blocks = [of_day(0, 40), of_day(1, 80), of_day(2, 33)].concat();
    let plan = plan_of(&blocks, minute(2 * 24 * 60 + 60), &PolicyConfig::default());
    let order: Vec<u64> = plan.jobs.iter().map(|job| (job.window.unwrap().start - MIDNIGHT) / 86_400).collect();
    assert_eq!(order, [1, 1, 0, 2]);
    let inputs = plan.jobs.iter().flat_map(|job| &job.inputs).chain(plan.waiting.iter().flat_map(|w| &w.blocks));
    let mut seen: Vec<u64> = inputs.flat_map(|id| numbers(&[*id])).collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..blocks.len() as u64).collect::<Vec<_>>());
    let (rows, bytes) = plan.waiting.iter().fold((0, 0), |(rows, bytes), w| (rows + w.rows, bytes + w.bytes));
    assert_eq!(rows, (blocks.len() as u64 - 4 * 32) * 10);
    assert_eq!(bytes, rows * 28);
    assert!(plan.jobs.iter().all(|job| (job.rows, job.bytes) == (320, 320 * 28)));
}

#[test]
fn quarantined_blocks_are_left_out() {
    let (state, config) = (state_of(&[flushed(0, 10); 3]), PolicyConfig::default());
    let quarantined = BTreeSet::from([block_id(1)]);
    let plan = plan(&state, minute(24 * 60 + 31), RETENTION, &quarantined, &config);
    assert_eq!(
        text(&plan),
        ["0h+24h to 1: [0, 2] window closed 31 min ago", "0h+1h waits: [1] quarantined after failed merges"]
    );
}

#[test]
fn a_late_span_rewrites_nothing() {
    // As an hour with volume ends up: full blocks, one below that, and what came since.
    let end = [merged(3, 3600, 1, 13 * M), merged(3, 3600, 2, 20 * M), merged(3, 3600, 1, 11 * M)];
    for received in [4, 5, 9, 23, 24, 25, 100] {
        let blocks = [end.to_vec(), vec![late(3, received, 1)]].concat();
        for now in (received * 60..received * 60 + 3000).step_by(20) {
            let plan = plan_of(&blocks, minute(now), &PolicyConfig::default());
            assert_eq!(plan.jobs, [], "received in hour {received}, minute {now}");
        }
    }
}

#[test]
fn windows_of_other_lengths() {
    let config = PolicyConfig::default();
    let window = |start: u64, length: u64| Some(Window { start: MIDNIGHT + start, length });
    for (what, windows, expected) in [
        ("half hours", [window(0, 1800), window(1800, 1800)], Some(window(0, 86_400))),
        ("two days each", [window(0, 172_800), window(0, 172_800)], Some(window(0, 172_800))),
        ("two days, not the same", [window(0, 172_800), window(86_400, 172_800)], None),
        ("a week and an hour of it", [window(0, 604_800), window(3600, 3600)], None),
        ("across midnight", [window(82_800, 7200), window(82_800, 7200)], Some(window(82_800, 7200))),
    ] {
        let mut state = state_of(&[flushed(0, 10); 2]);
        for (n, window) in (0..).zip(windows) {
            let mut changed = (*state.blocks[&block_id(n)]).clone();
            changed.window = window;
            state.blocks.insert(changed.id, changed.into());
        }
        let now = UnixNanos::from_seconds(MIDNIGHT + 700_000);
        let plan = plan(&state, now, RETENTION, &BTreeSet::new(), &config);
        assert_eq!(plan.jobs.iter().map(|job| job.window).collect::<Vec<_>>(), Vec::from_iter(expected), "{what}");
    }
}

#[test]
fn absurd_values_plan_like_any_other() {
    let mut state = state_of(&[flushed(0, 10); 6]);
    let max = u64::MAX;
    for (n, (start, length, rows)) in
        (0..).zip([(max, max, max), (0, max, 1), (max, 1, 1), (max - 1, 3600, max), (0, 0, 0), (max / 2, 86_400, 1)])
    {
        let mut changed = (*state.blocks[&block_id(n)]).clone();
        changed.window = Some(Window { start, length });
        (changed.rows, changed.size_bytes, changed.filter_bytes) = (rows, rows, rows);
        (changed.min_start, changed.max_start) = (UnixNanos(max), UnixNanos(0));
        (changed.received_max, changed.level) = (UnixNanos(if n % 2 == 0 { max } else { 0 }), (n * 50) as u8);
        state.blocks.insert(changed.id, changed.into());
    }
    let configs = [
        PolicyConfig { fan_in: 0, target_bytes: 0, target_spans: 0, slack: Duration::ZERO },
        PolicyConfig { fan_in: usize::MAX, target_bytes: max, target_spans: max, slack: Duration::MAX },
    ];
    for config in configs {
        for (now, retention) in [(0, Duration::ZERO), (max, Duration::MAX), (max, HOUR), (minute(0).0, Duration::MAX)] {
            let plan = plan(&state, UnixNanos(now), retention, &BTreeSet::new(), &config);
            assert_eq!(
                plan.jobs.iter().map(|job| job.inputs.len()).sum::<usize>()
                    + plan.waiting.iter().map(|w| w.blocks.len()).sum::<usize>(),
                6
            );
            assert!(plan.jobs.iter().all(|job| job.rows <= u64::from(u32::MAX)));
        }
    }
}

#[test]
fn lengths_of_time_for_people() {
    for (length, expected) in [
        (Duration::ZERO, "0 s"),
        (Duration::from_secs(119), "119 s"),
        (31 * MINUTE, "31 min"),
        (2 * HOUR, "2 h"),
        (48 * HOUR, "2 days"),
    ] {
        assert_eq!(Coarse(length).to_string(), expected);
    }
}
