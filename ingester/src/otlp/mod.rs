//! OTLP in: HTTP and gRPC receivers, JSON, and the walker from bytes to columns.
//!
//! [`http`] and [`grpc`] hand bodies to the pipeline as they came, still compressed. The pipeline decompresses, calls [`json`]
//! for OTLP/JSON, then the walker. `build` writes OTLP for the receivers of other protocols.

pub(crate) mod build;
#[cfg(test)]
pub(crate) mod dump;
pub mod grpc;
pub mod http;
pub mod json;
mod values;
pub mod walk;
pub mod wire;
