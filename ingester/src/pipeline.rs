//! The path of a request: admit, decompress, walk, append to the WAL, wait until durable, publish, acknowledge.

use std::time::Duration;

use bytes::Bytes;
use spanhouse_common::id::TenantId;

/// How the body of a request is written, after decompression. The numbers are stored in WAL records: never reuse one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Encoding {
    /// `ExportTraceServiceRequest` as protobuf.
    OtlpProto = 1,
    /// `ExportTraceServiceRequest` as OTLP/JSON.
    OtlpJson = 2,
}

/// How the body is compressed. The numbers are stored in WAL records: never reuse one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Compression {
    Identity = 0,
    Gzip = 1,
    Zstd = 2,
    Deflate = 3,
    /// A framed stream or one block.
    Snappy = 4,
}

/// One request as a receiver got it: nothing decoded yet, the size of `body` already checked against the limit.
#[derive(Debug)]
pub struct IngestRequest {
    pub tenant: TenantId,
    pub encoding: Encoding,
    pub compression: Compression,
    pub body: Bytes,
}

/// Why single spans of an otherwise good request were refused. Names as Tempo counts them, where Tempo has the case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RefusalReason {
    InvalidTraceId,
    InvalidSpanId,
    TraceTooLarge,
    AttributeTooLarge,
    AttributeTooDeep,
}

impl RefusalReason {
    /// The value of the `reason` label and the word used in `partial_success`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidTraceId => "invalid_trace_id",
            Self::InvalidSpanId => "invalid_span_id",
            Self::TraceTooLarge => "trace_too_large",
            Self::AttributeTooLarge => "attribute_too_large",
            Self::AttributeTooDeep => "attribute_too_deep",
        }
    }
}

/// The request is durable; what is listed as refused is not in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accepted {
    pub spans: u64,
    /// Reason and number of spans, without zeros.
    pub refused: Vec<(RefusalReason, u64)>,
}

impl Accepted {
    /// The text of `partial_success.error_message`: empty if nothing was refused.
    pub fn refusal_text(&self) -> String {
        let parts: Vec<String> = self.refused.iter().map(|(reason, n)| format!("{}: {n}", reason.as_str())).collect();
        if parts.is_empty() { String::new() } else { format!("spans refused by reason: {}", parts.join(", ")) }
    }

    pub fn refused_spans(&self) -> u64 {
        self.refused.iter().map(|(_, n)| n).sum()
    }
}

/// Nothing of the request was kept.
#[derive(Debug, Clone, thiserror::Error)]
pub enum IngestError {
    /// The bytes are not what they claim to be: do not send them again.
    #[error("{0}")]
    Malformed(String),
    /// Larger than a configured limit: send smaller batches.
    #[error("{what} exceeds the limit of {limit} bytes")]
    TooLarge { what: &'static str, limit: usize },
    /// A limit of this tenant: send again later.
    #[error("{message}")]
    RateLimited { message: String, retry_after: Option<Duration> },
    /// The process is short of memory or WAL space: send again later.
    #[error("{message}")]
    Overloaded { message: String, retry_after: Duration },
    /// The WAL cannot take records now, or the server is stopping: send again, elsewhere if possible.
    #[error("{0}")]
    Unavailable(String),
}

/// What receivers hand requests to.
pub trait Ingest: Send + Sync + 'static {
    /// Returns once the request's spans are durable and visible, or with nothing kept.
    fn ingest(&self, request: IngestRequest) -> impl Future<Output = Result<Accepted, IngestError>> + Send;
}
