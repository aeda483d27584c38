//! Metrics: the registry, name prefixes and bucket choices every role uses.
//!
//! Owns the one registry of the process and its text form. Does not own any metric: each role registers its own under a
//! prefix, in a `metrics.rs` beside the code that counts. Names are `spanhouse_<role>_<noun>_<unit>[_total]`; labels come
//! from closed enums only, so that no request can grow the number of series.

use parking_lot::Mutex;
use prometheus_client::encoding::text;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets_range};
use prometheus_client::registry::Registry;

/// First word of every metric name.
pub const PRODUCT: &str = "spanhouse";

/// What a scrape is answered with, as its `Content-Type`.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The registry of one process. Handed down as a dependency, never global: tests run many side by side.
#[derive(Debug)]
pub struct Telemetry {
    registry: Mutex<Registry>,
}

impl Telemetry {
    pub fn new() -> Self {
        Self { registry: Mutex::new(Registry::with_prefix(PRODUCT)) }
    }

    /// Lets `build` register metrics whose names start with `spanhouse_<role>_`, and hands back what it made of them.
    pub fn register<T>(&self, role: &str, build: impl FnOnce(&mut Registry) -> T) -> T {
        build(self.registry.lock().sub_registry_with_prefix(role))
    }

    /// Every metric in the OpenMetrics text form, which Prometheus reads.
    pub fn encode(&self) -> String {
        let mut out = String::new();
        // Only a failing writer makes this fail, and a string does not; should it ever, the text so far has no `# EOF`
        // and the scraper refuses it.
        if text::encode(&mut out, &self.registry.lock()).is_err() {
            tracing::error!("metrics could not be encoded");
        }
        out
    }
}

impl Default for Telemetry {
    fn default() -> Self {
        Self::new()
    }
}

/// A histogram of seconds from 0.5 ms to 60 s: one set of buckets everywhere, so that dashboards can add them up.
pub fn seconds_histogram() -> Histogram {
    Histogram::new(exponential_buckets_range(0.0005, 60.0, 18))
}

/// A histogram of bytes from 256 B to 1 GiB.
pub fn bytes_histogram() -> Histogram {
    Histogram::new(exponential_buckets_range(256.0, 1024.0 * 1024.0 * 1024.0, 12))
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;

    use super::*;

    #[test]
    fn names_carry_product_and_role() {
        let telemetry = Telemetry::new();
        let (spans, waits) = telemetry.register("ingest", |r| {
            let (spans, waits) = (Counter::<u64>::default(), seconds_histogram());
            r.register("spans", "Spans taken in", spans.clone());
            r.register("wait_seconds", "Time until durable", waits.clone());
            (spans, waits)
        });
        spans.inc_by(3);
        waits.observe(0.0001);
        let text = telemetry.encode();
        assert!(text.contains("spanhouse_ingest_spans_total 3\n"), "{text}");
        assert!(text.contains("spanhouse_ingest_wait_seconds_bucket{le=\"0.0005\"} 1\n"), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn roles_share_the_registry() {
        let telemetry = Telemetry::new();
        for role in ["ingest", "query", "ingest"] {
            telemetry.register(role, |r| r.register("seen", "Seen", Counter::<u64>::default()));
        }
        assert!(telemetry.encode().contains("spanhouse_query_seen_total 0\n"));
    }
}
