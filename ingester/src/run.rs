//! Starting and stopping the ingester: replay, then the maintenance loop that merges, cuts and flushes.
//!
//! Order of a stop: no new requests, what is in flight finishes, everything is flushed within the grace time, the WAL closes.
//! What could not be flushed stays in the WAL and is replayed at the next start.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use prometheus_client::registry::Registry;
use spanhouse_common::budget::Share;
use spanhouse_common::fs::Fs;
use spanhouse_common::id::TenantId;
use spanhouse_common::manifest::{ManifestError, Manifests};
use spanhouse_common::time::Clock;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::admission::{Admission, RELOAD_INTERVAL};
use crate::epoch;
use crate::flush::{FlushConfig, FlushMetrics, Flusher};
use crate::flushing::Flushing;
use crate::ingest::{Pipeline, PublishLive};
use crate::live::{CutPolicy, Live};
use crate::metrics::PipelineMetrics;
use crate::replay::{ReplayStopped, ReplaySummary, Replayer};
use crate::sampling::adaptive::Observer;
use crate::wal::{self, ReplayError, WalConfig, WalMetrics};

/// How often live data is looked at. Also how soon small batches are merged.
pub(crate) const TICK: Duration = Duration::from_millis(250);

/// Settings of the ingester.
#[derive(Clone, Debug)]
pub struct IngesterConfig {
    pub wal_dir: PathBuf,
    pub wal: WalConfig,
    pub cut: CutPolicy,
    pub flush: FlushConfig,
    pub max_decoded_bytes: usize,
}

/// What the ingester works with.
pub struct IngesterDeps {
    pub fs: Arc<dyn Fs>,
    pub clock: Arc<dyn Clock>,
    pub manifests: Arc<Manifests>,
    pub admission: Arc<Admission>,
    pub memory: Share,
    /// What learns from accepted spans how to sample, if anything does.
    pub observer: Option<Arc<Observer>>,
}

impl std::fmt::Debug for IngesterDeps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IngesterDeps").finish_non_exhaustive()
    }
}

/// Why the ingester did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Wal(#[from] wal::OpenError),
    #[error("replaying the WAL: {0}")]
    Replay(#[from] ReplayError<ReplayStopped>),
    /// Without it, positions in the WAL could be used twice. Start again when the store answers.
    #[error("reading how far blocks cover the WAL for tenant `{tenant}`: {source}")]
    Watermark { tenant: TenantId, source: ManifestError },
    #[error("starting a thread: {0}")]
    Thread(#[from] std::io::Error),
    #[error("replaying the WAL panicked: {0}")]
    Panicked(String),
}

/// A running ingester.
#[derive(Debug)]
pub struct Ingester {
    pipeline: Arc<Pipeline>,
    stop: CancellationToken,
    maintenance: Vec<JoinHandle<()>>,
    summary: ReplaySummary,
}

/// What the ingester counts.
#[derive(Debug)]
pub struct IngesterMetrics {
    pipeline: PipelineMetrics,
    flush: FlushMetrics,
    wal: WalMetrics,
}

impl IngesterMetrics {
    /// Adds the metrics to `registry`, whose prefix names product and role.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            pipeline: PipelineMetrics::register(registry),
            flush: FlushMetrics::register(registry),
            wal: WalMetrics::default(),
        };
        metrics.wal.register(registry);
        metrics
    }
}

/// Replays the WAL and starts taking requests. Not ready before it returns.
pub async fn start(config: IngesterConfig, deps: IngesterDeps, metrics: IngesterMetrics) -> Result<Ingester, StartError> {
    let IngesterMetrics { pipeline: metrics, flush: flush_metrics, wal: wal_metrics } = metrics;
    let opened =
        wal::open(Arc::clone(&deps.fs), config.wal_dir.clone(), config.wal.clone(), Arc::clone(&deps.clock), wal_metrics)?;
    let is_new = opened.is_new();
    let live = Arc::new(Live::new(opened.writer_id(), Arc::clone(&deps.clock), config.cut));
    let (manifests, clock) = (Arc::clone(&deps.manifests), Arc::clone(&deps.clock));
    let retention = deps.admission.retention();
    let flusher = Flusher::new(Arc::clone(&live), manifests, clock, config.flush, retention, flush_metrics);
    let flusher = Arc::new(flusher.charging(deps.memory.clone()));
    let replay = {
        let (live, flusher, manifests) = (Arc::clone(&live), Arc::clone(&flusher), Arc::clone(&deps.manifests));
        let (memory, metrics, runtime) = (deps.memory.clone(), metrics.clone(), Handle::current());
        let (fs, undecodable) = (Arc::clone(&deps.fs), config.wal_dir.join("undecodable"));
        move || {
            let mut replayer = Replayer {
                live: &live,
                flusher: &flusher,
                manifests: &manifests,
                memory: &memory,
                metrics: &metrics,
                runtime,
                fs: &*fs,
                undecodable,
                watermarks: Default::default(),
                left: Default::default(),
                stuck_bytes: 0,
                summary: ReplaySummary::default(),
            };
            let (replayed, report) = opened.replay(|record| replayer.record(record))?;
            Ok::<_, StartError>((replayed, report, replayer.watermarks, replayer.summary))
        }
    };
    let epochs = async {
        let known = if is_new { Ok(0) } else { epoch::highest(&deps.manifests, live.writer()).await };
        known.map_err(|(tenant, source)| StartError::Watermark { tenant, source })
    };
    // Side by side: replay reads the disk, and with many tenants the manifests take as long.
    let (replayed, known_epoch) = tokio::join!(tokio::task::spawn_blocking(replay), epochs);
    let replayed = replayed.map_err(|e| StartError::Panicked(e.to_string()))?;
    let (mut replayed, report, watermarks, summary) = replayed?;
    replayed.raise_epoch(known_epoch?);
    if report.records > 0 || !report.damage.is_empty() {
        tracing::info!(
            records = report.records,
            spans = summary.spans,
            already_in_blocks = summary.covered,
            left_in_wal = summary.left,
            torn_bytes = report.torn_bytes,
            damaged = report.damage.len(),
            "wal replayed"
        );
    }
    let wal = Arc::new(replayed.start(PublishLive(Arc::clone(&live)))?);
    for (tenant, watermark) in watermarks {
        wal.release(&tenant, watermark);
    }
    let pipeline = Arc::new(Pipeline {
        admission: deps.admission,
        wal,
        live,
        manifests: deps.manifests,
        memory: deps.memory,
        clock: deps.clock,
        metrics,
        stopped: Arc::clone(flusher.stopped()),
        max_decoded_bytes: config.max_decoded_bytes,
        observer: deps.observer,
        stopping: AtomicBool::new(false),
    });
    let stop = CancellationToken::new();
    let flushing = Flushing::new(Arc::clone(&pipeline), Arc::clone(&flusher), config.wal.max_bytes);
    let flushing = tokio::spawn(flushing.run(stop.clone()));
    let merging = tokio::spawn(merge_loop(Arc::clone(&pipeline), stop.clone()));
    Ok(Ingester { pipeline, stop, maintenance: vec![flushing, merging], summary })
}

/// Merges small batches and does what else is due now and then.
async fn merge_loop(pipeline: Arc<Pipeline>, stop: CancellationToken) {
    let mut reload_at = pipeline.clock.monotonic() + RELOAD_INTERVAL;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(TICK) => {}
        }
        let due = pipeline.clock.monotonic() >= reload_at;
        if due {
            reload_at = pipeline.clock.monotonic() + RELOAD_INTERVAL;
        }
        if !due && !pipeline.live.has_small() {
            continue;
        }
        let work = Arc::clone(&pipeline);
        let done = tokio::task::spawn_blocking(move || {
            work.live.merge_small();
            if due {
                // A broken file is counted and logged where it is read; the old limits stay.
                let _ = work.admission.reload();
                work.wal.rotate_if_idle();
            }
        });
        if let Err(error) = done.await {
            tracing::error!(error = %error, "merging live data failed");
        }
    }
}

impl Ingester {
    /// What receivers hand requests to.
    pub fn pipeline(&self) -> Arc<Pipeline> {
        Arc::clone(&self.pipeline)
    }

    pub fn live(&self) -> Arc<Live> {
        Arc::clone(&self.pipeline.live)
    }

    pub fn replayed(&self) -> ReplaySummary {
        self.summary
    }

    /// Tells whether requests can be taken, for as long as anybody asks.
    pub fn readiness(&self) -> Readiness {
        Readiness { pipeline: Arc::clone(&self.pipeline) }
    }

    /// Refuses further requests; those in flight go on.
    pub fn refuse_new(&self) {
        self.pipeline.stopping.store(true, SeqCst);
    }

    /// Flushes everything and closes the WAL. After `grace` the rest stays in the WAL. True if nothing is left in it.
    pub async fn stop(self, grace: Duration) -> bool {
        self.refuse_new();
        self.stop.cancel();
        let deadline = tokio::time::Instant::now() + grace;
        let rest = async {
            // The flushing task ends when everything that can be flushed is.
            for task in self.maintenance {
                if let Err(error) = task.await {
                    tracing::error!(error = %error, "a maintenance task failed");
                }
            }
        };
        let flushed = tokio::time::timeout_at(deadline, rest).await.is_ok();
        self.pipeline.wal.close().await;
        flushed && self.pipeline.live.totals().spans == 0
    }
}

/// Whether an ingester takes requests.
#[derive(Clone, Debug)]
pub struct Readiness {
    pipeline: Arc<Pipeline>,
}

impl Readiness {
    /// `Err` says why requests are refused.
    pub fn check(&self) -> Result<(), String> {
        if self.pipeline.stopping.load(SeqCst) {
            Err("the server is stopping".into())
        } else if !self.pipeline.wal.is_ready() {
            Err("the WAL cannot be written; see the log".into())
        } else {
            Ok(())
        }
    }

    /// Tenants of which nothing is flushed until a repair, and why. The others are not concerned.
    pub fn stopped_tenants(&self) -> Vec<(TenantId, Arc<str>)> {
        self.pipeline.stopped.all()
    }
}
