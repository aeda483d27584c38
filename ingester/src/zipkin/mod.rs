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

use crate::pipeline::IngestError;

/// The forms in which spans come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// JSON of today's model.
    Json,
    /// Protobuf of today's model.
    Proto,
    V1Json,
    V1Thrift,
}

/// The `ExportTraceServiceRequest` that a body of this form says.
///
/// It is `max` bytes at most. `now`, in Unix nanoseconds, is the time of spans in [`Form::V1Json`] that have none.
///
/// # Errors
/// [`IngestError::Malformed`] if the body is not of that form, [`IngestError::TooLarge`] beyond `max`.
pub fn to_otlp(form: Form, body: &[u8], max: usize, now: u64) -> Result<Vec<u8>, IngestError> {
    match form {
        Form::Json => json::otlp(body, max),
        Form::Proto => proto::otlp(body, max),
        Form::V1Json => json_v1::otlp(body, max, now),
        Form::V1Thrift => thrift::otlp(body, max),
    }
}

#[cfg(test)]
mod tests;
