//! What the compactor is doing, for the status page: a copy that anybody may read at any time.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use spanhouse_common::id::{BlockId, TenantId};
use spanhouse_common::manifest::ManifestState;
use spanhouse_common::time::{Clock, UnixNanos};

use crate::merge::{Done, Progress, TaskError};
use crate::merging::Due;
use crate::policy::MAX_LEVEL;

/// Last merges that are shown.
const SHOWN: usize = 20;
/// Tenants that are shown, those with most blocks to merge first.
const SHOWN_TENANTS: usize = 50;

/// Blocks of a level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Level {
    pub blocks: u64,
    pub bytes: u64,
    pub spans: u64,
}

/// A tenant's blocks by level.
pub fn levels_of(state: &ManifestState) -> [Level; MAX_LEVEL as usize + 1] {
    let mut levels = [Level::default(); MAX_LEVEL as usize + 1];
    for entry in state.blocks.values() {
        let of = &mut levels[usize::from(entry.level.min(MAX_LEVEL))];
        of.blocks += 1;
        of.bytes = of.bytes.saturating_add(entry.size_bytes).saturating_add(entry.filter_bytes);
        of.spans = of.spans.saturating_add(entry.rows);
    }
    levels
}

#[derive(Debug, Default)]
struct Shown {
    running: Option<Running>,
    last: Vec<String>,
    tenants: BTreeMap<TenantId, Tenant>,
    rounds: u64,
    last_round: Duration,
}

#[derive(Debug)]
struct Running {
    tenant: TenantId,
    what: String,
    spans: u64,
    bytes: u64,
    began: Duration,
    progress: Arc<Progress>,
}

#[derive(Debug, Default)]
struct Tenant {
    levels: [Level; MAX_LEVEL as usize + 1],
    tombstones: usize,
    quarantined: BTreeMap<BlockId, String>,
}

/// The state of a compactor for people to read.
#[derive(Clone, Debug)]
pub struct CompactorStatus {
    clock: Arc<dyn Clock>,
    shown: Arc<Mutex<Shown>>,
}

fn what(due: &Due) -> String {
    let inputs = &due.task.inputs;
    let verb = if due.is_rewrite { "rewrite of" } else { "merge of" };
    let window = due.task.window.map_or_else(
        || "outliers".to_owned(),
        |window| {
            let start = UnixNanos::from_seconds(window.start);
            format!("{start}+{}", humantime(Duration::from_secs(window.length)))
        },
    );
    format!("{verb} {} blocks to level {} in {window}: {}", inputs.len(), due.task.level, due.why)
}

fn humantime(length: Duration) -> String {
    match length.as_secs() {
        seconds if seconds % 3600 == 0 => format!("{}h", seconds / 3600),
        seconds if seconds % 60 == 0 => format!("{}m", seconds / 60),
        seconds => format!("{seconds}s"),
    }
}

impl CompactorStatus {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, shown: Arc::default() }
    }

    pub(crate) fn merge(
        &self,
        tenant: &TenantId,
        due: &Due,
        progress: &Arc<Progress>,
        result: Option<&Result<Done, TaskError>>,
    ) {
        let mut shown = self.shown.lock();
        let now = self.clock.monotonic();
        let Some(result) = result else {
            shown.running = Some(Running {
                tenant: tenant.clone(),
                what: what(due),
                spans: due.task.inputs.iter().map(|entry| entry.rows).sum(),
                bytes: due.task.inputs.iter().map(|entry| entry.size_bytes).sum(),
                began: now,
                progress: Arc::clone(progress),
            });
            return;
        };
        let took = shown.running.take().map_or(Duration::ZERO, |running| now.saturating_sub(running.began));
        let end = match result {
            Ok(done) => {
                format!("{} to {} spans, {} to {} bytes", done.rows_in, done.rows_out, done.bytes_in, done.bytes_out)
            }
            Err(error) => format!("not done: {error}"),
        };
        let line = format!("{} {tenant}: {}: {end} in {:.1} s", self.clock.now(), what(due), took.as_secs_f64());
        shown.last.push(line);
        let over = shown.last.len().saturating_sub(SHOWN);
        shown.last.drain(..over);
    }

    pub(crate) fn tenant(&self, tenant: &TenantId, state: &ManifestState, quarantined: &BTreeMap<BlockId, String>) {
        let of = Tenant { levels: levels_of(state), tombstones: state.tombstones.len(), quarantined: quarantined.clone() };
        self.shown.lock().tenants.insert(tenant.clone(), of);
    }

    pub(crate) fn forget(&self, tenant: &TenantId) {
        self.shown.lock().tenants.remove(tenant);
    }

    pub(crate) fn round(&self, took: Duration) {
        let mut shown = self.shown.lock();
        shown.rounds += 1;
        shown.last_round = took;
    }

    /// Rewrites behind a stored span, on average over all tenants.
    pub(crate) fn rewrites_per_span(&self) -> f64 {
        let shown = self.shown.lock();
        let (mut spans, mut rewrites) = (0u64, 0u64);
        for (level, of) in shown.tenants.values().flat_map(|tenant| (0u64..).zip(&tenant.levels)) {
            spans += of.spans;
            rewrites += of.spans * level;
        }
        rewrites as f64 / spans.max(1) as f64
    }

    /// The page.
    pub fn text(&self) -> String {
        use std::sync::atomic::Ordering::Relaxed;
        let shown = self.shown.lock();
        let mut out = String::new();
        // A String never fails to grow, short of an abort.
        let _ = writeln!(out, "rounds: {}, the last took {:.1} s", shown.rounds, shown.last_round.as_secs_f64());
        let _ = match &shown.running {
            None => writeln!(out, "running: nothing"),
            Some(running) => {
                let took = self.clock.monotonic().saturating_sub(running.began);
                let (fetched, merged) = (running.progress.fetched.load(Relaxed), running.progress.merged.load(Relaxed));
                writeln!(
                    out,
                    "running: {}: {}; {fetched} of {} bytes read, {merged} of {} spans merged, since {:.1} s",
                    running.tenant,
                    running.what,
                    running.bytes,
                    running.spans,
                    took.as_secs_f64()
                )
            }
        };
        let mut tenants: Vec<(&TenantId, &Tenant)> = shown.tenants.iter().collect();
        tenants.sort_by_key(|(_, of)| std::cmp::Reverse(of.levels[0].blocks + of.levels[1].blocks));
        let _ = writeln!(out, "\n{:<24} {:>5} {:>10} {:>16} {:>14}", "tenant", "level", "blocks", "bytes", "spans");
        for (tenant, of) in tenants.iter().take(SHOWN_TENANTS) {
            for (level, of) in of.levels.iter().enumerate() {
                let tenant = tenant.as_str();
                let _ = writeln!(out, "{tenant:<24} {level:>5} {:>10} {:>16} {:>14}", of.blocks, of.bytes, of.spans);
            }
        }
        if tenants.len() > SHOWN_TENANTS {
            let _ = writeln!(
                out,
                "and {} more tenants: see the metrics `spanhouse_compactor_outstanding_*`",
                tenants.len() - SHOWN_TENANTS
            );
        }
        let deleted = tenants.iter().filter(|(_, of)| of.tombstones > 0);
        for (tenant, of) in deleted.take(SHOWN_TENANTS) {
            let _ = writeln!(out, "\n{tenant}: {} deleted traces", of.tombstones);
        }
        for (tenant, of) in &tenants {
            for (block, why) in of.quarantined.iter().take(SHOWN) {
                let _ = writeln!(out, "\n{tenant}: block {block} is quarantined: {why}");
            }
        }
        let _ = writeln!(out, "\nlast merges:");
        for line in shown.last.iter().rev() {
            let _ = writeln!(out, "{line}");
        }
        out
    }
}
