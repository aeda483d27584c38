//! Refusals of the API: the one table of status codes and bodies. Bodies are plain text that clients show verbatim.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use spanhouse_common::id::{TenantError, TraceIdError};
use spanhouse_common::source::SourceError;

use super::text;
use crate::find_trace::FindError;

/// Why a request gets no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// The header is missing. The line feed is what Go's own error handler adds.
    #[error("no org id\n")]
    NoTenant,
    #[error(transparent)]
    BadTenant(#[from] TenantError),
    #[error("multi-tenant query unsupported")]
    ManyTenants,
    #[error(transparent)]
    BadTraceId(#[from] TraceIdError),
    /// A parameter that cannot be read; the text names it.
    #[error("{0}")]
    BadParameter(String),
    #[error("external mode is not enabled\n")]
    ExternalMode,
    #[error("trace exceeds max size (max bytes: {limit})")]
    TraceTooLarge { limit: usize },
    /// Tempo's 404 of a trace has no body.
    #[error("")]
    TraceNotFound,
    #[error(transparent)]
    Find(#[from] FindError),
    /// A task of ours ended early; the log says why.
    #[error("the answer could not be written")]
    Broken,
}

impl ApiError {
    fn status(&self) -> StatusCode {
        match self {
            Self::NoTenant => StatusCode::UNAUTHORIZED,
            Self::BadTenant(_) | Self::ManyTenants | Self::BadTraceId(_) | Self::BadParameter(_) => StatusCode::BAD_REQUEST,
            Self::TraceNotFound => StatusCode::NOT_FOUND,
            Self::TraceTooLarge { .. } | Self::Find(FindError::Source(SourceError::OverBudget { .. })) => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            Self::Find(FindError::Busy(_)) => StatusCode::TOO_MANY_REQUESTS,
            Self::Find(FindError::Deadline) => StatusCode::GATEWAY_TIMEOUT,
            Self::Find(FindError::Source(_)) | Self::ExternalMode | Self::Broken => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.status();
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::warn!(error = %self, "query failed");
        }
        match self {
            Self::TraceNotFound => status.into_response(),
            error => text(status, error.to_string()),
        }
    }
}
