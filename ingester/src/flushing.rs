//! The loop that cuts live data and has it flushed: one cut of a tenant at a time, tenants beside each other.
//!
//! Owns which flushes run, so that one whose store path or commit fails, hangs or panics does not keep the others waiting. Does
//! not own when a cut is due ([`crate::live::CutPolicy`]) nor how a flush goes ([`crate::flush`]).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use spanhouse_common::id::{TenantId, WalPosition};
use tokio::sync::Semaphore;
use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::flush::{Flusher, Stopped, Until};
use crate::ingest::{Decoded, Pipeline};
use crate::live::Cut;
use crate::run::TICK;
use crate::wal::Wal;

/// Flushes under way at once, as long as the store is well: bounds built blocks in memory and requests.
const PLACES: usize = 16;
/// A flush that takes longer gives its place to others, and goes on.
const PATIENCE: Duration = Duration::from_secs(2);

/// A WAL that is three quarters full is relieved by flushing everything, due or not; and not more often than this, because what
/// keeps it full may be a tenant whose flush fails.
const RELIEF_EVERY: Duration = Duration::from_secs(5);

/// The flushes under way.
pub(crate) struct Flushing {
    pipeline: Arc<Pipeline>,
    flusher: Arc<Flusher>,
    places: Arc<Semaphore>,
    running: JoinSet<(Cut, Result<WalPosition, Stopped>)>,
    tenants: HashMap<Id, TenantId>,
    wal_cap: u64,
    /// When the WAL may be relieved again, on the monotonic clock.
    relieve_at: Duration,
}

impl Flushing {
    /// `wal_cap` is what the WAL may hold in bytes.
    pub(crate) fn new(pipeline: Arc<Pipeline>, flusher: Arc<Flusher>, wal_cap: u64) -> Self {
        let places = Arc::new(Semaphore::new(PLACES));
        let (running, tenants) = (JoinSet::new(), HashMap::new());
        Self { pipeline, flusher, places, running, tenants, wal_cap, relieve_at: Duration::ZERO }
    }

    /// Cuts and flushes what is due until `stop`; then everything that can be.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(ended) = self.running.join_next_with_id() => self.ended(ended).await,
                () = self.pipeline.live.pressure.notified() => {}
                () = tokio::time::sleep(TICK) => {}
            }
            let memory = self.pipeline.memory.clone();
            let hurry = memory.used() * 2 > memory.limit();
            let relieve = self.is_crowded();
            self.begin(relieve, hurry);
            self.pipeline.metrics.live(self.pipeline.live.totals(), memory.used());
        }
        loop {
            // What is cut already is flushed first; what came behind it is cut then.
            self.begin(true, false);
            let stopped = self.flusher.stopped();
            if self.tenants.values().all(|tenant| stopped.why(tenant).is_some()) {
                return;
            }
            tokio::select! {
                Some(ended) = self.running.join_next_with_id() => self.ended(ended).await,
                // A tenant is found to be stopped while its flush goes on.
                () = tokio::time::sleep(TICK) => {}
            }
        }
    }

    fn is_crowded(&mut self) -> bool {
        let now = self.pipeline.clock.monotonic();
        let crowded = self.pipeline.wal.bytes() / 3 > self.wal_cap / 4 && now >= self.relieve_at;
        if crowded {
            self.relieve_at = now + RELIEF_EVERY;
        }
        crowded
    }

    fn begin(&mut self, all: bool, hurry: bool) {
        for cut in self.pipeline.live.cut(all, hurry) {
            let tenant = cut.tenant.clone();
            let task = self.running.spawn(flush(Arc::clone(&self.flusher), cut, Arc::clone(&self.places)));
            self.tenants.insert(task.id(), tenant);
        }
    }

    async fn ended(&mut self, ended: Result<(Id, (Cut, Result<WalPosition, Stopped>)), JoinError>) {
        match ended {
            Ok((id, (cut, flushed))) => {
                self.tenants.remove(&id);
                if let Ok(to) = flushed {
                    release(&self.pipeline.wal, cut.tenant, to).await;
                }
            }
            // Its cut stays frozen, as after any flush that is given up.
            Err(error) => {
                if let Some(tenant) = self.tenants.remove(&error.id()) {
                    self.flusher.stopped().stop(&tenant, Until::Restart, format!("the flush ended: {error}"));
                }
            }
        }
    }
}

async fn flush(flusher: Arc<Flusher>, cut: Cut, places: Arc<Semaphore>) -> (Cut, Result<WalPosition, Stopped>) {
    let place = places.acquire_owned().await;
    let flushed = {
        let mut flush = std::pin::pin!(flusher.flush(&cut));
        match tokio::time::timeout(PATIENCE, flush.as_mut()).await {
            Ok(flushed) => flushed,
            Err(_) => {
                drop(place);
                flush.await
            }
        }
    };
    (cut, flushed)
}

/// Removing segments is file work.
async fn release(wal: &Arc<Wal<Decoded>>, tenant: TenantId, to: WalPosition) {
    let wal = Arc::clone(wal);
    if let Err(error) = tokio::task::spawn_blocking(move || wal.release(&tenant, to)).await {
        tracing::warn!(error = %error, "removing wal segments failed");
    }
}
