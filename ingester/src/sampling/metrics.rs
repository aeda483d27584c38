//! What sampling counts.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// How a strategy was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Asked {
    Http,
    Grpc,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByProtocol {
    protocol: Asked,
}

/// Cheap to clone: clones count together.
#[derive(Clone, Debug, Default)]
pub struct SamplingMetrics {
    asked: Family<ByProtocol, Counter>,
    reload_failures: Counter,
    stale: Gauge,
    operations: Gauge,
    calculations: Counter,
    passed_over: Counter,
    store_failures: Counter,
}

impl SamplingMetrics {
    /// Registers under `registry`, which carries the prefix of the product and the role.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("requests", "Strategies asked for", metrics.asked.clone());
        registry.register("reload_failures", "Failed reads of the strategy file", metrics.reload_failures.clone());
        registry.register("strategies_stale", "1 while the strategy file cannot be used as it is", metrics.stale.clone());
        registry.register("learned_operations", "Operations with a learned probability", metrics.operations.clone());
        registry.register("calculations", "Calculations of probabilities by this process", metrics.calculations.clone());
        registry.register(
            "operations_passed_over",
            "Root spans not counted for learning: too many operations",
            metrics.passed_over.clone(),
        );
        registry.register(
            "store_failures",
            "Failed attempts to keep or read what was learned",
            metrics.store_failures.clone(),
        );
        metrics
    }

    pub(super) fn asked(&self, protocol: Asked) {
        self.asked.get_or_create(&ByProtocol { protocol }).inc();
    }

    pub(super) fn reload_succeeded(&self) {
        self.stale.set(0);
    }

    pub(super) fn reload_failed(&self) {
        self.reload_failures.inc();
        self.stale.set(1);
    }

    pub(super) fn calculated(&self) {
        self.calculations.inc();
    }

    pub(super) fn learned(&self, operations: usize) {
        self.operations.set(operations as i64);
    }

    pub(super) fn passed_over(&self, spans: u64) {
        self.passed_over.inc_by(spans);
    }

    pub(super) fn store_failed(&self) {
        self.store_failures.inc();
    }

    pub fn calculations(&self) -> u64 {
        self.calculations.get()
    }

    pub fn store_failures(&self) -> u64 {
        self.store_failures.get()
    }

    pub fn failed_reloads(&self) -> u64 {
        self.reload_failures.get()
    }

    pub fn is_stale(&self) -> bool {
        self.stale.get() != 0
    }
}
