//! Jaeger in: what its clients, agents and collectors send, as OTLP.
//!
//! [`http`] takes batches in Thrift, [`agent`] packets, [`grpc`] `PostSpans`, [`storage_v1`] what a Jaeger stores here. `thrift` and `proto` read the two forms of the same
//! model and hand fields to `span`, which owns the mapping to OTLP; `process` makes resources. What comes out goes the way of
//! OTLP: the same pipeline, WAL, limits and counters.
//!
//! Does not own: Thrift itself ([`crate::thrift`]), Zipkin's spans in the agent's packets ([`crate::zipkin`]), queries.

pub mod agent;
mod drops;
pub mod grpc;
pub mod http;
mod process;
pub(crate) mod proto;
mod span;
pub mod storage_v1;
pub(crate) mod thrift;

#[cfg(test)]
mod tests;

pub use proto::otlp_of_spans;
