//! The ground every role stands on: identifiers, the span model, the columnar batch, the block format, the manifest, the
//! object store and the file system.
//!
//! Reading order: [`id`], [`time`], [`model`], [`batch`], [`block`], [`manifest`], [`store`], [`fs`], [`source`], [`deletion`].
//!
//! May not enter: wire types (OTLP, HTTP, gRPC), TraceQL, the policy of a role, anything only one crate uses.

pub mod batch;
pub mod block;
pub mod budget;
pub mod caps;
pub mod columns;
pub mod deletion;
pub mod fail_points;
pub mod fs;
pub mod id;
pub mod manifest;
pub mod model;
pub mod retention;
pub mod source;
pub mod store;
pub mod telemetry;
pub mod time;
pub mod units;
pub mod varint;
