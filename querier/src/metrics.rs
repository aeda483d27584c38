//! What the querier counts.
//!
//! Owns names and labels; labels come from closed sets (route templates, status codes, reasons), never from a request.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// Status of a request whose client went away before the answer, as Tempo counts it.
pub(crate) const CLIENT_GONE: u16 = 499;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: String,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    route: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

/// Counters of the querier; clones share them.
#[derive(Clone, Debug)]
pub struct QuerierMetrics(Arc<Families>);

#[derive(Debug)]
struct Families {
    requests: Family<RequestLabels, Counter>,
    duration: Family<RouteLabels, Histogram, fn() -> Histogram>,
    partial: Family<ReasonLabels, Counter>,
    deletions: Family<ResultLabels, Counter>,
}

impl QuerierMetrics {
    /// Adds the metrics to `registry`, whose prefix names product and role.
    pub fn register(registry: &mut Registry) -> Self {
        // 1 ms to 33 s: from a hit in live data to past the default deadline.
        let new_histogram: fn() -> Histogram = || Histogram::new(exponential_buckets(0.001, 2.0, 16));
        let families = Families {
            requests: Family::default(),
            duration: Family::new_with_constructor(new_histogram),
            partial: Family::default(),
            deletions: Family::default(),
        };
        registry.register(
            "requests",
            "Requests answered, by route and status (499: the client went away)",
            families.requests.clone(),
        );
        registry.register_with_unit(
            "request_duration",
            "Time to an answer, by route",
            Unit::Seconds,
            families.duration.clone(),
        );
        registry.register("partial_answers", "Answers that said they are not complete, by reason", families.partial.clone());
        registry.register(
            "deletions",
            "Requests to delete a trace: done, refused, or failed and perhaps not known to be",
            families.deletions.clone(),
        );
        Self(Arc::new(families))
    }

    pub(crate) fn request(&self, route: &str, status: u16, took: Duration) {
        self.0.requests.get_or_create(&RequestLabels { route: route.to_owned(), status }).inc();
        self.0.duration.get_or_create(&RouteLabels { route: route.to_owned() }).observe(took.as_secs_f64());
    }

    pub(crate) fn deletion(&self, result: &'static str) {
        self.0.deletions.get_or_create(&ResultLabels { result }).inc();
    }

    pub(crate) fn partial(&self, reason: &'static str) {
        self.0.partial.get_or_create(&ReasonLabels { reason }).inc();
    }
}
