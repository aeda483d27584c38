//! Parameters of the endpoints about tag names and tag values.

use super::{Asker, Params};
use crate::api::error::ApiError;
use crate::api::language;
use crate::engine::{TagNamesRequest, TagValuesRequest};
use crate::traceql::ast::{Attribute, Scope};

/// Which tag names are asked for.
#[derive(Debug)]
pub(crate) struct TagNamesAsked {
    /// `None` where the data has nothing to say: only intrinsics were asked for, or nothing at all.
    pub(crate) stored: Option<TagNamesRequest>,
    /// Whether the intrinsics belong to the answer.
    pub(crate) intrinsics: bool,
    /// Whether these alone do.
    pub(crate) only_intrinsics: bool,
}

impl Params {
    /// `filtered` is whether `q` counts.
    pub(crate) fn tag_names(&self, filtered: bool, asker: Asker<'_>) -> Result<TagNamesAsked, ApiError> {
        self.check_query_size(asker.settings)?;
        let range = self.tags_range(&asker)?;
        let (stored, scope, intrinsics) = match self.get("scope") {
            None | Some("none") => (true, None, true),
            Some("span") => (true, Some(Scope::Span), false),
            Some("resource") => (true, Some(Scope::Resource), false),
            Some("event") => (true, Some(Scope::Event), false),
            Some("link") => (true, Some(Scope::Link), false),
            Some("instrumentation") => (true, Some(Scope::Instrumentation), false),
            Some("intrinsic") => (false, None, true),
            Some("trace") => (false, None, false),
            Some(other) => return Err(ApiError::BadParameter(format!("invalid scope: {other}"))),
        };
        let filter = match self.get("q") {
            Some(text) if filtered && stored => language::lenient_filter(text)?,
            _ => None,
        };
        // A limit that is no number is none.
        let limit = self.number::<u32>("limit", "ParseUint").unwrap_or(0) as usize;
        let max_bytes = asker.settings.max_tag_bytes;
        let request = TagNamesRequest { tenants: asker.tenants, scope, range: Some(range), limit, max_bytes, filter };
        Ok(TagNamesAsked { stored: stored.then_some(request), intrinsics, only_intrinsics: !stored && intrinsics })
    }

    /// `filtered` is whether `q` counts.
    pub(crate) fn tag_values(
        &self,
        attribute: Attribute,
        filtered: bool,
        asker: Asker<'_>,
    ) -> Result<TagValuesRequest, ApiError> {
        self.check_query_size(asker.settings)?;
        let limit: u32 = self.number("limit", "ParseUint")?;
        // Says when to stop looking for more; an answer that looked on is as right.
        let _: u32 = self.number("maxStaleValues", "ParseUint")?;
        let range = self.tags_range(&asker)?;
        let max_bytes = asker.settings.max_tag_bytes;
        let filter = match self.get("q") {
            Some(text) if filtered => language::lenient_filter(text)?,
            _ => None,
        };
        Ok(TagValuesRequest {
            tenants: asker.tenants,
            attribute,
            range: Some(range),
            limit: limit as usize,
            max_bytes,
            filter,
        })
    }
}
