//! What a sender is told: one table from "what went wrong" to HTTP code, gRPC code and the time to wait.
//!
//! Owns: the codes, the bodies (`google.rpc.Status`, `ExportTraceServiceResponse`) in protobuf and JSON, `Retry-After` and
//! `RetryInfo`. Does not own: deciding that something went wrong.
//!
//! OTLP clients decide by code whether to send again. So that nobody repeats a request that cannot succeed, too large is
//! `INVALID_ARGUMENT` and not `RESOURCE_EXHAUSTED`, which older clients retry even without `RetryInfo`.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use prost::Message;
use prost_types::Any;
use serde::Serialize;
use spanhouse_proto::google::rpc::{RetryInfo, Status};
use spanhouse_proto::otlp_service::{ExportTracePartialSuccess, ExportTraceServiceResponse};
use tonic::Code;

use super::body::BodyError;
use super::decompress::DecompressError;
use super::metrics::Outcome;
use crate::otlp::json::JsonError;
use crate::pipeline::{Accepted, Encoding, IngestError};

const RETRY_INFO: &str = "type.googleapis.com/google.rpc.RetryInfo";
/// How long to wait when memory is short: the next cut frees some.
const MEMORY_RETRY: Duration = Duration::from_secs(5);

/// A request that was refused as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub http: StatusCode,
    pub grpc: Code,
    /// The code in the Status body over HTTP; the gRPC code except where the reference differs.
    pub body_code: Code,
    pub message: String,
    /// Set if the same request may succeed later.
    pub retry_after: Option<Duration>,
    pub outcome: Outcome,
}

impl Refusal {
    pub(crate) fn new(http: StatusCode, grpc: Code, outcome: Outcome, message: impl Into<String>) -> Self {
        Self { http, grpc, body_code: grpc, message: message.into(), retry_after: None, outcome }
    }

    pub(crate) fn malformed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Code::InvalidArgument, Outcome::Malformed, message)
    }

    /// The answer to an OTLP/HTTP request, in the encoding of the request.
    pub fn to_http(&self, encoding: Encoding) -> Response<Body> {
        self.mark_retry(answer(self.http, encoding, self.body(encoding)))
    }

    /// Adds the time to wait, if there is one, to an answer over HTTP.
    pub(crate) fn mark_retry(&self, mut response: Response<Body>) -> Response<Body> {
        if let Some(wait) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(whole_seconds(wait)));
        }
        response
    }

    pub fn to_grpc(&self) -> tonic::Status {
        match self.retry_after {
            None => tonic::Status::new(self.grpc, &self.message),
            Some(_) => {
                tonic::Status::with_details(self.grpc, &self.message, self.to_proto(self.grpc).encode_to_vec().into())
            }
        }
    }

    fn body(&self, encoding: Encoding) -> Vec<u8> {
        match encoding {
            Encoding::OtlpProto => self.to_proto(self.body_code).encode_to_vec(),
            Encoding::OtlpJson => {
                let details = self.retry_after.map(|wait| RetryInfoJson { kind: RETRY_INFO, delay: json_duration(wait) });
                let status = StatusJson {
                    code: self.body_code as i32,
                    message: &self.message,
                    details: details.into_iter().collect(),
                };
                serde_json::to_vec(&status).unwrap_or_default()
            }
        }
    }

    fn to_proto(&self, code: Code) -> Status {
        let retry_info = |wait: Duration| {
            let retry_delay = prost_types::Duration {
                seconds: wait.as_secs().min(i64::MAX as u64) as i64,
                nanos: wait.subsec_nanos() as i32,
            };
            let info = RetryInfo { retry_delay: Some(retry_delay) };
            Any { type_url: RETRY_INFO.to_owned(), value: info.encode_to_vec() }
        };
        Status {
            code: code as i32,
            message: self.message.clone(),
            details: self.retry_after.map(retry_info).into_iter().collect(),
        }
    }
}

impl From<IngestError> for Refusal {
    fn from(error: IngestError) -> Self {
        let message = error.to_string();
        match error {
            IngestError::Malformed(_) => Self::malformed(message),
            IngestError::TooLarge { .. } => too_large(message),
            IngestError::RateLimited { retry_after, .. } => Self {
                retry_after,
                ..Self::new(StatusCode::TOO_MANY_REQUESTS, Code::ResourceExhausted, Outcome::RateLimited, message)
            },
            IngestError::Overloaded { retry_after, .. } => overloaded(message, retry_after),
            IngestError::Unavailable(_) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, Outcome::Unavailable, message)
            }
        }
    }
}

impl From<BodyError> for Refusal {
    fn from(error: BodyError) -> Self {
        let message = error.to_string();
        match error {
            BodyError::TooLarge { .. } => too_large(message),
            BodyError::Stalled { .. } | BodyError::TooSlow { .. } => {
                Self::new(StatusCode::REQUEST_TIMEOUT, Code::DeadlineExceeded, Outcome::Stalled, message)
            }
            BodyError::Broken(_) => Self { outcome: Outcome::Stalled, ..Self::malformed(message) },
            BodyError::NoMemory(_) => overloaded(message, MEMORY_RETRY),
        }
    }
}

fn too_large(message: String) -> Refusal {
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, Code::InvalidArgument, Outcome::TooLarge, message)
}

fn overloaded(message: String, wait: Duration) -> Refusal {
    let refusal = Refusal::new(StatusCode::TOO_MANY_REQUESTS, Code::ResourceExhausted, Outcome::Overloaded, message);
    Refusal { retry_after: Some(wait), ..refusal }
}

impl From<DecompressError> for IngestError {
    fn from(error: DecompressError) -> Self {
        match error {
            DecompressError::TooLarge { limit } => Self::TooLarge { what: "decompressed body", limit },
            DecompressError::Malformed(text) => Self::Malformed(text),
        }
    }
}

impl From<JsonError> for IngestError {
    fn from(error: JsonError) -> Self {
        Self::Malformed(error.to_string())
    }
}

/// `ExportTraceServiceResponse` as protobuf. `partial_success` is always there, as the reference sends it: `0a 00` if all is well.
pub fn success_proto(accepted: &Accepted) -> Bytes {
    let partial = ExportTracePartialSuccess {
        rejected_spans: accepted.refused_spans().min(i64::MAX as u64) as i64,
        error_message: accepted.refusal_text(),
    };
    ExportTraceServiceResponse { partial_success: Some(partial) }.encode_to_vec().into()
}

/// The answer to an OTLP/HTTP request that was accepted, perhaps without some of its spans.
pub fn success_http(accepted: &Accepted, encoding: Encoding) -> Response<Body> {
    let body = match encoding {
        Encoding::OtlpProto => success_proto(accepted),
        Encoding::OtlpJson => {
            let refused = accepted.refused_spans();
            let partial = PartialSuccessJson {
                rejected_spans: (refused > 0).then(|| refused.to_string()),
                error_message: (refused > 0).then(|| accepted.refusal_text()),
            };
            serde_json::to_vec(&ResponseJson { partial_success: partial }).unwrap_or_default().into()
        }
    };
    answer(StatusCode::OK, encoding, body)
}

fn answer(code: StatusCode, encoding: Encoding, body: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = code;
    let kind = match encoding {
        Encoding::OtlpProto => "application/x-protobuf",
        Encoding::OtlpJson => "application/json",
    };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// `Retry-After` knows no fractions: round up, and never say "at once".
fn whole_seconds(wait: Duration) -> u64 {
    wait.as_millis().div_ceil(1000).clamp(1, u128::from(u32::MAX)) as u64
}

/// A duration in protobuf's JSON mapping, to the millisecond.
fn json_duration(wait: Duration) -> String {
    match wait.subsec_millis() {
        0 => format!("{}s", wait.as_secs()),
        millis => format!("{}.{millis:03}s", wait.as_secs()),
    }
}

#[derive(Serialize)]
struct StatusJson<'a> {
    code: i32,
    message: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    details: Vec<RetryInfoJson>,
}

#[derive(Serialize)]
struct RetryInfoJson {
    #[serde(rename = "@type")]
    kind: &'static str,
    #[serde(rename = "retryDelay")]
    delay: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ResponseJson {
    partial_success: PartialSuccessJson,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PartialSuccessJson {
    #[serde(skip_serializing_if = "Option::is_none")]
    rejected_spans: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_message: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::RefusalReason;

    fn json(error: IngestError) -> String {
        String::from_utf8(Refusal::from(error).body(Encoding::OtlpJson)).unwrap()
    }

    #[test]
    fn codes_of_every_error() {
        let wait = Duration::from_secs(5);
        let limited = |retry_after| IngestError::RateLimited { message: "RATE_LIMITED: x".into(), retry_after };
        for (error, http, grpc, retry) in [
            (IngestError::Malformed("m".into()), 400, Code::InvalidArgument, None),
            (IngestError::TooLarge { what: "encoded body", limit: 9 }, 413, Code::InvalidArgument, None),
            (limited(Some(wait)), 429, Code::ResourceExhausted, Some(wait)),
            (limited(None), 429, Code::ResourceExhausted, None),
            (IngestError::Overloaded { message: "o".into(), retry_after: wait }, 429, Code::ResourceExhausted, Some(wait)),
            (IngestError::Unavailable("u".into()), 503, Code::Unavailable, None),
        ] {
            let refusal = Refusal::from(error);
            assert_eq!((refusal.http.as_u16(), refusal.grpc, refusal.retry_after), (http, grpc, retry));
            let answer = refusal.to_http(Encoding::OtlpProto);
            assert_eq!(answer.headers().get("retry-after").map(|v| v.to_str().unwrap()), retry.map(|_| "5"));
            assert_eq!(refusal.to_grpc().details().is_empty(), retry.is_none());
        }
    }

    #[test]
    fn bodies_as_the_reference_writes_them() {
        let wait = Duration::from_secs(5);
        assert_eq!(
            json(IngestError::RateLimited { message: "RATE_LIMITED: x".into(), retry_after: Some(wait) }),
            r#"{"code":8,"message":"RATE_LIMITED: x","details":[{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"5s"}]}"#
        );
        assert_eq!(json(IngestError::Malformed("bad".into())), r#"{"code":3,"message":"bad"}"#);
        assert_eq!(json_duration(Duration::from_millis(1_050)), "1.050s");

        let refusal = Refusal::from(IngestError::Overloaded { message: "full".into(), retry_after: wait });
        let status = Status::decode(&refusal.body(Encoding::OtlpProto)[..]).unwrap();
        assert_eq!((status.code, status.message.as_str(), status.details[0].type_url.as_str()), (8, "full", RETRY_INFO));
        assert_eq!(status.details[0].value, [0x0a, 2, 8, 5]);
        assert_eq!(Status::decode(refusal.to_grpc().details()).unwrap(), status);
    }

    #[test]
    fn success_names_what_was_refused() {
        assert_eq!(success_proto(&Accepted { spans: 3, refused: vec![] }), &[0x0a, 0][..]);
        let some = Accepted { spans: 1, refused: vec![(RefusalReason::InvalidSpanId, 2)] };
        let partial = ExportTraceServiceResponse::decode(success_proto(&some)).unwrap().partial_success.unwrap();
        assert_eq!((partial.rejected_spans, partial.error_message), (2, some.refusal_text()));
    }

    #[test]
    fn waits_round_up() {
        for (millis, seconds) in [(0, 1), (1, 1), (1000, 1), (1001, 2), (5000, 5)] {
            assert_eq!(whole_seconds(Duration::from_millis(millis)), seconds);
        }
    }
}
