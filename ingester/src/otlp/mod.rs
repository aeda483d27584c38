//! OTLP in: HTTP and gRPC receivers, decompression, JSON, and the walker from bytes to columns.

pub mod walk;
mod values;
mod wire;
