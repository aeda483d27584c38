//! What the receivers count: requests and seconds. Spans and bytes are the pipeline's to count.

use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// How a request came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Protocol {
    OtlpHttp,
    OtlpGrpc,
    JaegerThriftHttp,
    JaegerGrpc,
    /// Spans that a Jaeger in front stores, by its older protocol.
    JaegerStorageGrpc,
    /// Packets of the agent port for Thrift's compact protocol, whatever is in them.
    JaegerCompactUdp,
    JaegerBinaryUdp,
    ZipkinCompactUdp,
    ZipkinJson,
    ZipkinProto,
    ZipkinV1Json,
    ZipkinV1Thrift,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Outcome {
    /// Everything was kept.
    Accepted,
    /// Kept but for some spans, which the answer names.
    Partial,
    /// Undecodable, or of a kind this endpoint does not serve.
    Malformed,
    TooLarge,
    RateLimited,
    Overloaded,
    Unavailable,
    /// No tenant, or not a usable one.
    BadTenant,
    /// The body stopped coming.
    Stalled,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    protocol: Protocol,
    outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProtocolLabel {
    protocol: Protocol,
}

/// Counters of all receivers of one process.
#[derive(Clone, Debug)]
pub struct ReceiverMetrics {
    requests: Family<RequestLabels, Counter>,
    seconds: Family<ProtocolLabel, Histogram>,
    dropped_packets: Family<ProtocolLabel, Counter>,
}

impl ReceiverMetrics {
    /// Registers under `registry`, which carries the prefix of the product and the role.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self::unregistered();
        registry.register("requests", "Requests by protocol and how they ended", metrics.requests.clone());
        registry.register("request_seconds", "From the first header to the answer", metrics.seconds.clone());
        registry.register(
            "dropped_packets",
            "Packets the kernel dropped before they were read because its buffer was full",
            metrics.dropped_packets.clone(),
        );
        metrics
    }

    /// Counts without telling anybody: for tests and embedders.
    pub fn unregistered() -> Self {
        // From a body in cache to a client on a slow link.
        let buckets =
            || Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]);
        Self {
            requests: Family::default(),
            seconds: Family::new_with_constructor(buckets),
            dropped_packets: Family::default(),
        }
    }

    pub fn count(&self, protocol: Protocol, outcome: Outcome, took: Duration) {
        self.requests.get_or_create(&RequestLabels { protocol, outcome }).inc();
        self.seconds.get_or_create(&ProtocolLabel { protocol }).observe(took.as_secs_f64());
    }

    pub fn count_dropped(&self, protocol: Protocol, packets: u64) {
        self.dropped_packets.get_or_create(&ProtocolLabel { protocol }).inc_by(packets);
    }

    /// Packets dropped so far, for tests.
    pub fn dropped_packets(&self, protocol: Protocol) -> u64 {
        self.dropped_packets.get_or_create(&ProtocolLabel { protocol }).get()
    }

    /// Requests counted so far, for tests and `/status`.
    pub fn requests(&self, protocol: Protocol, outcome: Outcome) -> u64 {
        self.requests.get_or_create(&RequestLabels { protocol, outcome }).get()
    }
}
