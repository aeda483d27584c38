//! Parameters of `/api/search`.

use super::{Asker, Params};
use crate::api::error::ApiError;
use crate::api::{go, language, logfmt};
use crate::engine::tag_search::MAX_TAGS;
use crate::engine::{SearchFilter, SearchRequest, TagSearch};

impl Params {
    pub(crate) fn search(&self, asker: Asker<'_>) -> Result<SearchRequest, ApiError> {
        let settings = asker.settings;
        self.check_query_size(settings)?;
        let range = self.search_range(&asker)?;
        let query = self.get("q").map(language::search_query).transpose()?;
        let tags = self.tags(query.is_some())?;
        let (min_duration_ms, max_duration_ms) = self.durations()?;
        let limit = self.limit(settings.default_limit, settings.max_limit)?;
        let spans_per_set = match self.number::<u32>("spss", "ParseUint")? {
            0 => settings.default_spans_per_set,
            spans => spans,
        };
        if spans_per_set > settings.max_spans_per_set {
            let most = settings.max_spans_per_set;
            return Err(ApiError::BadParameter(format!("spans per span set exceeds {most}. received {spans_per_set}")));
        }
        let filter = match query {
            Some(query) => SearchFilter::TraceQl(query),
            None => SearchFilter::Tags(TagSearch { tags, min_duration_ms, max_duration_ms }),
        };
        Ok(SearchRequest {
            tenants: asker.tenants,
            filter,
            range: Some(range),
            limit: limit as usize,
            spans_per_set: spans_per_set as usize,
        })
    }

    fn tags(&self, has_query: bool) -> Result<Vec<(String, String)>, ApiError> {
        let Some(text) = self.get("tags") else { return Ok(Vec::new()) };
        if has_query {
            let text = "invalid request: can't specify tags and q in the same query";
            return Err(ApiError::BadParameter(text.to_owned()));
        }
        let bad = |why: String| ApiError::BadParameter(format!("invalid tags: {why}"));
        let tags = logfmt::pairs(text).map_err(|error| bad(error.to_string()))?;
        if tags.len() > MAX_TAGS {
            return Err(bad(format!("{} tags are more than {MAX_TAGS}", tags.len())));
        }
        let mut seen = std::collections::HashSet::new();
        match tags.iter().find(|(name, _)| !seen.insert(name.as_str())) {
            Some((name, _)) => Err(bad(format!("tag {name} has been set twice"))),
            None => Ok(tags),
        }
    }

    /// Bounds of the trace's duration, zero for none: `0s` is how clients say so.
    fn durations(&self) -> Result<(u32, u32), ApiError> {
        let millis = |name: &str| match self.get(name).map(go::parse_duration) {
            None => Ok(0),
            Some(Ok(nanos)) => Ok(u32::try_from((nanos / 1_000_000).max(0)).unwrap_or(u32::MAX)),
            Some(Err(why)) => Err(ApiError::BadParameter(format!("invalid {name}: {why}"))),
        };
        let (min, max) = (millis("minDuration")?, millis("maxDuration")?);
        if max != 0 && min >= max {
            let text = "invalid maxDuration: must be greater than minDuration";
            return Err(ApiError::BadParameter(text.to_owned()));
        }
        Ok((min, max))
    }

    fn limit(&self, default: u32, most: u32) -> Result<u32, ApiError> {
        let Some(_) = self.get("limit") else { return Ok(default.min(most)) };
        let limit: i64 = self.number("limit", "Atoi")?;
        if limit <= 0 {
            return Err(ApiError::BadParameter("invalid limit: must be a positive number".to_owned()));
        }
        u32::try_from(limit)
            .ok()
            .filter(|limit| *limit <= most)
            .ok_or_else(|| ApiError::BadParameter(format!("limit {limit} exceeds max limit {most}")))
    }
}
