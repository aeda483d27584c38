//! One tenant's merges and rewrites, one after the other: what is due, what becomes of it, what is left alone from then on.
//!
//! Owns the quarantine. Does not own which blocks are merged ([`crate::policy`]) nor how a merge runs ([`crate::merge`]).
//! Everything it remembers may be lost: a damaged block is found again by the merge that meets it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use spanhouse_common::block::{BlockCache, BlockLocation, BlockReader};
use spanhouse_common::id::{BlockId, TraceId};
use spanhouse_common::manifest::{BlockEntry, ManifestState, ManifestStore, Tombstones};
use spanhouse_common::source::{Source, SourceError};
use spanhouse_common::time::UnixNanos;

use crate::merge::{Done, LeaveOut, Merger, Progress, Task, TaskError};
use crate::metrics::{CompactorMetrics, JobOutcome};
use crate::policy::{Job, PolicyConfig, plan};

/// How long a deleted trace may stay in storage before blocks are rewritten for it alone: deletions of a day share one rewrite, and a
/// merge that comes first drops it anyway.
pub const REWRITE_AFTER: Duration = Duration::from_secs(6 * 3600);

/// How long the inputs of a merge are left alone that failed for no fault of theirs.
const SET_ASIDE: Duration = Duration::from_secs(3600);

/// Merges that fail for another reason than their inputs before this tenant's are left for the next round.
const MAX_FAILURES: u32 = 3;

/// A merge or rewrite that is due.
#[derive(Clone, Debug)]
pub struct Due {
    pub task: Task,
    /// For people.
    pub why: String,
    pub is_rewrite: bool,
}

/// What is done to one tenant.
#[derive(Clone, Copy, Debug)]
pub struct MergeLimits {
    pub retention: Duration,
    pub policy: PolicyConfig,
    /// Merges in one turn; others wait for the next.
    pub most: usize,
    /// Age of a deletion from which blocks are rewritten for it.
    pub rewrite_after: Duration,
}

/// What is remembered of a tenant between turns.
#[derive(Debug, Default)]
pub struct Merging {
    /// Blocks no merge takes, and why.
    quarantined: BTreeMap<BlockId, String>,
    /// Inputs of merges that failed for no fault of theirs, and until when no merge takes them, monotonic: others must not wait
    /// behind one that fails whenever it is tried.
    set_aside: HashMap<BlockId, Duration>,
    /// By block: the deletions it was looked through for, those of the map up to the time.
    cleared: HashMap<BlockId, (Arc<Tombstones>, UnixNanos)>,
}

/// What a turn did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    pub merges: usize,
    /// More is due.
    pub has_more: bool,
}

impl Merging {
    pub fn quarantined(&self) -> &BTreeMap<BlockId, String> {
        &self.quarantined
    }

    /// Runs what is due. `show` is told of each merge before it runs and after it ended.
    pub async fn turn(
        &mut self,
        merger: &Merger,
        manifest: &ManifestStore,
        limits: &MergeLimits,
        metrics: &CompactorMetrics,
        mut show: impl FnMut(&Due, &Arc<Progress>, Option<&Result<Done, TaskError>>),
    ) -> Result<Turn, TaskError> {
        let (mut turn, mut failures) = (Turn::default(), 0);
        loop {
            let state = manifest.current();
            self.quarantined.retain(|id, _| state.blocks.contains_key(id));
            let now = merger.clock.monotonic();
            self.set_aside.retain(|id, until| *until > now && state.blocks.contains_key(id));
            let Some(due) = self.next(merger, manifest, &state, limits, metrics).await? else { return Ok(turn) };
            if turn.merges == limits.most {
                return Ok(Turn { has_more: true, ..turn });
            }
            let leave_out = leave_out(&state, merger.clock.now(), limits.retention);
            let progress = Arc::new(Progress::default());
            show(&due, &progress, None);
            let began = merger.clock.monotonic();
            let result = merger.run(manifest, &due.task, leave_out, &progress).await;
            let took = merger.clock.monotonic().saturating_sub(began);
            show(&due, &progress, Some(&result));
            let tenant = manifest.tenant();
            match result {
                Ok(done) => {
                    metrics.job(JobOutcome::of(&done, due.is_rewrite), took, Some(&done));
                    tracing::info!(
                        tenant = %tenant, blocks = due.task.inputs.len(), level = due.task.level, spans = done.rows_out,
                        bytes_in = done.bytes_in, bytes_out = done.bytes_out, why = %due.why, "merged blocks"
                    );
                    turn.merges += 1;
                }
                Err(TaskError::Overtaken { block }) => {
                    metrics.job(JobOutcome::Overtaken, took, None);
                    tracing::debug!(tenant = %tenant, %block, "another commit came first; planning anew");
                    // What this process knows may be what the refusal told it; what it does not, it asks for.
                    manifest.refresh().await.map_err(|error| TaskError::Commit(error.into()))?;
                }
                Err(TaskError::Damaged { block, why }) => {
                    metrics.job(JobOutcome::Damaged, took, None);
                    self.quarantine(manifest, metrics, block, why);
                }
                Err(error @ (TaskError::Merge(_) | TaskError::Panicked)) => {
                    metrics.job(JobOutcome::Failed, took, None);
                    let until = merger.clock.monotonic().saturating_add(SET_ASIDE);
                    self.set_aside.extend(due.task.inputs.iter().map(|entry| (entry.id, until)));
                    tracing::error!(
                        tenant = %tenant, blocks = due.task.inputs.len(), error = %error,
                        "a merge failed: its blocks are left alone for an hour, others go on"
                    );
                }
                Err(error) => {
                    metrics.job(JobOutcome::Failed, took, None);
                    failures += 1;
                    if failures == MAX_FAILURES || matches!(error, TaskError::Stopped) {
                        return Err(error);
                    }
                    tracing::warn!(tenant = %tenant, error = %error, "a merge failed and is tried again");
                    tokio::time::sleep(Duration::from_secs(1) * failures).await;
                }
            }
        }
    }

    /// The most urgent merge, or the rewrite of a block that holds a deleted trace.
    async fn next(
        &mut self,
        merger: &Merger,
        manifest: &ManifestStore,
        state: &ManifestState,
        limits: &MergeLimits,
        metrics: &CompactorMetrics,
    ) -> Result<Option<Due>, TaskError> {
        let left_alone: BTreeSet<BlockId> = self.quarantined.keys().chain(self.set_aside.keys()).copied().collect();
        let planned = plan(state, merger.clock.now(), limits.retention, &left_alone, &limits.policy);
        if let Some(due) = planned.jobs.iter().find_map(|job| due_of(job, state)) {
            return Ok(Some(due));
        }
        Ok(self.rewrite(merger, manifest, state, limits, metrics).await)
    }

    fn quarantine(&mut self, manifest: &ManifestStore, metrics: &CompactorMetrics, block: BlockId, why: String) {
        tracing::error!(
            tenant = %manifest.tenant(), %block, why = %why,
            "block is damaged: no merge takes it from now on, queries that need it are partial; see `spanhouse blocks verify`"
        );
        metrics.quarantined(manifest.tenant(), block);
        self.quarantined.insert(block, why);
    }

    async fn rewrite(
        &mut self,
        merger: &Merger,
        manifest: &ManifestStore,
        state: &ManifestState,
        limits: &MergeLimits,
        metrics: &CompactorMetrics,
    ) -> Option<Due> {
        let old = merger.clock.now().saturating_sub(limits.rewrite_after);
        self.cleared.retain(|id, _| state.blocks.contains_key(id));
        for entry in state.blocks.values() {
            if self.quarantined.contains_key(&entry.id) || self.set_aside.contains_key(&entry.id) {
                continue;
            }
            let cleared = self.cleared.get(&entry.id);
            let (min, max) = (entry.min_trace_id, entry.max_trace_id);
            let within = state.tombstones.range(min..=max);
            let due: Vec<TraceId> = within
                .filter(|(id, stone)| stone.deleted_at <= old && !cleared.is_some_and(|known| is_cleared(known, id)))
                .map(|(id, _)| *id)
                .collect();
            if due.is_empty() {
                continue;
            }
            match holds_any(merger, manifest, entry, &due).await {
                Ok(true) => {
                    let task = Task { window: entry.window, level: entry.level, inputs: vec![Arc::clone(entry)] };
                    let why = "it holds a deleted trace".to_owned();
                    return Some(Due { task, why, is_rewrite: true });
                }
                // Only those that were looked for: younger ones come later.
                Ok(false) => {
                    self.cleared.insert(entry.id, (Arc::clone(&state.tombstones), old));
                }
                Err(SourceError::Gone { .. }) => {}
                Err(SourceError::Damaged { why, .. }) => {
                    self.quarantine(manifest, metrics, entry.id, why);
                }
                Err(error) => {
                    tracing::warn!(tenant = %manifest.tenant(), block = %entry.id, error = %error, "not looked through for deleted traces; the next round does");
                }
            }
        }
        None
    }
}

/// Whether a block that was looked through for the deletions of a map up to a time was so for this trace.
fn is_cleared((known, until): &(Arc<Tombstones>, UnixNanos), id: &TraceId) -> bool {
    known.get(id).is_some_and(|stone| stone.deleted_at <= *until)
}

/// What every merge leaves out, by a version of the manifest.
fn leave_out(state: &ManifestState, now: UnixNanos, retention: Duration) -> LeaveOut {
    let traces: HashSet<TraceId> = state.tombstones.keys().copied().collect();
    LeaveOut { traces: Arc::new(traces), expired_before: now.saturating_sub(retention) }
}

/// The merge of a job, if all its inputs are there.
pub fn due_of(job: &Job, state: &ManifestState) -> Option<Due> {
    let inputs: Option<Vec<Arc<BlockEntry>>> = job.inputs.iter().map(|id| state.blocks.get(id).map(Arc::clone)).collect();
    let task = Task { window: job.window, level: job.level, inputs: inputs? };
    Some(Due { task, why: job.why.to_string(), is_rewrite: false })
}

/// Whether a block has spans of any of these traces: first by its filter, then by looking.
async fn holds_any(
    merger: &Merger,
    manifest: &ManifestStore,
    entry: &BlockEntry,
    ids: &[TraceId],
) -> Result<bool, SourceError> {
    let location = BlockLocation::of(manifest.tenant(), entry);
    let filter = location.open_filter(&merger.store).await?;
    let candidates: Vec<TraceId> = ids.iter().copied().filter(|id| filter.may_contain(*id)).collect();
    if candidates.is_empty() {
        return Ok(false);
    }
    let (store, cache) = (Arc::clone(&merger.store), BlockCache::new(8 << 20));
    let reader = Arc::new(BlockReader::open_footer(store, cache, location).await?);
    for id in candidates {
        if !reader.find_trace(id).await?.spans.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}
