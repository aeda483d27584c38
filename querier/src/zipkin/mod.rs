//! Zipkin's query API, for its own UI, Grafana's data source, and whatever else read from a Zipkin.
//!
//! Owns routes, parameters, what they mean, and the way back from our spans to Zipkin's. Does not own spans coming in on the same
//! port, nor how a query runs ([`crate::engine`]) or a trace is read ([`crate::jaeger`]).
//!
//! A request goes [`query`] (what is asked) -> the engine -> [`span`] (spans in Zipkin's terms) -> [`json`].
//!
//! Zipkin writes all names in lower case, ours stay as they were sent; asked for, they match in any case.

mod http;
mod json;
mod links;
mod query;
mod span;
mod ui;

#[cfg(test)]
mod tests;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use crate::api::error::ApiError;
use crate::api::text;
use crate::engine::EngineError;
use crate::jaeger::tenant::TenantRefusal;
use crate::jaeger::{JaegerError, JaegerQueries};

pub use http::router;

/// What the API stands on.
#[derive(Clone)]
pub struct ZipkinDeps {
    pub queries: JaegerQueries,
    pub settings: ZipkinSettings,
    /// Version of this program.
    pub version: String,
    /// `Err` names what is not ready yet, or no more.
    pub ready: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
}

impl fmt::Debug for ZipkinDeps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ZipkinDeps").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// What an operator chooses.
#[derive(Debug, Clone)]
pub struct ZipkinSettings {
    /// Folder of a built Zipkin UI; `None` serves a page that says how to get one.
    pub ui_dir: Option<PathBuf>,
    pub autocomplete_keys: AutocompleteKeys,
    /// What requests look back that say nothing of it.
    pub lookback: Duration,
}

/// Tags whose values the UI offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AutocompleteKeys {
    /// Those that spans have.
    OfSpans,
    These(Vec<String>),
}

impl Default for ZipkinSettings {
    fn default() -> Self {
        Self { ui_dir: None, autocomplete_keys: AutocompleteKeys::OfSpans, lookback: Duration::from_hours(24) }
    }
}

/// Why a request gets no answer. Bodies are plain text.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ZipkinError {
    #[error(transparent)]
    Tenant(#[from] TenantRefusal),
    /// What is asked makes no sense; the text names the parameter.
    #[error("{0}")]
    Invalid(String),
    #[error("{0} not found")]
    NoTrace(String),
    #[error(transparent)]
    Query(#[from] JaegerError),
}

impl From<EngineError> for ZipkinError {
    fn from(error: EngineError) -> Self {
        Self::Query(error.into())
    }
}

impl IntoResponse for ZipkinError {
    fn into_response(self) -> Response {
        match self {
            Self::Query(JaegerError::Find(error)) => ApiError::from(error).into_response(),
            Self::Query(JaegerError::Engine(error)) => ApiError::from(error).into_response(),
            Self::Tenant(_) => text(StatusCode::UNAUTHORIZED, self.to_string()),
            Self::NoTrace(_) => text(StatusCode::NOT_FOUND, self.to_string()),
            Self::Query(JaegerError::NoArchive | JaegerError::NotArchived(_)) => {
                text(StatusCode::INTERNAL_SERVER_ERROR, self.to_string())
            }
            Self::Invalid(_) | Self::Query(JaegerError::Invalid(_)) => {
                ApiError::BadParameter(self.to_string()).into_response()
            }
        }
    }
}
