//! Zipkin in: what its reporters send, in both generations of its model, as OTLP.
//!
//! [`http`] takes every form over HTTP; packets come through Jaeger's agent ports ([`crate::jaeger::agent`]). `json`, `json_v1`,
//! `proto` and `thrift` read a form each and hand fields to `v2` or `v1`, which own the mapping to OTLP. What comes out goes the
//! way of OTLP: the same pipeline, WAL, limits and counters.
//!
//! Does not own: Thrift itself ([`crate::thrift`]), queries, Zipkin's shared span ids (kept as sent; readers tell them apart).

mod endpoint;
pub mod http;
mod json;
mod json_v1;
mod proto;
pub(crate) mod thrift;
mod v1;
mod v2;

#[cfg(test)]
mod tests;
