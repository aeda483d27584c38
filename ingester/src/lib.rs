//! The ingester: spans in by every protocol, durable in the WAL, visible at once as live data, then in blocks.

pub mod admission;
pub mod otlp;
pub mod pipeline;
pub mod wal;
