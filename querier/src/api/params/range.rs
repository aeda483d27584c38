//! The time range of a request.
//!
//! Searches and tags look at the last minutes unless told; metrics have rules of their own ([`super::metrics`]).

use spanhouse_common::time::{TimeRange, UnixNanos};

use super::{Asker, Params};
use crate::api::error::ApiError;
use crate::api::go;

const SECOND: u64 = go::SECOND as u64;

/// `start` and `end` as given, in nanoseconds.
#[derive(Debug, Clone, Copy, Default)]
struct Given {
    start: Option<u64>,
    end: Option<u64>,
}

impl Params {
    /// The range of a search: whole seconds of 32 bits.
    pub(crate) fn search_range(&self, asker: &Asker<'_>) -> Result<TimeRange, ApiError> {
        let start: u32 = self.number("start", "ParseUint")?;
        let end: u32 = self.number("end", "ParseUint")?;
        // Before anything else, and with an absent one as zero.
        if (start, end) != (0, 0) && start >= end {
            return Err(not_before(start.into(), end.into()));
        }
        let nanos = |seconds: u32| (seconds != 0).then(|| u64::from(seconds) * SECOND);
        self.window(Given { start: nanos(start), end: nanos(end) }, asker)
    }

    /// The range of a request about tags: any form of a time.
    pub(crate) fn tags_range(&self, asker: &Asker<'_>) -> Result<TimeRange, ApiError> {
        let time = |name: &str| match self.get(name).map(go::parse_time) {
            Some(Err(why)) => Err(bad_range(format!("could not parse '{name}' parameter: {why}"))),
            Some(Ok(nanos)) => Ok(Some(nanos).filter(|nanos| *nanos != 0)),
            None => Ok(None),
        };
        let given = Given { start: time("start")?, end: time("end")? };
        if let Given { start: Some(start), end: Some(end) } = given
            && start > end
        {
            return Err(not_before((start / SECOND) as i64, (end / SECOND) as i64));
        }
        self.window(given, asker)
    }

    fn window(&self, given: Given, asker: &Asker<'_>) -> Result<TimeRange, ApiError> {
        let settings = asker.settings;
        let fresh_until = if settings.end_cutoff.is_zero() {
            // What starts within this very second is already there.
            UnixNanos(asker.now.0.saturating_add(SECOND - 1) / SECOND * SECOND)
        } else {
            asker.now.saturating_sub(settings.end_cutoff)
        };
        let default_start = asker.now.saturating_sub(settings.default_search_range);
        let range = match (self.get("since"), given) {
            (Some(text), _) => {
                let since = go::parse_prometheus_duration(text)
                    .map_err(|why| bad_range(format!("could not parse 'since' parameter: {why}")))?;
                let min = UnixNanos(fresh_until.0.saturating_sub(since.unsigned_abs()));
                TimeRange { min, max: fresh_until }
            }
            (None, Given { start: None, end: None }) => TimeRange { min: default_start, max: fresh_until },
            (None, Given { start: Some(start), end: Some(end) }) => {
                let (mut min, mut max) = (UnixNanos(start), UnixNanos(end));
                // Without a cutoff the future is not cut off: clocks of senders may be ahead.
                if !settings.end_cutoff.is_zero() && max > fresh_until {
                    max = fresh_until;
                    min = if min > max { default_start } else { min };
                }
                TimeRange { min, max }
            }
            _ => return Err(bad_range("only one of start and end provided: must provide both or neither".to_owned())),
        };
        let longest = settings.max_search_range;
        if !longest.is_zero() && u128::from(range.max.0.saturating_sub(range.min.0)) > longest.as_nanos() {
            return Err(ApiError::BadParameter(format!(
                "range specified by start and end exceeds {}. received start={} end={}",
                go::duration_text(longest.as_nanos() as i64),
                range.min.as_seconds(),
                range.max.as_seconds()
            )));
        }
        Ok(range)
    }
}

fn bad_range(why: String) -> ApiError {
    ApiError::BadParameter(format!("error parsing date range: {why}"))
}

pub(super) fn not_before(start: i64, end: i64) -> ApiError {
    ApiError::BadParameter(format!("http parameter start must be before end. received start={start} end={end}"))
}
