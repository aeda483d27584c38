//! I1 under power cuts: random appends, releases, rotations, disk errors and kills, then the power goes at a random call, also
//! during recovery. After each, what was acknowledged must be replayed exactly once, in order, with equal content.
//!
//! `SPANHOUSE_POWER_CUTS` sets the number of cuts. A failure names its seed; the same seed gives the same run.

use std::collections::{BTreeMap, HashMap, HashSet};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use spanhouse_common::fs::sim::SimFs;

use super::*;

const CUTS_PER_WORLD: u64 = 20;

struct World {
    rng: StdRng,
    fs: SimFs,
    clock: Arc<ManualClock>,
    config: WalConfig,
    core: Option<WalCore>,
    published: Published,
    /// Length of everything ever tried, by id.
    tried: Vec<usize>,
    acked: BTreeMap<WalPosition, u64>,
    released: HashMap<TenantId, WalPosition>,
    cuts: u64,
}

impl World {
    fn new(seed: u64, canary: Option<Canary>) -> Self {
        let config = WalConfig { canary, ..small() };
        Self {
            rng: StdRng::seed_from_u64(seed),
            fs: SimFs::new(seed),
            clock: ManualClock::at(UnixNanos::from_seconds(1)),
            config,
            core: None,
            published: Published::default(),
            tried: Vec::new(),
            acked: BTreeMap::new(),
            released: HashMap::new(),
            cuts: 0,
        }
    }

    fn run(&mut self) -> Result<(), String> {
        while self.cuts < CUTS_PER_WORLD {
            self.start()?;
            if self.core.is_some() {
                let calls = self.rng.random_range(0..60);
                let kill = self.rng.random_range(0..5) == 0;
                if !kill {
                    self.fs.set_faults(|faults| faults.power_off_after = Some(calls));
                }
                let mut steps = 0;
                while !self.fs.is_off() && (!kill || steps < calls) {
                    self.step()?;
                    steps += 1;
                }
                // A kill drops the process and keeps the disk.
                self.core = None;
            }
            if self.fs.is_off() {
                self.cut();
            }
        }
        self.start()
    }

    fn cut(&mut self) {
        self.core = None;
        self.fs = self.fs.power_cut();
        self.cuts += 1;
    }

    /// Opens and replays until it succeeds, sometimes with the power going in between.
    fn start(&mut self) -> Result<(), String> {
        self.fs.set_faults(|faults| *faults = Default::default());
        if self.cuts < CUTS_PER_WORLD && self.rng.random_range(0..3) == 0 {
            let calls = self.rng.random_range(0..12);
            self.fs.set_faults(|faults| faults.power_off_after = Some(calls));
        }
        let mut records = Vec::new();
        let opened = match open_at(&self.fs, &self.config, &self.clock) {
            Ok(opened) => opened,
            Err(_) if self.fs.is_off() => return Ok(()),
            Err(error) => return Err(format!("failed start: {error}")),
        };
        let replay = opened.replay(|record| {
            records.push(record);
            Ok::<_, std::convert::Infallible>(())
        });
        let (replayed, _) = match replay {
            Ok(done) => done,
            Err(_) if self.fs.is_off() => return Ok(()),
            Err(error) => return Err(format!("failed replay: {error}")),
        };
        self.check(&records)?;
        self.published.0.lock().clear();
        let mut core = replayed.into_core();
        // As the ingester does: what the manifest covers is released after the replay.
        for (tenant, watermark) in &self.released {
            core.segments().release(tenant, *watermark);
        }
        core.try_recover();
        if !self.fs.is_off() {
            self.core = Some(core);
        }
        Ok(())
    }

    fn check(&self, records: &[ReplayedRecord]) -> Result<(), String> {
        let mut seen = HashSet::new();
        let mut positions = HashSet::new();
        for pair in records.windows(2) {
            if pair[0].position >= pair[1].position {
                return Err(format!("{} replayed before {}", pair[0].position, pair[1].position));
            }
        }
        for ReplayedRecord { position, meta, body } in records {
            let id = id_of(body).ok_or("a body nobody sent")?;
            let len = self.tried.get(id as usize).ok_or("an id nobody sent")?;
            let sent = numbered(id, *len);
            if sent.meta != *meta || sent.body != *body {
                return Err(format!("{position} has other content than what was sent"));
            }
            if !seen.insert(id) {
                return Err(format!("record {id} replayed twice"));
            }
            if self.acked.get(position).is_some_and(|acked| *acked != id) {
                return Err(format!("{position} was acknowledged for another record"));
            }
            positions.insert(*position);
        }
        for (position, id) in &self.acked {
            let released = self.released.get(&numbered(*id, 0).meta.tenant).is_some_and(|watermark| position <= watermark);
            if !released && !positions.contains(position) {
                return Err(format!("acknowledged record {position} is lost"));
            }
        }
        Ok(())
    }

    fn step(&mut self) -> Result<(), String> {
        let Some(core) = &mut self.core else { return Ok(()) };
        match self.rng.random_range(0..20) {
            0..12 => {
                let mut records = Vec::new();
                for _ in 0..self.rng.random_range(1..6) {
                    let len = if self.rng.random() { self.rng.random_range(0..100) } else { self.rng.random_range(0..4000) };
                    records.push(numbered(self.tried.len() as u64, len));
                    self.tried.push(len);
                }
                let first = self.tried.len() - records.len();
                let answers = commit(core, records, &self.published);
                let published = std::mem::take(&mut *self.published.0.lock());
                let mut expected = Vec::new();
                for (id, answer) in (first as u64..).zip(answers) {
                    if let Ok(position) = answer {
                        expected.push((position, id));
                        if self.acked.insert(position, id).is_some() {
                            return Err(format!("{position} was given out twice"));
                        }
                    }
                }
                if published != expected {
                    return Err(format!("published {published:?}, acknowledged {expected:?}"));
                }
            }
            12..15 => {
                let tenant = tenant(self.rng.random_range(0..5));
                let last = self.acked.last_key_value().map(|(position, _)| *position).unwrap_or_default();
                let back = self.rng.random_range(0..4);
                let watermark = WalPosition { sequence: last.sequence.saturating_sub(back), ..last };
                let kept = self.released.entry(tenant.clone()).or_default();
                *kept = watermark.max(*kept);
                core.segments().release(&tenant, watermark);
            }
            15 => core.rotate_if_idle(),
            16 | 17 => self.clock.advance(Duration::from_secs(self.rng.random_range(0..8))),
            18 => {
                let n = self.rng.random_range(0..4);
                let which = self.rng.random_range(0..3);
                self.fs.set_faults(|faults| match which {
                    0 => faults.fail_sync_after = Some(n),
                    1 => faults.fail_write_after = Some(n),
                    _ => faults.fail_sync_dir_after = Some(n),
                });
            }
            _ => core.try_recover(),
        }
        Ok(())
    }
}

/// The first violation found within `cuts` power cuts.
fn find_violation(cuts: u64, canary: Option<Canary>) -> Option<String> {
    (0..cuts.div_ceil(CUTS_PER_WORLD)).find_map(|seed| {
        let found = World::new(seed, canary).run();
        found.err().map(|violation| format!("seed {seed}: {violation}"))
    })
}

#[test]
fn wal_power_cuts_lose_nothing_acknowledged() {
    let cuts = env_count("SPANHOUSE_POWER_CUTS", 2_000);
    assert_eq!(find_violation(cuts, None), None);
}

#[test]
fn wal_power_cuts_catch_every_canary() {
    for canary in [Canary::SkipSync, Canary::SkipDirSync, Canary::AckEarly] {
        let found = find_violation(200, Some(canary));
        let text = found.unwrap_or_else(|| panic!("{canary:?} was not caught"));
        assert!(text.contains("lost"), "{canary:?} was caught for another reason: {text}");
    }
}

#[test]
fn wal_power_cuts_are_the_same_by_seed() {
    let trace = |seed| {
        let mut world = World::new(seed, None);
        world.run().unwrap();
        (world.acked, world.tried, world.released)
    };
    assert_eq!(trace(11), trace(11));
}
