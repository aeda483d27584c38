//! Parameters: from a URL, or from a gRPC request put into that form, to a request for the engine.
//!
//! Owns names, defaults, limits and the texts of refusals, which are Tempo's and quote Go's own parsers. An empty value is an
//! absent one; of a repeated parameter the first counts; unknown ones are ignored.

mod metrics;
mod range;
mod search;
mod tags;
mod trace;

use spanhouse_common::id::TenantId;
use spanhouse_common::time::UnixNanos;

use super::error::ApiError;
use super::go;
use super::settings::ApiSettings;

pub(crate) use metrics::{MetricsAsked, is_math};
pub(crate) use tags::TagNamesAsked;
pub(crate) use trace::{SpanSelection, Where};

/// The parameters of a request.
#[derive(Debug)]
pub(crate) struct Params(Vec<(String, String)>);

/// Who asks, when, and what is allowed.
#[derive(Debug)]
pub(crate) struct Asker<'a> {
    pub(crate) tenants: Vec<TenantId>,
    pub(crate) settings: &'a ApiSettings,
    pub(crate) now: UnixNanos,
}

impl Params {
    pub(crate) fn new(pairs: Vec<(String, String)>) -> Self {
        Self(pairs)
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    /// The first check of every endpoint that takes TraceQL.
    pub(crate) fn check_query_size(&self, settings: &ApiSettings) -> Result<(), ApiError> {
        let limit = settings.max_expression_bytes;
        if self.0.iter().any(|(name, value)| (name == "q" || name == "query") && value.len() > limit) {
            return Err(ApiError::BadParameter(format!(
                "TraceQL expression exceeds the configured maximum size of {limit} bytes, reduce the query expression size or \
                 contact your system administrator"
            )));
        }
        Ok(())
    }

    /// A number, zero if absent.
    fn number<T>(&self, name: &str, function: &str) -> Result<T, ApiError>
    where
        T: std::str::FromStr<Err = std::num::ParseIntError> + Default,
    {
        match self.get(name) {
            None => Ok(T::default()),
            Some(text) => {
                go::parse_int(text, function).map_err(|why| ApiError::BadParameter(format!("invalid {name}: {why}")))
            }
        }
    }
}
