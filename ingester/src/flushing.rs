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

/// The flushes under way.
pub(crate) struct Flushing {
    pipeline: Arc<Pipeline>,
    flusher: Arc<Flusher>,
    places: Arc<Semaphore>,
    running: JoinSet<(Cut, Result<WalPosition, Stopped>)>,
    tenants: HashMap<Id, TenantId>,
}

impl Flushing {
    pub(crate) fn new(pipeline: Arc<Pipeline>, flusher: Arc<Flusher>) -> Self {
        let places = Arc::new(Semaphore::new(PLACES));
        Self { pipeline, flusher, places, running: JoinSet::new(), tenants: HashMap::new() }
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
            self.begin(false, hurry);
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
