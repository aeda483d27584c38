//! Parameters of trace by id. Error texts are those of Tempo, which quotes Go's own parsers.
//!
//! An empty value is an absent one; of a repeated parameter the first counts; unknown ones are ignored.

use std::collections::HashMap;

use spanhouse_common::time::{TimeRange, UnixNanos};

use super::error::ApiError;
use crate::find_trace::WhichSources;

/// Longest `q`, as in Tempo.
const MAX_QUERY_BYTES: usize = 131_072;

/// The parameters of a URL.
pub(crate) struct Params(HashMap<String, String>);

/// What v1 and v2 both read.
#[derive(Debug, PartialEq)]
pub(crate) struct Where {
    pub(crate) hint: Option<TimeRange>,
    pub(crate) sources: WhichSources,
}

impl Params {
    pub(crate) fn new(pairs: Vec<(String, String)>) -> Self {
        let mut map = HashMap::new();
        for (name, value) in pairs {
            map.entry(name).or_insert(value);
        }
        Self(map)
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

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
        let seconds = |name: &str| match self.get(name) {
            None => Ok(0),
            Some(text) => integer(text, "ParseInt").map_err(|why| ApiError::BadParameter(format!("invalid {name}: {why}"))),
        };
        let (start, end) = (seconds("start")?, seconds("end")?);
        if start != 0 && end != 0 && end <= start {
            let text = format!("http parameter start must be before end. received start={start} end={end}");
            return Err(ApiError::BadParameter(text));
        }
        let bound = |seconds: i64| u64::try_from(seconds).ok().filter(|s| *s > 0);
        Ok(match (bound(start), bound(end)) {
            (None, None) => None,
            (start, end) => Some(TimeRange {
                min: start.map_or(TimeRange::ALL.min, UnixNanos::from_seconds),
                max: end.map_or(TimeRange::ALL.max, UnixNanos::from_seconds),
            }),
        })
    }

    /// The filter of v2 is checked as far as it can be without a query language.
    pub(crate) fn check_filter(&self) -> Result<(), ApiError> {
        let bad = |name: &str, why: String| Err(ApiError::BadParameter(format!("invalid value for {name}: {why}")));
        let query = self.get("q").unwrap_or_default();
        if query.len() > MAX_QUERY_BYTES {
            return Err(ApiError::BadParameter(format!(
                "TraceQL expression exceeds the configured maximum size of {MAX_QUERY_BYTES} bytes, reduce the query expression \
                 size or contact your system administrator"
            )));
        }
        if let Some(text) = self.get("keep_hierarchy") {
            let keep = match text {
                "1" | "t" | "T" | "TRUE" | "true" | "True" => true,
                "0" | "f" | "F" | "FALSE" | "false" | "False" => false,
                _ => return bad("keep_hierarchy", format!("strconv.ParseBool: parsing {text:?}: invalid syntax")),
            };
            let depths: &[&str] = if keep { &["match_depth", "ancestor_depth"] } else { &["match_depth"] };
            for name in depths {
                match self.get(name).map(|text| integer(text, "Atoi")) {
                    Some(Err(why)) => return bad(name, why),
                    Some(Ok(depth)) if depth < -1 => return bad(name, "must be >= -1".to_owned()),
                    _ => {}
                }
            }
        }
        let filter: String = query.split_whitespace().collect();
        if filter.is_empty() || filter == "{}" {
            return Ok(());
        }
        Err(ApiError::BadParameter("invalid TraceQL filter: parameter q is not supported yet".to_owned()))
    }
}

fn integer(text: &str, function: &str) -> Result<i64, String> {
    use std::num::IntErrorKind::{NegOverflow, PosOverflow};
    text.parse().map_err(|error: std::num::ParseIntError| {
        let why = match error.kind() {
            PosOverflow | NegOverflow => "value out of range",
            _ => "invalid syntax",
        };
        format!("strconv.{function}: parsing {text:?}: {why}")
    })
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
