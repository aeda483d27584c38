//! The real binary, as a user runs it: what goes in by any protocol comes out by the query APIs, whatever happens in between.
//!
//! One binary for all of it: each test target links the whole dependency tree. Tests start their own server on free ports in a
//! directory of their own, so they run side by side.

mod attacks;
mod clients;
mod compaction;
mod crash;
mod deletion;
mod faults;
mod harness;
mod housekeeping;
mod jaeger_http;
mod jaeger_in;
mod jaeger_storage;
mod jaeger_ui;
mod overload;
mod query;
mod query_ports;
mod requests;
mod s3;
mod sampling;
mod snapshot;
mod write_path;
mod zipkin_api;
