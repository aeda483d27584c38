//! Refusals of the port: the one table of status codes, and the shapes their bodies have.

use axum::http::header::{CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use spanhouse_common::source::SourceError;

use super::TEXT;
use crate::engine::EngineError;
use crate::find_trace::FindError;
use crate::jaeger::JaegerError;
use crate::jaeger::tenant::TenantRefusal;
use crate::json::{Object, push_int, push_str};

/// Why a request gets no answer. Clients show the text verbatim.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) message: String,
    /// The text alone is the body.
    bare: bool,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), bare: false }
    }

    pub(super) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// A parameter of the old API that cannot be read.
    pub(super) fn parameter(name: &str, detail: impl std::fmt::Display) -> Self {
        Self::bad(format!("unable to parse param '{name}': {detail}"))
    }

    /// A parameter of version 3 that cannot be read.
    pub(super) fn malformed(name: &str, detail: impl std::fmt::Display) -> Self {
        Self::bad(format!("malformed parameter {name}: {detail}"))
    }

    pub(super) fn no_trace() -> Self {
        Self::new(StatusCode::NOT_FOUND, "trace not found")
    }

    /// A task of ours ended early; the log says why.
    pub(super) fn broken() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the answer could not be written")
    }

    pub(super) fn too_large(what: &str, limit: usize) -> Self {
        let message =
            format!("{what} takes more than the {limit} bytes one query may have (memory.per_query): ask for less");
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, message)
    }

    pub(super) fn tenant(refusal: TenantRefusal) -> Self {
        Self { bare: true, ..Self::new(StatusCode::UNAUTHORIZED, refusal.to_string()) }
    }
}

impl From<JaegerError> for Refusal {
    fn from(error: JaegerError) -> Self {
        let status = match &error {
            JaegerError::Invalid(_) => StatusCode::BAD_REQUEST,
            JaegerError::Find(FindError::Source(SourceError::OverBudget { .. }))
            | JaegerError::Engine(EngineError::OverBudget(_) | EngineError::Source(SourceError::OverBudget { .. })) => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            JaegerError::Find(FindError::Busy(_)) | JaegerError::Engine(EngineError::Busy) => StatusCode::TOO_MANY_REQUESTS,
            JaegerError::Find(FindError::Deadline) | JaegerError::Engine(EngineError::Deadline) => {
                StatusCode::GATEWAY_TIMEOUT
            }
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

/// A refusal in the envelope of the old API.
#[derive(Debug)]
pub(super) struct Legacy(Refusal);

/// A refusal in the form of version 3.
#[derive(Debug)]
pub(super) struct V3(Refusal);

impl<E: Into<Refusal>> From<E> for Legacy {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl<E: Into<Refusal>> From<E> for V3 {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Legacy {
    fn into_response(self) -> Response {
        respond(&self.0, |refusal, out| {
            out.push_str(r#"{"data":null,"total":0,"limit":0,"offset":0,"errors":[{"code":"#);
            push_int(refusal.status.as_u16(), out);
            out.push_str(",\"msg\":");
            push_str(&refusal.message, out);
            out.push_str("}]}");
        })
    }
}

impl IntoResponse for V3 {
    fn into_response(self) -> Response {
        respond(&self.0, |refusal, out| {
            let mut object = Object::open(out);
            let mut error = Object::open(object.member("error"));
            push_int(refusal.status.as_u16(), error.member("httpCode"));
            push_str(&refusal.message, error.member("message"));
            error.close();
            object.close();
        })
    }
}

/// As Go's own error handler writes it: plain text whatever it holds, and a line feed.
fn respond(refusal: &Refusal, write: impl FnOnce(&Refusal, &mut String)) -> Response {
    if refusal.status == StatusCode::INTERNAL_SERVER_ERROR {
        tracing::warn!(error = %refusal.message, "query failed");
    }
    let mut body = String::new();
    if refusal.bare {
        body.push_str(&refusal.message);
    } else {
        write(refusal, &mut body);
        body.push('\n');
    }
    let headers = [(CONTENT_TYPE, TEXT), (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"))];
    (refusal.status, headers, body).into_response()
}
