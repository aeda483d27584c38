//! OTLP in: HTTP and gRPC receivers, decompression, JSON, and the walker from bytes to columns.
