//! What the WAL counts. Names are without the prefix of the role, which the registry handed in carries.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// Counters of one WAL; clones share them.
#[derive(Clone, Debug)]
pub struct WalMetrics {
    pub records: Counter,
    pub written_bytes: Counter,
    pub syncs: Counter,
    pub sync_failures: Counter,
    pub write_failures: Counter,
    pub sync_seconds: Histogram,
    /// Records per sync: how well group commit works.
    pub group_records: Histogram,
    pub segments: Gauge,
    /// Bytes of all segments, the figure the cap is held against.
    pub bytes: Gauge,
    /// 1 while appends can succeed.
    pub ready: Gauge,
    pub replayed_records: Counter,
    pub torn_bytes: Counter,
    pub quarantined_bytes: Counter,
    pub quarantined_records: Counter,
}

impl Default for WalMetrics {
    fn default() -> Self {
        Self {
            records: Counter::default(),
            written_bytes: Counter::default(),
            syncs: Counter::default(),
            sync_failures: Counter::default(),
            write_failures: Counter::default(),
            // 100 microseconds to 3 seconds.
            sync_seconds: Histogram::new(exponential_buckets(0.0001, 2.0, 16)),
            group_records: Histogram::new(exponential_buckets(1.0, 2.0, 11)),
            segments: Gauge::default(),
            bytes: Gauge::default(),
            ready: Gauge::default(),
            replayed_records: Counter::default(),
            torn_bytes: Counter::default(),
            quarantined_bytes: Counter::default(),
            quarantined_records: Counter::default(),
        }
    }
}

impl WalMetrics {
    pub fn register(&self, to: &mut Registry) {
        to.register("wal_records", "Records made durable", self.records.clone());
        to.register_with_unit("wal_written", "Bytes written to segments", Unit::Bytes, self.written_bytes.clone());
        to.register("wal_syncs", "Groups made durable by one fdatasync", self.syncs.clone());
        to.register("wal_sync_failures", "Failed fdatasync calls; each seals a segment", self.sync_failures.clone());
        to.register(
            "wal_write_failures",
            "Failed writes, full disk included; each seals a segment",
            self.write_failures.clone(),
        );
        to.register_with_unit("wal_sync", "Time one fdatasync took", Unit::Seconds, self.sync_seconds.clone());
        to.register("wal_group_records", "Records per fdatasync", self.group_records.clone());
        to.register("wal_segments", "Segment files", self.segments.clone());
        to.register_with_unit("wal_size", "Bytes of all segments", Unit::Bytes, self.bytes.clone());
        to.register("wal_ready", "1 while the WAL takes records", self.ready.clone());
        to.register("wal_replayed_records", "Records handed out by replay", self.replayed_records.clone());
        to.register_with_unit("wal_torn", "Bytes dropped as torn tails", Unit::Bytes, self.torn_bytes.clone());
        to.register_with_unit("wal_quarantined", "Damaged bytes set aside", Unit::Bytes, self.quarantined_bytes.clone());
        to.register("wal_quarantined_records", "Records set aside for crashing replay", self.quarantined_records.clone());
    }
}
