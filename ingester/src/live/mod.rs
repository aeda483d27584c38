//! Live data: what is durable in the WAL and not yet in a committed block, searchable from the moment it is acknowledged.
//!
//! Owns: the batches of each tenant in WAL order, merging small ones, the frozen part that a flush is writing, and snapshots.
//! Does not own: the WAL (which publishes here, in order) and blocks (a flush reads what a cut froze and tells the commit).
//!
//! *Hand-over.* A commit first makes the blocks visible in the manifest, then [`Live::committed`] notes its version and lets go
//! of the batches, both under one lock. A snapshot takes the batches and that version under the same lock. A reader then uses a
//! manifest no older than the version and drops batches the manifest's watermark covers: so it sees each span exactly once,
//! whether the commit came before, between or after. Batches in a reader's hands stay alive until it drops them.

mod fingerprints;
mod source;
mod trace_sizes;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use spanhouse_common::batch::{self, SpanBatch, TraceIndex, row_flag};
use spanhouse_common::budget::Lease;
use spanhouse_common::id::{TenantId, WalPosition, WriterId};
use spanhouse_common::time::{Clock, TimeRange, UnixNanos};

pub use fingerprints::Fingerprints;
pub use trace_sizes::TraceSizes;

/// Smaller batches are merged with their neighbours: each costs a reader something, and repeats its texts. Merging costs about
/// as much as it saves from here on.
const SMALL: usize = 1024;
/// What they are merged to, at most.
const MERGED: usize = 8 * 1024;
/// Merging starts when a tenant has so many small batches.
const MANY: usize = 16;

/// Consecutive WAL records of one tenant, decoded.
#[derive(Debug)]
pub struct LiveBatch {
    pub spans: Arc<SpanBatch>,
    /// First and last record in it.
    pub from: WalPosition,
    pub to: WalPosition,
    pub range: TimeRange,
    /// When the oldest of it was published, on the monotonic clock.
    arrived: Duration,
    lease: Mutex<Option<Lease>>,
    /// Made by the first query.
    index: OnceLock<TraceIndex>,
}

/// All live data of one tenant at one moment.
#[derive(Clone, Debug, Default)]
pub struct LiveSnapshot {
    pub batches: Vec<Arc<LiveBatch>>,
    /// The manifest must be at least at this version before batches it covers are dropped.
    pub manifest_version: u64,
}

/// What one flush writes: everything a tenant had up to `to`.
#[derive(Clone, Debug)]
pub struct Cut {
    pub tenant: TenantId,
    pub to: WalPosition,
    pub batches: Vec<Arc<LiveBatch>>,
    pub spans: usize,
}

#[derive(Debug, Default)]
struct Tenant {
    batches: Vec<Arc<LiveBatch>>,
    /// How many of `batches`, from the first, a flush is writing.
    frozen: usize,
    manifest_version: u64,
}

impl Tenant {
    fn spans(&self) -> usize {
        self.batches.iter().map(|b| b.spans.len()).sum()
    }

    fn bytes(&self) -> usize {
        self.batches.iter().map(|b| b.spans.heap_bytes()).sum()
    }
}

/// When a tenant's live data is due for a cut.
#[derive(Clone, Copy, Debug)]
pub struct CutPolicy {
    /// Older data is cut: bounds replay and how long a lost disk can matter.
    pub max_age: Duration,
    /// More spans are cut: bounds memory and the size of a block.
    pub max_spans: usize,
    pub max_bytes: usize,
}

/// The live data of this process.
#[derive(Debug)]
pub struct Live {
    writer: WriterId,
    clock: Arc<dyn Clock>,
    tenants: Mutex<HashMap<TenantId, Tenant>>,
    fingerprints: Mutex<Fingerprints>,
    sizes: TraceSizes,
    /// Told when a tenant may be due.
    pub(crate) pressure: tokio::sync::Notify,
    policy: CutPolicy,
}

impl Live {
    pub fn new(writer: WriterId, clock: Arc<dyn Clock>, policy: CutPolicy) -> Self {
        Self {
            writer,
            clock,
            tenants: Mutex::default(),
            fingerprints: Mutex::new(Fingerprints::new()),
            sizes: TraceSizes::new(),
            pressure: tokio::sync::Notify::new(),
            policy,
        }
    }

    pub fn writer(&self) -> WriterId {
        self.writer
    }

    /// Bytes of live traces, for the limit on one trace.
    pub fn sizes(&self) -> &TraceSizes {
        &self.sizes
    }

    /// Makes a durable record visible. Records of one process come in WAL order.
    pub fn publish(&self, tenant: &TenantId, position: WalPosition, mut spans: SpanBatch, lease: Option<Lease>) {
        if spans.is_empty() {
            return;
        }
        {
            let mut fingerprints = self.fingerprints.lock();
            for row in &mut spans.rows {
                if fingerprints.seen(tenant, row) {
                    row.row_flags |= row_flag::MAYBE_DUPLICATE;
                }
            }
        }
        let range = range_of(&spans);
        let batch = LiveBatch {
            spans: Arc::new(spans),
            from: position,
            to: position,
            range,
            arrived: self.clock.monotonic(),
            lease: Mutex::new(lease),
            index: OnceLock::new(),
        };
        let mut tenants = self.tenants.lock();
        let live = match tenants.get_mut(tenant) {
            Some(live) => live,
            None => tenants.entry(tenant.clone()).or_default(),
        };
        live.batches.push(Arc::new(batch));
        let unfrozen = &live.batches[live.frozen..];
        if unfrozen.len() % 64 == 0 || unfrozen.iter().map(|b| b.spans.len()).sum::<usize>() >= self.policy.max_spans {
            self.pressure.notify_one();
        }
    }

    /// All live data of a tenant. Cheap: batches are shared.
    pub fn snapshot(&self, tenant: &TenantId) -> LiveSnapshot {
        let tenants = self.tenants.lock();
        let Some(live) = tenants.get(tenant) else { return LiveSnapshot::default() };
        LiveSnapshot { batches: live.batches.clone(), manifest_version: live.manifest_version }
    }

    /// Spans, batches and bytes of all tenants, and the number of tenants with live data.
    pub fn totals(&self) -> Totals {
        let tenants = self.tenants.lock();
        tenants.values().fold(Totals::default(), |sum, live| Totals {
            spans: sum.spans + live.spans(),
            batches: sum.batches + live.batches.len(),
            bytes: sum.bytes + live.bytes(),
            tenants: sum.tenants + usize::from(!live.batches.is_empty()),
        })
    }

    /// Freezes what is due and not already being flushed, at most [`CutPolicy::max_spans`] of a tenant at once. `all` takes
    /// what is not due as well; `hurry` what is large enough to relieve a full memory share.
    pub fn cut(&self, all: bool, hurry: bool) -> Vec<Cut> {
        let now = self.clock.monotonic();
        let mut tenants = self.tenants.lock();
        // With many tenants, small cuts wait so that each makes fewer, larger blocks.
        let patience = if tenants.len() > 100 { Duration::from_secs(600) } else { self.policy.max_age };
        let mut cuts = Vec::new();
        for (tenant, live) in tenants.iter_mut() {
            let (Some(first), 0) = (live.batches.first(), live.frozen) else { continue };
            let (mut spans, mut bytes) = (0, 0);
            let fits = |batch: &&Arc<LiveBatch>| {
                let first = spans == 0;
                spans += batch.spans.len();
                bytes += batch.spans.heap_bytes();
                first || (spans <= self.policy.max_spans && bytes <= self.policy.max_bytes)
            };
            let batches: Vec<_> = live.batches.iter().take_while(fits).map(Arc::clone).collect();
            let is_full = batches.len() < live.batches.len();
            let spans: usize = batches.iter().map(|b| b.spans.len()).sum();
            let age = now.saturating_sub(first.arrived);
            let due = is_full
                || spans >= self.policy.max_spans
                || age >= patience
                || (age >= self.policy.max_age && spans >= 1000)
                || (hurry && spans >= self.policy.max_spans / 4);
            let Some(to) = batches.last().map(|last| last.to).filter(|_| due || all) else { continue };
            live.frozen = batches.len();
            cuts.push(Cut { tenant: tenant.clone(), to, batches, spans });
        }
        cuts
    }

    /// The cut is in blocks that manifest version `version` names: its batches are no longer live.
    pub fn committed(&self, cut: &Cut, version: u64) {
        let mut tenants = self.tenants.lock();
        if let Some(live) = tenants.get_mut(&cut.tenant) {
            live.batches.drain(..live.frozen);
            live.frozen = 0;
            live.manifest_version = live.manifest_version.max(version);
            if live.batches.is_empty() {
                live.batches = Vec::new();
                self.sizes.forget();
            }
        }
    }

    /// The cut could not be flushed: it is live as before and may be cut again, with what came since.
    pub fn thaw(&self, cut: &Cut) {
        if let Some(live) = self.tenants.lock().get_mut(&cut.tenant) {
            live.frozen = 0;
        }
    }

    /// Whether some tenant has enough small batches to merge.
    pub fn has_small(&self) -> bool {
        let tenants = self.tenants.lock();
        tenants.values().any(|live| live.batches[live.frozen..].iter().filter(|b| b.spans.len() < SMALL).count() >= MANY)
    }

    /// Merges runs of small batches. Run it away from the I/O runtime; only one at a time.
    pub fn merge_small(&self) {
        let due: Vec<(TenantId, Vec<Arc<LiveBatch>>)> = {
            let tenants = self.tenants.lock();
            let small = |live: &Tenant| {
                let run: Vec<_> =
                    live.batches[live.frozen..].iter().filter(|b| b.spans.len() < SMALL).map(Arc::clone).collect();
                run
            };
            tenants.iter().map(|(t, live)| (t.clone(), small(live))).filter(|(_, run)| run.len() >= MANY).collect()
        };
        for (tenant, small) in due {
            for run in runs(&small) {
                let spans = batch::merge(run.iter().map(|b| &*b.spans));
                let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
                let range = run.iter().fold(TimeRange::EMPTY, |sum, b| TimeRange {
                    min: sum.min.min(b.range.min),
                    max: sum.max.max(b.range.max),
                });
                let mut tenants = self.tenants.lock();
                let Some(live) = tenants.get_mut(&tenant) else { continue };
                // A cut may have frozen the run meanwhile, or something else come between: then it stays as it is.
                let at = live.batches.iter().position(|b| Arc::ptr_eq(b, first));
                let Some(at) = at.filter(|at| *at >= live.frozen) else { continue };
                let same = live
                    .batches
                    .get(at..at + run.len())
                    .is_some_and(|now| now.iter().zip(run).all(|(a, b)| Arc::ptr_eq(a, b)));
                if !same {
                    continue;
                }
                let lease = Lease::join(
                    run.iter().filter_map(|b| b.lease.lock().take()),
                    crate::ingest::resident(spans.heap_bytes()),
                );
                let merged = LiveBatch {
                    spans: Arc::new(spans),
                    from: first.from,
                    to: last.to,
                    range,
                    arrived: first.arrived,
                    lease: Mutex::new(lease),
                    index: OnceLock::new(),
                };
                live.batches.splice(at..at + run.len(), [Arc::new(merged)]);
            }
        }
    }
}

/// Neighbouring runs of small batches whose sum stays small.
fn runs(small: &[Arc<LiveBatch>]) -> Vec<&[Arc<LiveBatch>]> {
    let mut out = Vec::new();
    let (mut from, mut spans) = (0, 0);
    for (at, batch) in small.iter().enumerate() {
        if spans + batch.spans.len() > MERGED {
            out.push(&small[from..at]);
            (from, spans) = (at, 0);
        }
        spans += batch.spans.len();
    }
    out.push(&small[from..]);
    out.retain(|run| run.len() > 1);
    out
}

/// Earliest start to latest end. Times from 2^63 on make it everything, as no hint may exclude them.
fn range_of(spans: &SpanBatch) -> TimeRange {
    let mut range = TimeRange::EMPTY;
    for row in &spans.rows {
        range.include(UnixNanos(row.start));
        range.include(UnixNanos(row.end));
    }
    range
}

/// Sums over live data, for metrics.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    pub spans: usize,
    pub batches: usize,
    pub bytes: usize,
    pub tenants: usize,
}
