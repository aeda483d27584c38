//! What admission counts. Limits that nobody can see in force are limits nobody can debug.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, Default)]
pub struct AdmissionMetrics {
    rate_limited: Counter,
    reload_failures: Counter,
    stale: Gauge,
}

impl AdmissionMetrics {
    /// Registers under `registry`, which carries the prefix of the product and the role.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("rate_limited_requests", "Requests refused by a tenant's rate", metrics.rate_limited.clone());
        registry.register(
            "overrides_reload_failures",
            "Failed reads of the overrides file",
            metrics.reload_failures.clone(),
        );
        registry.register("overrides_stale", "1 while the overrides file cannot be used as it is", metrics.stale.clone());
        metrics
    }

    /// Counts without telling anybody: for tests and embedders.
    pub fn unregistered() -> Self {
        Self::default()
    }

    pub(super) fn count_rate_limited(&self) {
        self.rate_limited.inc();
    }

    pub(super) fn reload_succeeded(&self) {
        self.stale.set(0);
    }

    pub(super) fn reload_failed(&self) {
        self.reload_failures.inc();
        self.stale.set(1);
    }

    pub fn rate_limited(&self) -> u64 {
        self.rate_limited.get()
    }

    pub fn failed_reloads(&self) -> u64 {
        self.reload_failures.get()
    }

    pub fn is_stale(&self) -> bool {
        self.stale.get() != 0
    }
}
