//! Parameters of trace by id.

use spanhouse_common::time::{TimeRange, UnixNanos};

use super::Params;
use super::range::not_before;
use crate::api::error::ApiError;
use crate::api::settings::ApiSettings;
use crate::api::{go, language};
use crate::find_trace::WhichSources;
use crate::trace_filter::{Depth, Kin};
use crate::traceql::ast::FieldExpr;

/// What v1 and v2 both read.
#[derive(Debug, PartialEq)]
pub(crate) struct Where {
    pub(crate) hint: Option<TimeRange>,
    pub(crate) sources: WhichSources,
}

/// Which spans v2 shows.
#[derive(Debug, PartialEq)]
pub(crate) struct SpanSelection {
    pub(crate) filter: FieldExpr,
    /// Whom matching spans bring along.
    pub(crate) kin: Kin,
}

impl Params {
    pub(crate) fn where_to_look(&self) -> Result<Where, ApiError> {
        let sources = match self.get("mode") {
            None | Some("all") => WhichSources::All,
            Some("ingesters") => WhichSources::Live,
            Some("blocks") => WhichSources::Blocks,
            Some("external") => return Err(ApiError::ExternalMode),
            Some(other) => return Err(ApiError::BadParameter(format!("invalid value for mode {other}"))),
        };
        // Bounds on block ids split one query over Tempo's queriers. Here a query is whole, so they are only checked.
        for (name, shown) in [("blockStart", "blockstart"), ("blockEnd", "blockEnd")] {
            if let Some(why) = self.get(name).and_then(bad_uuid) {
                return Err(ApiError::BadParameter(format!("invalid value for {shown}: {why}")));
            }
        }
        Ok(Where { hint: self.hint()?, sources })
    }

    fn hint(&self) -> Result<Option<TimeRange>, ApiError> {
        let start: i64 = self.number("start", "ParseInt")?;
        let end: i64 = self.number("end", "ParseInt")?;
        let bound = |seconds: i64| u64::try_from(seconds).ok().filter(|s| *s > 0);
        if start != 0 && end != 0 && end <= start {
            return Err(not_before(start, end));
        }
        Ok(match (bound(start), bound(end)) {
            (None, None) => None,
            (start, end) => Some(TimeRange {
                min: start.map_or(TimeRange::ALL.min, UnixNanos::from_seconds),
                max: end.map_or(TimeRange::ALL.max, UnixNanos::from_seconds),
            }),
        })
    }

    /// The filter of v2; `None` for the whole trace.
    pub(crate) fn span_selection(&self, settings: &ApiSettings) -> Result<Option<SpanSelection>, ApiError> {
        self.check_query_size(settings)?;
        let bad = |name: &str, why: String| ApiError::BadParameter(format!("invalid value for {name}: {why}"));
        let depth = |name: &str, default: i64| {
            let depth = match self.get(name) {
                None => default,
                Some(text) => go::parse_int(text, "Atoi").map_err(|why| bad(name, why))?,
            };
            match depth {
                -1 => Ok(Depth::All),
                0.. => Ok(Depth::Levels(usize::try_from(depth).unwrap_or(usize::MAX))),
                _ => Err(bad(name, "must be >= -1".to_owned())),
            }
        };
        let keep = match self.get("keep_hierarchy").map(go::parse_bool) {
            None => false,
            Some(keep) => keep.map_err(|why| bad("keep_hierarchy", why))?,
        };
        let descendants = depth("match_depth", 0)?;
        let kin = if keep { Kin { descendants, ancestors: depth("ancestor_depth", -1)? } } else { Kin::NONE };
        match self.get("q").map(str::trim).filter(|text| !text.is_empty()) {
            None => Ok(None),
            Some(text) => Ok(language::span_filter(text)?.map(|filter| SpanSelection { filter, kin })),
        }
    }
}

/// Why `text` is not a UUID, if so.
fn bad_uuid(text: &str) -> Option<String> {
    let dashed = |text: &str| {
        text.bytes()
            .enumerate()
            .all(|(at, b)| if matches!(at, 8 | 13 | 18 | 23) { b == b'-' } else { b.is_ascii_hexdigit() })
    };
    match text.len() {
        36 if dashed(text) => None,
        32 if text.bytes().all(|b| b.is_ascii_hexdigit()) => None,
        32 | 36 => Some("invalid UUID format".to_owned()),
        len => Some(format!("invalid UUID length: {len}")),
    }
}
