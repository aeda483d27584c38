//! The limits of one tenant.

use std::time::Duration;

use serde::{Serialize, Serializer};
use spanhouse_common::retention::DEFAULT_RETENTION;
use spanhouse_common::units::show_duration;

/// What one tenant may send, and how long it is kept. Rates are unlimited unless configured: the memory budget protects the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Protobuf bytes per second, sustained. Lower protects neighbours, and makes this tenant's senders buffer and retry.
    pub ingestion_rate_bytes: Option<u64>,
    /// Protobuf bytes at once; also the largest batch that can ever pass. Without it as much as one second of the rate.
    pub ingestion_burst_bytes: Option<u64>,
    /// Bytes of one trace while it is live. Spans beyond it are refused with reason `trace_too_large`.
    pub max_trace_bytes: u64,
    /// Bytes of one attribute. Spans with a longer one are refused with reason `attribute_too_large`; nothing is ever cut.
    pub max_attribute_bytes: Option<u64>,
    /// How long spans are kept, from the later of their start and their arrival.
    #[serde(serialize_with = "as_text")]
    pub retention: Duration,
}

fn as_text<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&show_duration(*duration))
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            ingestion_rate_bytes: None,
            ingestion_burst_bytes: None,
            max_trace_bytes: 100_000_000,
            max_attribute_bytes: None,
            retention: DEFAULT_RETENTION,
        }
    }
}

impl Limits {
    /// Sustained rate and burst, if the tenant has a rate at all.
    pub fn rate_and_burst(&self) -> Option<(u64, u64)> {
        let rate = self.ingestion_rate_bytes?;
        Some((rate, self.ingestion_burst_bytes.unwrap_or(rate)))
    }
}
