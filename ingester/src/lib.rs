//! The ingester: spans in by every protocol, durable in the WAL, visible at once as live data, then in blocks.
//!
//! Flow: receivers ([`otlp`], [`jaeger`], [`zipkin`], with [`receive`] in common) hand bodies to the pipeline ([`ingest`]), which walks them into columns and appends them to the
//! [`wal`]; what is durable is published in [`live`]; [`flush`] turns cuts of it into blocks and commits them.
//!
//! [`sampling`] tells clients which traces to keep; with adaptive sampling it looks at what the pipeline accepts.
//!
//! Does not own: queries (it hands out live batches and knows no query), merging and retention of blocks.

pub mod admission;
mod epoch;
pub mod flush;
mod flushing;
mod ingest;
pub mod jaeger;
pub mod live;
mod metrics;
pub mod otlp;
pub mod pipeline;
pub mod receive;
mod replay;
mod run;
pub mod sampling;
pub mod thrift;
pub mod wal;
pub mod zipkin;

pub use ingest::Pipeline;
pub use replay::ReplaySummary;
pub use run::{Ingester, IngesterConfig, IngesterDeps, IngesterMetrics, Readiness, StartError, start};
