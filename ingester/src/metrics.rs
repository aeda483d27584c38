//! What the pipeline took in and what it refused.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use spanhouse_common::id::TenantId;

use crate::live::Totals;
use crate::pipeline::{Accepted, IngestError, RefusalReason};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByTenant {
    tenant: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    reason: &'static str,
    tenant: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByOutcome {
    outcome: &'static str,
}

/// Counters of the pipeline and gauges of live data, in the ingester's registry.
#[derive(Clone, Debug, Default)]
pub(crate) struct PipelineMetrics {
    spans: Family<ByTenant, Counter>,
    bytes: Family<ByTenant, Counter>,
    refused: Family<ByReason, Counter>,
    requests: Family<ByOutcome, Counter>,
    memory_refusals: Counter,
    live_spans: Gauge,
    live_bytes: Gauge,
    live_batches: Gauge,
    live_tenants: Gauge,
    memory_used: Gauge,
    replayed_records: Counter,
    replayed_spans: Counter,
    replay_failures: Counter,
}

impl PipelineMetrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let m = Self::default();
        registry.register("spans_received", "Spans received, refused ones included", m.spans.clone());
        registry.register("bytes_received", "Bytes of requests as protobuf, decompressed", m.bytes.clone());
        registry.register("spans_refused", "Spans not kept, by reason; the sender was told", m.refused.clone());
        registry.register("requests", "Requests by outcome", m.requests.clone());
        registry.register(
            "memory_refusals",
            "Requests refused because the memory share was full",
            m.memory_refusals.clone(),
        );
        registry.register("live_spans", "Spans not yet in a committed block", m.live_spans.clone());
        registry.register("live_bytes", "Memory of live spans", m.live_bytes.clone());
        registry.register("live_batches", "Batches of live spans", m.live_batches.clone());
        registry.register("live_tenants", "Tenants with live spans", m.live_tenants.clone());
        registry.register("memory_used_bytes", "Bytes taken from the ingest share", m.memory_used.clone());
        registry.register("replayed_records", "WAL records replayed at start", m.replayed_records.clone());
        registry.register("replayed_spans", "Spans replayed at start", m.replayed_spans.clone());
        registry.register("replay_failures", "WAL records that could not be decoded at start", m.replay_failures.clone());
        m
    }

    pub(crate) fn received(&self, tenant: &TenantId, spans: usize, bytes: usize) {
        let label = ByTenant { tenant: tenant.to_string() };
        self.spans.get_or_create(&label).inc_by(spans as u64);
        self.bytes.get_or_create(&label).inc_by(bytes as u64);
    }

    pub(crate) fn refused(&self, tenant: &TenantId, reason: RefusalReason, spans: u64) {
        self.refused.get_or_create(&ByReason { reason: reason.as_str(), tenant: tenant.to_string() }).inc_by(spans);
    }

    pub(crate) fn out_of_memory(&self) {
        self.memory_refusals.inc();
    }

    pub(crate) fn finished(&self, result: &Result<Accepted, IngestError>) {
        let outcome = match result {
            Ok(accepted) if accepted.refused.is_empty() => "accepted",
            Ok(_) => "accepted_in_part",
            Err(IngestError::Malformed(_)) => "malformed",
            Err(IngestError::TooLarge { .. }) => "too_large",
            Err(IngestError::RateLimited { .. }) => "rate_limited",
            Err(IngestError::Overloaded { .. }) => "overloaded",
            Err(IngestError::Unavailable(_)) => "unavailable",
        };
        self.requests.get_or_create(&ByOutcome { outcome }).inc();
    }

    pub(crate) fn replayed(&self, spans: usize) {
        self.replayed_records.inc();
        self.replayed_spans.inc_by(spans as u64);
    }

    pub(crate) fn replay_failed(&self) {
        self.replay_failures.inc();
    }

    pub(crate) fn live(&self, totals: Totals, memory_used: usize) {
        self.live_spans.set(totals.spans as i64);
        self.live_bytes.set(totals.bytes as i64);
        self.live_batches.set(totals.batches as i64);
        self.live_tenants.set(totals.tenants as i64);
        self.memory_used.set(memory_used as i64);
    }
}
