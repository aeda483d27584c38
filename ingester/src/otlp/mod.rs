//! OTLP in: HTTP and gRPC receivers, decompression, JSON, and the walker from bytes to columns.
//!
//! A request's way: [`http`] or [`grpc`] names the tenant ([`tenant`]), reads the body under a memory lease ([`body`]) and hands
//! it, still compressed, to the pipeline. The pipeline calls [`decompress`], [`json`] for OTLP/JSON, then the walker.
//! Whatever goes wrong becomes one [`status::Refusal`], which knows its HTTP and its gRPC face.

pub mod body;
pub mod buffers;
pub mod cors;
pub mod decompress;
pub mod grpc;
pub mod http;
pub mod json;
pub mod metrics;
pub mod receiver;
pub mod status;
pub mod tenant;
mod values;
pub mod walk;
pub mod wire;

#[cfg(test)]
mod testing;
