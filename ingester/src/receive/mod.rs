//! What the receivers of all protocols share: whose request it is, its body under a memory lease, its answer, its counting.
//!
//! A request's way: the receiver of a protocol names the tenant ([`tenant`]), reads the body under a memory lease ([`body`]) and
//! hands it to the pipeline: OTLP as it is, other protocols as the OTLP they say ([`receiver::Receiver::ingest_as_otlp`]).
//! Whatever goes wrong becomes one [`status::Refusal`], which knows its HTTP and its gRPC face. Does not own: what the bodies
//! of a protocol look like, nor its paths.

pub mod body;
pub mod buffers;
pub mod cors;
pub mod decompress;
pub mod grpc;
pub mod http;
pub mod metrics;
pub mod receiver;
pub mod status;
pub mod tenant;

#[cfg(test)]
pub(crate) mod testing;
