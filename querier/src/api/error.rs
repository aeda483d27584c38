//! Refusals of the API: the one table of status codes and bodies. Bodies are plain text that clients show verbatim.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use spanhouse_common::deletion::DeleteError;
use spanhouse_common::id::{TenantError, TraceId, TraceIdError};
use spanhouse_common::source::SourceError;
use tonic::Code;

use super::text;
use crate::engine::EngineError;
use crate::find_trace::FindError;

/// Why a request gets no answer. Texts that end in a line feed are those that Go's own error handler writes.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// The header is missing.
    #[error("no org id\n")]
    NoTenant,
    #[error(transparent)]
    BadTenant(#[from] TenantError),
    #[error("multi-tenant query unsupported")]
    ManyTenants,
    /// A gRPC call names its tenant twice, not in the same words.
    #[error("multiple org IDs present")]
    ContradictoryTenants,
    #[error(transparent)]
    BadTraceId(#[from] TraceIdError),
    /// A parameter that cannot be read; the text names it.
    #[error("{0}")]
    BadParameter(String),
    /// A metrics query that is none. Apart from other parameters because gRPC tells it otherwise.
    #[error("{0}")]
    BadMetricsQuery(String),
    #[error("math expressions not supported\n")]
    MathInSearch,
    #[error("external mode is not enabled\n")]
    ExternalMode,
    #[error("trace exceeds max size (max bytes: {limit})")]
    TraceTooLarge { limit: usize },
    /// Tempo's 404 of a trace has no body.
    #[error("")]
    TraceNotFound,
    /// No endpoint at all.
    #[error("404 page not found\n")]
    NoSuchPage,
    #[error(transparent)]
    Find(#[from] FindError),
    #[error("{}", engine_text(.0))]
    Engine(#[from] EngineError),
    #[error("deleting traces is off: the setting deletion.enabled turns it on")]
    DeletionOff,
    #[error("a trace is deleted for one tenant at a time: name one in X-Scope-OrgID")]
    DeletionOfManyTenants,
    #[error("whether trace {trace_id} is deleted is not known yet: delete it again until that succeeds")]
    DeletionUnknown { trace_id: TraceId },
    #[error(transparent)]
    Delete(#[from] DeleteError),
    /// A task of ours ended early; the log says why.
    #[error("the answer could not be written")]
    Broken,
}

fn engine_text(error: &EngineError) -> String {
    match error {
        EngineError::Evaluation(why) => format!("{why}\n"),
        other => other.to_string(),
    }
}

impl ApiError {
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::NoTenant => StatusCode::UNAUTHORIZED,
            Self::BadTenant(_)
            | Self::ManyTenants
            | Self::ContradictoryTenants
            | Self::BadTraceId(_)
            | Self::BadParameter(_)
            | Self::BadMetricsQuery(_)
            | Self::DeletionOfManyTenants
            | Self::Delete(DeleteError::NoTrace | DeleteError::ReasonTooLong { .. }) => StatusCode::BAD_REQUEST,
            Self::DeletionOff => StatusCode::FORBIDDEN,
            Self::Delete(error) if error.is_too_many() => StatusCode::CONFLICT,
            Self::Delete(error) if error.is_retryable() => StatusCode::SERVICE_UNAVAILABLE,
            Self::DeletionUnknown { .. } => StatusCode::GATEWAY_TIMEOUT,
            Self::TraceNotFound | Self::NoSuchPage => StatusCode::NOT_FOUND,
            Self::TraceTooLarge { .. }
            | Self::Find(FindError::Source(SourceError::OverBudget { .. }))
            | Self::Engine(EngineError::OverBudget(_) | EngineError::Source(SourceError::OverBudget { .. })) => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            Self::Find(FindError::Busy(_)) | Self::Engine(EngineError::Busy) => StatusCode::TOO_MANY_REQUESTS,
            Self::Find(FindError::Deadline) | Self::Engine(EngineError::Deadline) => StatusCode::GATEWAY_TIMEOUT,
            Self::Find(FindError::Source(_))
            | Self::Engine(EngineError::Evaluation(_) | EngineError::Source(_))
            | Self::Delete(_)
            | Self::MathInSearch
            | Self::ExternalMode
            | Self::Broken => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The same refusal over gRPC.
    pub(crate) fn to_grpc(&self) -> tonic::Status {
        let code = match (self, self.status().as_u16()) {
            // Where Tempo's own paths part.
            (Self::BadMetricsQuery(_), _) => Code::Unknown,
            (_, 400) => Code::InvalidArgument,
            (_, 401) => Code::Unauthenticated,
            (_, 404) => Code::NotFound,
            (_, 429) => Code::ResourceExhausted,
            (_, 500..) => Code::Internal,
            _ => Code::Unknown,
        };
        tonic::Status::new(code, self.said().trim_end())
    }

    /// The text, short enough for a header: refusals quote what was asked, which may be long, and in gRPC they are headers.
    fn said(&self) -> String {
        const HEAD: usize = 2048;
        const TAIL: usize = 512;
        let text = self.to_string();
        if text.len() <= HEAD + TAIL + 5 {
            return text;
        }
        let (head, tail) = (text.floor_char_boundary(HEAD), text.ceil_char_boundary(text.len() - TAIL));
        format!("{} ... {}", &text[..head], &text[tail..])
    }

    /// Says failures of ours in the log; the rest is the client's to know.
    pub(crate) fn log(&self) {
        if self.status() == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::warn!(error = %self.to_string().trim_end(), "query failed");
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.log();
        let status = self.status();
        match self {
            Self::TraceNotFound => status.into_response(),
            error => text(status, error.said()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_refusals_quote_is_shortened() {
        let short = ApiError::BadParameter("\u{e9}".repeat(1200));
        assert_eq!(short.said(), short.to_string());
        let long = ApiError::BadParameter(format!("bad: {}: too large", "\u{e9}".repeat(50_000)));
        let said = long.said();
        assert!(said.len() < 2600 && said.starts_with("bad: \u{e9}") && said.ends_with("\u{e9}: too large"), "{said}");
        assert_eq!(long.to_grpc().message(), said);
    }
}
