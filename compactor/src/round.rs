//! One round: every tenant's retention, merges and packs, and the sweep of those that are due.
//!
//! Owns the order and what is remembered between rounds. Does not own when a round begins ([`crate::start`]).
//!
//! Crash story: 1. one manifest version takes blocks out; 2. others swap blocks ([`crate::merge`]) and packs of filters
//! ([`crate::packs`]); 3. after a grace
//! the objects of what is out are deleted. A kill, or the round being dropped, between any two requests leaves objects without
//! a reference, which the next process sweeps.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use spanhouse_common::id::{BlockId, TenantId};
use spanhouse_common::manifest::{Change, CommitError, ManifestStore, unbury};

use crate::CompactorDeps;
use crate::config::CompactorConfig;
use crate::error::{RetireError, SweepError};
use crate::history;
use crate::merge::Merger;
use crate::merging::{MergeLimits, Merging, REWRITE_AFTER};
use crate::metrics::{CompactorMetrics, Step};
use crate::packs::{Packed, Packer};
use crate::retention::past_retention;
use crate::status::{CompactorStatus, levels_of};
use crate::sweeper::{Graces, SweepLimits, Sweeper, Swept};

/// Blocks retired by one commit: keeps a version below a few megabytes.
const MAX_RETIRED: usize = 50_000;

/// Between two clean-ups of one manifest's history: it is days old at least, and listing it is not free.
const HISTORY_INTERVAL: Duration = Duration::from_secs(6 * 3600);

/// Merges of one tenant before the others have their turn.
const MERGES_A_TURN: usize = 8;

/// What is remembered of a tenant. Times are monotonic.
#[derive(Debug, Default)]
struct TenantWork {
    merging: Merging,
    packer: Packer,
    sweeper: Sweeper,
    sweep_at: Duration,
    history_at: Duration,
    unreferenced: u64,
}

/// Makes rounds. Everything it remembers may be lost.
#[derive(Debug)]
pub(crate) struct Rounds {
    config: CompactorConfig,
    deps: CompactorDeps,
    metrics: CompactorMetrics,
    merger: Merger,
    status: CompactorStatus,
    tenants: BTreeMap<TenantId, TenantWork>,
}

impl Rounds {
    pub(crate) fn new(config: CompactorConfig, deps: CompactorDeps, metrics: CompactorMetrics) -> Self {
        let status = CompactorStatus::new(Arc::clone(&deps.clock));
        Self { config, merger: deps.merger(), deps, metrics, status, tenants: BTreeMap::new() }
    }

    pub(crate) fn status(&self) -> CompactorStatus {
        self.status.clone()
    }

    /// Goes through all tenants. What fails for one is counted and does not keep the others waiting. Whether more is due at once.
    pub(crate) async fn round(&mut self) -> bool {
        let began = self.deps.clock.monotonic();
        let mut has_more = false;
        match self.deps.manifests.tenants().list().await {
            Ok(tenants) => {
                for (gone, work) in self.tenants.iter().filter(|(tenant, _)| !tenants.contains(tenant)) {
                    self.metrics.forget(gone);
                    work.merging.quarantined().keys().for_each(|block| self.metrics.released(gone, *block));
                    self.status.forget(gone);
                }
                self.tenants.retain(|tenant, _| tenants.contains(tenant));
                for tenant in tenants {
                    has_more |= self.tenant(&tenant).await;
                }
            }
            Err(error) => {
                self.metrics.failed(Step::Tenants, 1);
                tracing::warn!(error = %error, "no retention and no sweep in this round");
            }
        }
        self.metrics.unreferenced_blocks.set(self.tenants.values().map(|work| work.unreferenced as i64).sum());
        let took = self.deps.clock.monotonic().saturating_sub(began);
        self.metrics.last_round_seconds.set(took.as_secs_f64());
        self.metrics.rewrites_per_span.set(self.status.rewrites_per_span());
        self.status.round(took);
        has_more
    }

    /// Whether more of it is due at once.
    async fn tenant(&mut self, tenant: &TenantId) -> bool {
        let manifest = match self.deps.manifests.for_reading(tenant).await {
            Ok(Some(manifest)) => manifest,
            Ok(None) => return false,
            Err(error) => {
                self.failed(tenant, Step::Retire, &error);
                return false;
            }
        };
        match self.retire(&manifest).await {
            Ok(0) => {}
            Ok(blocks) => {
                self.metrics.retired_blocks.inc_by(blocks);
                tracing::info!(tenant = %tenant, blocks, "retired blocks past retention");
            }
            // A damaged manifest stays so: its sweep would fail the same way.
            Err(error) => {
                self.failed(tenant, Step::Retire, &error);
                return false;
            }
        }
        let mut work = self.tenants.remove(tenant).unwrap_or_default();
        let has_more = self.merge(&manifest, &mut work).await;
        self.pack(&manifest, &mut work).await;
        let now = self.deps.clock.monotonic();
        if now >= work.sweep_at {
            match self.sweep(&manifest, &mut work).await {
                Ok(swept) => self.swept(tenant, swept, &mut work, now),
                Err(error) => self.failed(tenant, Step::Sweep, &error),
            }
        }
        if now >= work.history_at {
            match history::clean(self.deps.manifests.store(), &manifest, self.limits()).await {
                Ok((found, deleted)) => {
                    self.metrics.deleted(deleted);
                    let done = self.config.dry_run || deleted.objects == found;
                    work.history_at = if done { now.saturating_add(HISTORY_INTERVAL) } else { now };
                }
                Err(error) => self.failed(tenant, Step::History, &error),
            }
        }
        let state = manifest.current();
        self.metrics.outstanding(tenant, &levels_of(&state));
        self.status.tenant(tenant, &state, work.merging.quarantined());
        self.tenants.insert(tenant.clone(), work);
        has_more
    }

    /// Runs merges and rewrites that are due, a few at a time. Whether more are.
    async fn merge(&self, manifest: &ManifestStore, work: &mut TenantWork) -> bool {
        if !self.config.merge || self.config.dry_run {
            return false;
        }
        let limits = MergeLimits {
            retention: self.deps.retention.of(manifest.tenant()),
            policy: self.config.policy,
            most: MERGES_A_TURN,
            rewrite_after: REWRITE_AFTER,
        };
        let tenant = manifest.tenant();
        let before: Vec<BlockId> = work.merging.quarantined().keys().copied().collect();
        let show = |due: &_, progress: &_, result: Option<&_>| self.status.merge(tenant, due, progress, result);
        let turn = work.merging.turn(&self.merger, manifest, &limits, &self.metrics, show).await;
        for block in before.into_iter().filter(|block| !work.merging.quarantined().contains_key(block)) {
            self.metrics.released(tenant, block);
        }
        match turn {
            Ok(turn) => turn.has_more,
            Err(error) => {
                self.failed(tenant, Step::Merge, &error);
                false
            }
        }
    }

    /// Takes what is past retention out of the manifest, tombstones too. Returns how many blocks.
    async fn retire(&self, manifest: &ManifestStore) -> Result<u64, RetireError> {
        let state = manifest.refresh().await?;
        let (now, retention) = (self.deps.clock.now(), self.deps.retention.of(manifest.tenant()));
        // Looked at first: a tenant without a manifest must not get one from here.
        if past_retention(&state, now, retention).is_empty() && unbury(&state, now, retention).is_empty() {
            return Ok(0);
        }
        let mut retired = 0;
        let build = |state: &_| {
            let mut remove = past_retention(state, now, retention);
            remove.truncate(MAX_RETIRED);
            retired = remove.len() as u64;
            let change = Change { remove, unbury: unbury(state, now, retention), ..Change::default() };
            (!change.is_empty()).then_some(change)
        };
        match manifest.commit_with(build).await {
            Ok(_) => Ok(retired),
            // Another compactor was faster.
            Err(CommitError::Abandoned) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// Packs filters. What fails leaves them as they are, and nobody waits for it.
    async fn pack(&self, manifest: &ManifestStore, work: &mut TenantWork) {
        let mut packed = Packed::default();
        let done = work.packer.pack(self.deps.manifests.store(), manifest, self.deps.clock.as_ref(), &mut packed).await;
        self.metrics.packed(packed);
        if packed.packs > 0 {
            let Packed { packs, filters, .. } = packed;
            tracing::info!(tenant = %manifest.tenant(), packs, filters, "packed trace-id filters");
        }
        if let Err(error) = done {
            self.failed(manifest.tenant(), Step::Pack, &error);
        }
    }

    async fn sweep(&self, manifest: &ManifestStore, work: &mut TenantWork) -> Result<Swept, SweepError> {
        let graces = Graces { query: self.config.query_grace, orphan: self.config.sweep_grace };
        let store = self.deps.manifests.store();
        work.sweeper.sweep(store, manifest, self.deps.clock.as_ref(), graces, self.limits()).await
    }

    fn swept(&self, tenant: &TenantId, swept: Swept, work: &mut TenantWork, now: Duration) {
        self.metrics.deleted(swept.deleted);
        work.unreferenced = swept.unreferenced;
        let more = swept.has_more(self.limits());
        work.sweep_at = if more { now } else { now.saturating_add(self.config.sweep_interval) };
        if swept.garbage > 0 {
            let (garbage, bytes, deleted) = (swept.garbage, swept.garbage_bytes, swept.deleted.objects);
            tracing::info!(tenant = %tenant, garbage, bytes, deleted, dry_run = self.config.dry_run, "swept blocks");
        }
    }

    fn limits(&self) -> SweepLimits {
        SweepLimits { max_deletes: self.config.max_deletes, dry_run: self.config.dry_run }
    }

    fn failed(&self, tenant: &TenantId, step: Step, error: &dyn std::error::Error) {
        self.metrics.failed(step, 1);
        tracing::warn!(tenant = %tenant, step = ?step, error = %error, "failed; the next round tries again");
    }
}
