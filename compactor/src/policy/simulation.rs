//! Days of flushes by several writers, with spans that come late, planned and merged as they come: what must hold of every plan
//! and of what it leaves.

use std::collections::HashMap;
use std::sync::Arc;

use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::tests::MIDNIGHT;
use super::windows::LENGTHS;
use super::*;
use crate::testing::{HOUR, MINUTE, block_id, entry};

/// Long enough that nothing is retired: what is left over would go.
const RETENTION: Duration = Duration::from_secs(90 * 86_400);

#[derive(Clone, Debug)]
struct Traffic {
    seed: u64,
    days: u64,
    writers: u64,
    /// Seconds between two flushes of a writer.
    flush_every: u64,
    flush_window: u64,
    spans_per_block: u64,
    /// Parts of a hundred.
    late: u32,
    outliers: u32,
    /// Seconds between two rounds of merges.
    merge_every: u64,
    /// Inputs that a round merges; more wait for the next.
    jobs_a_round: usize,
    config: PolicyConfig,
}

prop_compose! {
    fn traffic()(
        seed: u64,
        days in 1..3u64,
        writers in 1..5u64,
        flush_every in prop::sample::select(vec![30, 30, 60, 95, 300, 600]),
        flush_window in prop::sample::select(vec![900, 3600, 1800, 86_400]),
        spans_per_block in prop::sample::select(vec![10, 3000, 50_000, 350_000, 5_000_000]),
        late in prop::sample::select(vec![0, 1, 10, 60]),
        outliers in 0..3u32,
        merge_every in prop::sample::select(vec![300, 300, 3600, 40_000]),
        jobs_a_round in prop::sample::select(vec![3, 20, usize::MAX]),
        fan_in in prop::sample::select(vec![2, 5, 32, 32]),
        target_spans in prop::sample::select(vec![24_000_000, 24_000_000, 1_000_000]),
    ) -> Traffic {
        let config = PolicyConfig { fan_in, target_spans, ..PolicyConfig::default() };
        // A few thousand flushes are enough to see two levels fill.
        let days = if flush_every * 4 < 200 * writers { 1 } else { days };
        Traffic {
            seed, days, writers, flush_every, flush_window, spans_per_block, late, outliers, merge_every, jobs_a_round, config,
        }
    }
}

/// The blocks of one tenant, and what was done to each.
struct World {
    traffic: Traffic,
    rng: SmallRng,
    state: ManifestState,
    next: u64,
    /// The most merges any span of a block has behind it, counted here and not by the policy.
    rewrites: HashMap<BlockId, u8>,
    /// By day: lengths of windows in which blocks of the day were merged.
    lengths: BTreeMap<u64, BTreeSet<u64>>,
    most_outstanding: usize,
}

impl World {
    fn new(traffic: Traffic) -> Self {
        let rng = SmallRng::seed_from_u64(traffic.seed);
        Self {
            traffic,
            rng,
            state: ManifestState::default(),
            next: 0,
            rewrites: HashMap::new(),
            lengths: BTreeMap::new(),
            most_outstanding: 0,
        }
    }

    fn add(&mut self, entry: BlockEntry, rewrites: u8) {
        self.rewrites.insert(entry.id, rewrites);
        self.state.blocks.insert(entry.id, Arc::new(entry));
    }

    /// The block of a cut: of the present, or of some time before it.
    fn flush(&mut self, now: u64) {
        let ago = match self.rng.random_range(0..100) {
            percent if percent < self.traffic.late => self.rng.random_range(0..2 * 86_400),
            _ => self.rng.random_range(0..30),
        };
        let (start, length) = (now - ago, self.traffic.flush_window);
        let window = Window { start: start / length * length, length };
        let outlier = self.rng.random_range(0..100) < self.traffic.outliers;
        // Now and then a much smaller or larger one.
        let spans = match self.rng.random_range(0..20) {
            0 => 1,
            1 => self.traffic.spans_per_block * 3,
            _ => self.traffic.spans_per_block,
        };
        self.next += 1;
        let block = BlockEntry {
            rows: spans,
            size_bytes: spans * 29,
            filter_bytes: spans / 10,
            min_start: UnixNanos::from_seconds(start),
            max_start: UnixNanos::from_seconds(start),
            received_max: UnixNanos::from_seconds(now),
            window: (!outlier).then_some(window),
            ..entry(self.next)
        };
        self.add(block, 0);
    }

    fn plan(&self, now: u64) -> Plan {
        plan(&self.state, UnixNanos::from_seconds(now), RETENTION, &BTreeSet::new(), &self.traffic.config)
    }

    /// What a job may be, whatever the policy thinks of it.
    fn check(&self, job: &Job) -> Vec<Arc<BlockEntry>> {
        let config = self.traffic.config;
        let inputs: Vec<_> = job.inputs.iter().map(|id| Arc::clone(&self.state.blocks[id])).collect();
        assert!((2..=config.fan_in).contains(&inputs.len()), "{job:?}");
        assert_eq!(job.level, inputs.iter().map(|input| input.level).max().unwrap() + 1);
        assert!(job.level <= 2, "{job:?}");
        let (rows, bytes) = (inputs.iter().map(|b| b.rows).sum::<u64>(), inputs.iter().map(|b| bytes_of(b)).sum::<u64>());
        assert_eq!((job.rows, job.bytes), (rows, bytes));
        assert!(rows <= config.target_spans && bytes <= config.target_bytes, "{job:?}");
        let largest = inputs.iter().map(|b| bytes_of(b)).max().unwrap();
        assert!(inputs.len() == config.fan_in || largest <= 4 * (bytes - largest), "{job:?}");
        for input in &inputs {
            assert!(input.rows * 2 < config.target_spans && bytes_of(input) * 2 < config.target_bytes, "full: {input:?}");
            match (job.window, input.window) {
                (None, None) => {}
                (Some(outer), Some(inner)) => {
                    assert!(LENGTHS.contains(&outer.length) && outer.start.is_multiple_of(outer.length), "{job:?}");
                    let holds = outer.start <= inner.start && inner.start + inner.length <= outer.start + outer.length;
                    assert!(holds, "{outer:?} of {inner:?}");
                }
                windows => panic!("outliers with others: {windows:?}"),
            }
        }
        inputs
    }

    /// Does a job as an executor would: its output is a little smaller than its inputs.
    fn execute(&mut self, job: &Job) {
        let inputs = self.check(job);
        let rewrites = job.inputs.iter().map(|id| self.rewrites[id]).max().unwrap() + 1;
        assert!(rewrites <= 2, "{job:?}");
        if let Some(window) = job.window {
            self.lengths.entry(window.start / 86_400).or_default().insert(window.length);
        }
        for id in &job.inputs {
            self.state.blocks.remove(id);
        }
        self.next += 1;
        let output = BlockEntry {
            rows: job.rows - job.rows / 100,
            size_bytes: job.bytes - job.bytes / 5,
            filter_bytes: 0,
            min_start: inputs.iter().map(|input| input.min_start).min().unwrap(),
            max_start: inputs.iter().map(|input| input.max_start).max().unwrap(),
            received_max: inputs.iter().map(|input| input.received_max).max().unwrap(),
            window: job.window,
            level: job.level,
            id: block_id(self.next),
            ..entry(0)
        };
        self.add(output, rewrites);
    }

    /// Plans and merges until nothing is due. A plan that was begun is not finished where a round has a limit.
    fn merge(&mut self, now: u64) {
        loop {
            let plan = self.plan(now);
            if self.next.is_multiple_of(16) {
                assert_eq!(plan, self.plan(now), "the same arguments, another plan");
            }
            let all: Vec<BlockId> = plan.jobs.iter().flat_map(|job| job.inputs.iter().copied()).collect();
            assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "a block in two jobs");
            let waiting: usize = plan.waiting.iter().map(|waiting| waiting.blocks.len()).sum();
            assert_eq!(all.len() + waiting, self.state.blocks.len());
            if plan.jobs.is_empty() {
                return self.check_bounds(&plan);
            }
            for job in plan.jobs.iter().take(self.traffic.jobs_a_round) {
                self.execute(job);
            }
        }
    }

    /// What is left when nothing is due: fewer than fan-in of each level in each group that waits for more; in a closed window
    /// only blocks each of which is more than four times all smaller ones.
    fn check_bounds(&mut self, plan: &Plan) {
        let mut outstanding = 0;
        for waiting in &plan.waiting {
            let blocks: Vec<_> = waiting.blocks.iter().map(|id| &self.state.blocks[id]).collect();
            match waiting.why {
                WhyNot::Open { .. } | WhyNot::Late | WhyNot::Outliers => {
                    for level in 0..2 {
                        let count = blocks.iter().filter(|block| block.level == level).count();
                        assert!(count < self.traffic.config.fan_in, "{waiting:?}");
                    }
                }
                WhyNot::Alone => {
                    let mut sizes: Vec<u64> = blocks.iter().map(|block| bytes_of(block)).collect();
                    sizes.sort_unstable();
                    let mut smaller = 0;
                    for (at, size) in sizes.into_iter().enumerate() {
                        assert!(at == 0 || size > 4 * smaller, "{waiting:?}");
                        smaller += size;
                    }
                }
                WhyNot::Full | WhyNot::Rewritten => continue,
                WhyNot::Turn | WhyNot::Quarantined | WhyNot::PastRetention => panic!("{waiting:?}"),
            }
            outstanding += blocks.len();
        }
        self.most_outstanding = self.most_outstanding.max(outstanding);
    }

    /// Blocks of flushes, and what is left of them when nothing comes any more.
    fn run(mut self) -> Self {
        let (traffic, end) = (self.traffic.clone(), MIDNIGHT + self.traffic.days * 86_400 + 7200);
        let mut merge_at = MIDNIGHT;
        for now in (MIDNIGHT..end).step_by(traffic.flush_every as usize) {
            for _ in 0..traffic.writers {
                self.flush(now);
            }
            if now >= merge_at {
                self.merge(now);
                merge_at = now + traffic.merge_every;
            }
        }
        // Windows close one after the other, and after that nothing happens for good.
        for hours in (0..48).chain([100, 1000]) {
            self.merge(end + hours * 3600);
        }
        for hours in [0, 1, 24, 999] {
            assert_eq!(self.plan(end + (1000 + hours) * 3600).jobs, []);
        }
        // The choice of a day did not change: there is one length, and the day itself for what came late.
        for lengths in self.lengths.values() {
            assert!(lengths.iter().filter(|length| **length < 86_400).count() <= 1, "{:?}", self.lengths);
        }
        self
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 50, ..ProptestConfig::default() })]

    #[test]
    fn days_of_traffic(traffic in traffic()) {
        World::new(traffic).run();
    }
}

/// What users see: rates and volumes with the blocks they end up with.
#[test]
fn a_day_ends_in_few_blocks() {
    // Writers, seconds between flushes, spans a block; most that waited at a time, blocks of the first day at the end of all.
    for (what, writers, flush_every, spans_per_block, most_outstanding, most_left) in [
        ("a laptop", 1, 600, 100, 40, 1),
        ("a small team", 1, 30, 500, 92, 3),
        ("the same through four ingesters", 4, 30, 500, 62, 12),
        ("10,000 spans/s", 1, 30, 300_000, 62, 50),
    ] {
        let traffic = Traffic {
            seed: 1,
            days: 2,
            writers,
            flush_every,
            flush_window: 3600,
            spans_per_block,
            late: 0,
            outliers: 0,
            merge_every: 300,
            jobs_a_round: usize::MAX,
            config: PolicyConfig::default(),
        };
        let world = World::new(traffic).run();
        let first_day = MIDNIGHT / 86_400;
        let of_first = |block: &&Arc<BlockEntry>| block.window.is_some_and(|window| window.start / 86_400 == first_day);
        let left = world.state.blocks.values().filter(of_first).count();
        assert!(world.most_outstanding <= most_outstanding, "{what}: {} waited", world.most_outstanding);
        assert!(left <= most_left, "{what}: {left} left");
    }
}

/// A sender whose clock is behind sends one block into each of the last 100 hours, again and again.
#[test]
fn a_trickle_into_old_windows_stays_few() {
    let traffic = Traffic {
        seed: 1,
        days: 1,
        writers: 1,
        flush_every: 60,
        flush_window: 3600,
        spans_per_block: 1000,
        late: 0,
        outliers: 0,
        merge_every: 300,
        jobs_a_round: usize::MAX,
        config: PolicyConfig::default(),
    };
    let mut world = World::new(traffic);
    let base = MIDNIGHT + 5 * 86_400;
    let mut now = base;
    for round in 0..200 {
        for hour in 0..100 {
            world.next += 1;
            let start = base - 86_400 - hour * 3600;
            let at = UnixNanos::from_seconds(start);
            let window = Some(Window { start: start / 3600 * 3600, length: 3600 });
            let received_max = UnixNanos::from_seconds(now);
            let block = BlockEntry { window, min_start: at, max_start: at, received_max, ..entry(world.next) };
            world.add(block, 0);
        }
        now += (15 * MINUTE).as_secs();
        world.merge(now);
        // Six days: fewer than 32 of each level, and one of level 2 for every 1024.
        assert!(world.state.blocks.len() <= 6 * 62 + 20, "{} after {round}", world.state.blocks.len());
    }
    assert!(Duration::from_secs(now - base) == 50 * HOUR && world.state.blocks.len() < 6 * 62 + 20);
}
