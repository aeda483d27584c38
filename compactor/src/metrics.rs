//! What the compactor counts, under the role's prefix.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use spanhouse_common::id::{BlockId, TenantId};
use spanhouse_common::telemetry::seconds_histogram;

use crate::delete::Deleted;
use crate::merge::Done;
use crate::packs::Packed;
use crate::status::Level;

/// What failed. Each is tried again in the next round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Step {
    Tenants,
    Retire,
    /// Merges of a tenant were given up for this round.
    Merge,
    Pack,
    Sweep,
    History,
    /// Single objects; the sweep went on.
    Delete,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailureLabels {
    step: Step,
}

/// How a merge ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum JobOutcome {
    Merged,
    /// A block was written anew without a deleted trace.
    Rewritten,
    /// Nothing was left of the inputs.
    Emptied,
    /// Another commit came first.
    Overtaken,
    /// An input was damaged.
    Damaged,
    Failed,
}

impl JobOutcome {
    pub(crate) fn of(done: &Done, is_rewrite: bool) -> Self {
        match (done.output, is_rewrite) {
            (None, _) => Self::Emptied,
            (Some(_), true) => Self::Rewritten,
            (Some(_), false) => Self::Merged,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct JobLabels {
    outcome: JobOutcome,
}

/// Blocks of one tenant and level.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LevelLabels {
    tenant: String,
    level: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QuarantineLabels {
    tenant: String,
    block: String,
}

/// Blocks named in the metrics at most: many damaged ones have one cause.
const MAX_NAMED: usize = 100;

/// Counters of one compactor.
#[derive(Clone, Debug)]
pub struct CompactorMetrics {
    pub retired_blocks: Counter,
    /// Packs of trace-id filters written.
    pub filter_packs: Counter,
    /// Filters in them; a filter counts again whenever it is copied.
    pub packed_filters: Counter,
    pub swept_objects: Counter,
    pub swept_bytes: Counter,
    /// Blocks and packs that wait for their grace, or in a dry run for good.
    pub unreferenced_blocks: Gauge,
    pub last_round_seconds: Gauge<f64, AtomicU64>,
    jobs: Family<JobLabels, Counter>,
    job_seconds: Histogram,
    pub merged_spans_in: Counter,
    pub merged_spans_out: Counter,
    pub merged_bytes_in: Counter,
    pub merged_bytes_out: Counter,
    /// Identical copies that merges removed.
    pub merged_duplicates: Counter,
    /// Spans past retention that merges removed.
    pub merged_expired: Counter,
    /// Spans of deleted traces that merges removed.
    pub merged_deleted: Counter,
    outstanding_blocks: Family<LevelLabels, Gauge>,
    outstanding_bytes: Family<LevelLabels, Gauge>,
    /// How often a stored span was written again, on average.
    pub rewrites_per_span: Gauge<f64, AtomicU64>,
    quarantined_blocks: Family<QuarantineLabels, Gauge>,
    named: Arc<AtomicUsize>,
    failures: Family<FailureLabels, Counter>,
}

impl Default for CompactorMetrics {
    fn default() -> Self {
        Self {
            retired_blocks: Counter::default(),
            filter_packs: Counter::default(),
            packed_filters: Counter::default(),
            swept_objects: Counter::default(),
            swept_bytes: Counter::default(),
            unreferenced_blocks: Gauge::default(),
            last_round_seconds: Gauge::default(),
            jobs: Family::default(),
            job_seconds: seconds_histogram(),
            merged_spans_in: Counter::default(),
            merged_spans_out: Counter::default(),
            merged_bytes_in: Counter::default(),
            merged_bytes_out: Counter::default(),
            merged_duplicates: Counter::default(),
            merged_expired: Counter::default(),
            merged_deleted: Counter::default(),
            outstanding_blocks: Family::default(),
            outstanding_bytes: Family::default(),
            rewrites_per_span: Gauge::default(),
            quarantined_blocks: Family::default(),
            named: Arc::default(),
            failures: Family::default(),
        }
    }
}

impl CompactorMetrics {
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "retired_blocks",
            "Blocks past retention taken out of the manifest",
            metrics.retired_blocks.clone(),
        );
        registry.register("filter_packs", "Packs of trace-id filters written", metrics.filter_packs.clone());
        registry.register(
            "packed_filters",
            "Trace-id filters copied into packs, each again whenever it is copied",
            metrics.packed_filters.clone(),
        );
        registry.register("swept_objects", "Objects deleted that nothing refers to", metrics.swept_objects.clone());
        registry.register_with_unit("swept", "Bytes of the objects deleted", Unit::Bytes, metrics.swept_bytes.clone());
        registry.register(
            "unreferenced_blocks",
            "Blocks and packs whose objects are there and which no manifest names, as of the last sweep of each tenant",
            metrics.unreferenced_blocks.clone(),
        );
        let m = &metrics;
        let seconds = Unit::Seconds;
        registry.register("jobs", "Merges by how they ended", m.jobs.clone());
        registry.register_with_unit(
            "job",
            "Time of a merge, from its first read to its commit",
            seconds,
            m.job_seconds.clone(),
        );
        for (name, help, counter) in [
            ("merged_spans_in", "Spans that merges read", &m.merged_spans_in),
            ("merged_spans_out", "Spans that merges wrote", &m.merged_spans_out),
            ("merged_duplicates", "Identical copies of spans that merges removed", &m.merged_duplicates),
            ("merged_expired", "Spans past retention that merges removed", &m.merged_expired),
            ("merged_deleted", "Spans of deleted traces that merges removed", &m.merged_deleted),
        ] {
            registry.register(name, help, counter.clone());
        }
        let bytes = |name: &str| (format!("merged_{name}"), Unit::Bytes);
        let (name, unit) = bytes("in");
        registry.register_with_unit(name, "Bytes of blocks that merges read", unit, m.merged_bytes_in.clone());
        let (name, unit) = bytes("out");
        registry.register_with_unit(name, "Bytes of blocks that merges wrote", unit, m.merged_bytes_out.clone());
        registry.register(
            "outstanding_blocks",
            "Blocks by tenant and by how many merges are behind them",
            m.outstanding_blocks.clone(),
        );
        registry.register_with_unit(
            "outstanding",
            "Bytes of blocks by tenant and by how many merges are behind them",
            Unit::Bytes,
            m.outstanding_bytes.clone(),
        );
        registry.register(
            "rewrites_per_span",
            "How often a stored span was written again, on average: rewrite amplification",
            m.rewrites_per_span.clone(),
        );
        registry.register(
            "quarantined_blocks",
            "1 for each damaged block that no merge takes; the first hundred are named",
            m.quarantined_blocks.clone(),
        );
        registry.register("failures", "Steps that failed and are tried again in the next round", metrics.failures.clone());
        registry.register_with_unit(
            "last_round",
            "Time the last round took",
            Unit::Seconds,
            metrics.last_round_seconds.clone(),
        );
        metrics
    }

    pub(crate) fn failed(&self, step: Step, times: u64) {
        // A series appears with its first failure.
        if times > 0 {
            self.failures.get_or_create(&FailureLabels { step }).inc_by(times);
        }
    }

    pub(crate) fn job(&self, outcome: JobOutcome, took: Duration, done: Option<&Done>) {
        self.jobs.get_or_create(&JobLabels { outcome }).inc();
        if let Some(done) = done {
            self.job_seconds.observe(took.as_secs_f64());
            self.merged_spans_in.inc_by(done.rows_in);
            self.merged_spans_out.inc_by(done.rows_out);
            self.merged_bytes_in.inc_by(done.bytes_in);
            self.merged_bytes_out.inc_by(done.bytes_out);
            self.merged_duplicates.inc_by(done.duplicates_removed);
            self.merged_expired.inc_by(done.expired);
            self.merged_deleted.inc_by(done.dropped);
        }
    }

    /// How many merges ended so.
    pub fn jobs(&self, outcome: JobOutcome) -> u64 {
        self.jobs.get_or_create(&JobLabels { outcome }).get()
    }

    pub(crate) fn quarantined(&self, tenant: &TenantId, block: BlockId) {
        if self.named.fetch_add(1, Ordering::Relaxed) < MAX_NAMED {
            let labels = QuarantineLabels { tenant: tenant.to_string(), block: block.to_string() };
            self.quarantined_blocks.get_or_create(&labels).set(1);
        }
    }

    pub(crate) fn released(&self, tenant: &TenantId, block: BlockId) {
        let labels = QuarantineLabels { tenant: tenant.to_string(), block: block.to_string() };
        if self.quarantined_blocks.remove(&labels) {
            self.named.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Blocks and bytes of a tenant by level.
    pub(crate) fn outstanding(&self, tenant: &TenantId, levels: &[Level]) {
        for (level, of) in (0u8..).zip(levels) {
            let labels = LevelLabels { tenant: tenant.to_string(), level };
            let as_i64 = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
            self.outstanding_blocks.get_or_create(&labels).set(as_i64(of.blocks));
            self.outstanding_bytes.get_or_create(&labels).set(as_i64(of.bytes));
        }
    }

    pub(crate) fn forget(&self, tenant: &TenantId) {
        for level in 0..=crate::policy::MAX_LEVEL {
            let labels = LevelLabels { tenant: tenant.to_string(), level };
            self.outstanding_blocks.remove(&labels);
            self.outstanding_bytes.remove(&labels);
        }
    }

    pub fn failures(&self, step: Step) -> u64 {
        self.failures.get_or_create(&FailureLabels { step }).get()
    }

    pub(crate) fn packed(&self, packed: Packed) {
        self.filter_packs.inc_by(packed.packs);
        self.packed_filters.inc_by(packed.filters);
        self.failed(Step::Pack, packed.unreadable);
    }

    pub(crate) fn deleted(&self, deleted: Deleted) {
        self.swept_objects.inc_by(deleted.objects);
        self.swept_bytes.inc_by(deleted.bytes);
        self.failed(Step::Delete, deleted.failed);
    }
}
