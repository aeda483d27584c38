//! What the compactor counts, under the role's prefix.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::delete::Deleted;
use crate::packs::Packed;

/// What failed. Each is tried again in the next round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Step {
    Tenants,
    Retire,
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

/// Counters of one compactor.
#[derive(Clone, Debug, Default)]
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
    failures: Family<FailureLabels, Counter>,
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
