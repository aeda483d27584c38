//! The compactor: merges blocks, retires those past retention, packs trace-id filters and sweeps objects nothing refers to.
//!
//! Reading order: [`config`], [`policy`], [`merge`], [`merging`], [`retention`], [`packs`], [`sweeper`], [`history`], `round`. [`start`] runs it: one task, one round after
//! the other, one tenant after the other, so that its load is a trickle.
//!
//! Does not own: live data, any network API, making blocks. It never creates a tenant or a manifest.

pub mod config;
mod delete;
mod error;
pub mod history;
pub mod merge;
pub mod merging;
mod metrics;
pub mod packs;
pub mod policy;
pub mod retention;
mod round;
pub mod status;
pub mod sweeper;

#[cfg(test)]
mod schedules;
#[cfg(test)]
mod testing;

use std::path::PathBuf;
use std::sync::Arc;

use prometheus_client::registry::Registry;
use spanhouse_common::budget::Share;
use spanhouse_common::manifest::Manifests;
use spanhouse_common::retention::Retention;
use spanhouse_common::time::Clock;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::{CancellationToken, DropGuard};

pub use config::CompactorConfig;
pub use delete::Deleted;
pub use error::{PackError, RetireError, SweepError};
use merge::Merger;
pub use metrics::{CompactorMetrics, JobOutcome, Step};
use round::Rounds;
pub use status::CompactorStatus;

/// What the compactor works with.
#[derive(Clone, Debug)]
pub struct CompactorDeps {
    pub manifests: Arc<Manifests>,
    pub clock: Arc<dyn Clock>,
    /// Asked for each tenant in each round.
    pub retention: Retention,
    /// Merges take [`merge::MERGE_BYTES`] each, or all of it if it is smaller.
    pub memory: Share,
    /// Where inputs and outputs of merges lie while they are made, in files without a name.
    pub spool_dir: PathBuf,
}

impl CompactorDeps {
    /// What runs merges.
    pub fn merger(&self) -> Merger {
        Merger {
            store: Arc::clone(self.manifests.store()),
            clock: Arc::clone(&self.clock),
            memory: self.memory.clone(),
            spool_dir: self.spool_dir.clone(),
        }
    }
}

/// A running compactor. Dropping it ends the work at its next wait.
#[derive(Debug)]
pub struct Compactor {
    cancel: DropGuard,
    task: JoinHandle<()>,
    metrics: CompactorMetrics,
    status: CompactorStatus,
}

/// Starts the loop on the current tokio runtime. The first round begins at once.
pub fn start(config: CompactorConfig, deps: CompactorDeps, registry: &mut Registry) -> Compactor {
    let metrics = CompactorMetrics::register(registry);
    let rounds = Rounds::new(config, deps, metrics.clone());
    let status = rounds.status();
    let cancel = CancellationToken::new();
    let task = tokio::spawn(run(rounds, config, cancel.clone()));
    Compactor { cancel: cancel.drop_guard(), task, metrics, status }
}

async fn run(mut rounds: Rounds, config: CompactorConfig, cancel: CancellationToken) {
    // Tokio's ticker panics on zero.
    let mut ticker = tokio::time::interval(config.interval.max(std::time::Duration::from_millis(1)));
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            _ = ticker.tick() => {}
        }
        let has_more = tokio::select! {
            biased;
            // A round may be left at any wait: see its crash story.
            () = cancel.cancelled() => return,
            has_more = rounds.round() => has_more,
        };
        if has_more {
            ticker.reset_immediately();
        }
    }
}

impl Compactor {
    /// What it is doing, to be read at any time.
    pub fn status(&self) -> CompactorStatus {
        self.status.clone()
    }

    pub fn metrics(&self) -> &CompactorMetrics {
        &self.metrics
    }

    /// Ends the loop, a round under way included, and waits for it.
    pub async fn stop(self) {
        drop(self.cancel);
        if let Err(error) = self.task.await {
            tracing::error!(error = %error, "the compactor had failed");
        }
    }
}
