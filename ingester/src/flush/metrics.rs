//! What flushes did.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use spanhouse_common::telemetry::seconds_histogram;

/// Counters of the flush, in the ingester's registry.
#[derive(Clone, Debug)]
pub struct FlushMetrics {
    flushes: Counter,
    failures: Counter,
    seconds: Histogram,
    spans: Counter,
    blocks: Counter,
    block_bytes: Counter,
    duplicates: Counter,
    pub(super) stopped_tenants: Gauge,
}

impl FlushMetrics {
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            flushes: Counter::default(),
            failures: Counter::default(),
            seconds: seconds_histogram(),
            spans: Counter::default(),
            blocks: Counter::default(),
            block_bytes: Counter::default(),
            duplicates: Counter::default(),
            stopped_tenants: Gauge::default(),
        };
        registry.register("flushes", "Cuts committed as blocks", metrics.flushes.clone());
        registry.register("flush_failures", "Attempts to flush that failed", metrics.failures.clone());
        registry.register("flush_seconds", "Time from a cut to its commit", metrics.seconds.clone());
        registry.register("flushed_spans", "Spans in committed blocks, identical copies removed", metrics.spans.clone());
        registry.register("blocks_written", "Blocks committed", metrics.blocks.clone());
        registry.register("block_written_bytes", "Bytes of committed blocks and their filters", metrics.block_bytes.clone());
        registry.register("duplicate_spans_removed", "Spans left out as identical copies", metrics.duplicates.clone());
        let stopped = metrics.stopped_tenants.clone();
        registry.register(
            "flush_stopped_tenants",
            "Tenants whose spans cannot become blocks until something is repaired",
            stopped,
        );
        metrics
    }

    pub(super) fn flushed(&self, took: Duration) {
        self.flushes.inc();
        self.seconds.observe(took.as_secs_f64());
    }

    pub(super) fn failed(&self) {
        self.failures.inc();
    }

    pub(super) fn block(&self, bytes: usize, rows: u64, duplicates: u64) {
        self.blocks.inc();
        self.block_bytes.inc_by(bytes as u64);
        self.spans.inc_by(rows);
        self.duplicates.inc_by(duplicates);
    }
}
