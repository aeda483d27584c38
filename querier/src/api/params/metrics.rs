//! Parameters of metrics queries, and the grid they are measured on.

use std::sync::Arc;

use super::{Asker, Params};
use crate::api::error::ApiError;
use crate::api::settings::ApiSettings;
use crate::api::{go, language};
use crate::engine::{Grid, MetricsRequest};
use crate::traceql::ast;

const SECOND: u64 = go::SECOND as u64;
const DEFAULT_RANGE: u64 = 3600 * SECOND;

/// Samples that a default step aims at.
const DEFAULT_SAMPLES: u64 = 240;

/// What default steps are multiples of, the largest that is smaller than the step wins.
const STEP_UNITS: [u64; 6] = [3600 * SECOND, 300 * SECOND, 60 * SECOND, 15 * SECOND, 5 * SECOND, SECOND];

/// A metrics query as it was asked, before any check beyond its form.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct MetricsAsked {
    pub(crate) query: String,
    /// Nanoseconds, as all times here.
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// `None` for the default.
    pub(crate) step: Option<u64>,
    /// 0 for the default.
    pub(crate) exemplars: u32,
    /// 0 for the default.
    pub(crate) max_series: u32,
}

impl Params {
    /// Reads the parameters of `/api/metrics/query_range`.
    pub(crate) fn query_range(&self, asker: &Asker<'_>) -> Result<MetricsAsked, ApiError> {
        let asked = self.query_instant(asker)?;
        // What is no number here is the default.
        let count = |name: &str| self.number::<u32>(name, "ParseUint").unwrap_or(0);
        Ok(MetricsAsked { step: self.step()?, exemplars: count("exemplars"), max_series: count("maxSeries"), ..asked })
    }

    /// Reads the parameters of `/api/metrics/query`.
    pub(crate) fn query_instant(&self, asker: &Asker<'_>) -> Result<MetricsAsked, ApiError> {
        self.check_query_size(asker.settings)?;
        let time = |name: &str, default: u64| match self.get(name).map(go::parse_time) {
            None => Ok(default),
            Some(Ok(nanos)) => Ok(nanos),
            Some(Err(why)) => Err(bad(format!("could not parse '{name}' parameter: {why}"))),
        };
        let since = match self.get("since").map(go::parse_prometheus_duration) {
            None => DEFAULT_RANGE,
            Some(Ok(nanos)) => nanos.unsigned_abs(),
            Some(Err(why)) => return Err(bad(format!("could not parse 'since' parameter: {why}"))),
        };
        let now = asker.now.0;
        let end = time("end", now)?;
        let start = time("start", end.min(now).saturating_sub(since))?;
        let query = self.get("q").or_else(|| self.get("query")).unwrap_or_default().to_owned();
        Ok(MetricsAsked { query, start, end, ..MetricsAsked::default() })
    }

    /// Seconds, or a Go duration.
    fn step(&self) -> Result<Option<u64>, ApiError> {
        let Some(text) = self.get("step") else { return Ok(None) };
        let nanos = match text.parse::<f64>() {
            Ok(seconds) if seconds.is_finite() && (seconds * 1e9).abs() < i64::MAX as f64 => (seconds * 1e9) as i64,
            Ok(_) => return Err(bad(format!("cannot parse {text:?} to a valid duration. It overflows int64"))),
            Err(_) => go::parse_duration(text).map_err(|_| bad(format!("cannot parse {text:?} to a valid duration")))?,
        };
        match u64::try_from(nanos) {
            Ok(nanos) => Ok(Some(nanos)),
            Err(_) => Err(bad(format!("cannot parse {text:?}: step must be positive"))),
        }
    }
}

/// The lead is that of an error Tempo passes between its parts: clients see it, so it stays.
fn bad(why: String) -> ApiError {
    ApiError::BadParameter(format!("rpc error: code = Code(400) desc = {why}"))
}

impl MetricsAsked {
    /// Checks the query and puts it on a grid.
    pub(crate) fn range_request(self, asker: Asker<'_>) -> Result<MetricsRequest, ApiError> {
        let grid = self.range_grid(&asker)?;
        let query = language::metrics_query(&self.query, "")?;
        let settings = asker.settings;
        let exemplars = exemplars(self.exemplars, &query, settings);
        let max_series = match (self.max_series, settings.max_series) {
            (0, most) => most,
            (asked, 0) => asked,
            (asked, most) => asked.min(most),
        };
        Ok(MetricsRequest { tenants: asker.tenants, query, grid, exemplars, max_series: max_series as usize, window: None })
    }

    /// One interval over the whole range.
    pub(crate) fn instant_request(mut self, asker: Asker<'_>) -> Result<MetricsRequest, ApiError> {
        check_order(self.start, self.end)?;
        let cutoff = asker.now.saturating_sub(asker.settings.end_cutoff).0;
        // In whole seconds, so that the range keeps its fraction. Without a cutoff, what was sent within this very second is
        // asked about too.
        let beyond = self.end.saturating_sub(cutoff);
        let seconds = if asker.settings.end_cutoff.is_zero() { beyond / SECOND } else { beyond.div_ceil(SECOND) };
        self.end = self.end.saturating_sub(seconds * SECOND);
        let grid = Grid { start: self.start, end: self.end, step: self.end.saturating_sub(self.start), instant: true };
        check_window(grid.start, grid.end, asker.settings)?;
        let query = language::metrics_query(&self.query, "compiling query: ")?;
        let max_series = asker.settings.max_series as usize;
        Ok(MetricsRequest { tenants: asker.tenants, query, grid, exemplars: 0, max_series, window: None })
    }

    /// Buckets are absolute multiples of the step; the one before the start counts too. With a cutoff none is shown that is not
    /// over yet.
    fn range_grid(&self, asker: &Asker<'_>) -> Result<Grid, ApiError> {
        let (start, settings) = (self.start, asker.settings);
        check_order(start, self.end)?;
        let step = self.step.unwrap_or_else(|| default_step(self.end - start));
        let cutoff = asker.now.saturating_sub(settings.end_cutoff).0;
        let end = self.end.min(cutoff);
        check_window(start, end, settings)?;
        let range = end - start;
        if step == 0 || range / step > settings.max_intervals {
            return Err(ApiError::BadParameter(format!(
                "step of {} is too small, minimum step for given range is {}",
                go::duration_text(step as i64),
                go::duration_text((range / settings.max_intervals.max(1)) as i64)
            )));
        }
        let first = (start / step * step).saturating_sub(step);
        // Where the newest data is wanted, the step that is still running is shown; with a cutoff, as Tempo does, it is not.
        let last = if settings.end_cutoff.is_zero() { end } else { self.end }.div_ceil(step).saturating_mul(step);
        let last = if last > cutoff && !settings.end_cutoff.is_zero() { cutoff / step * step } else { last };
        // At least one bucket, also for the very first of all times.
        Ok(Grid { start: first, end: last.max(first + step), step, instant: false })
    }
}

fn check_order(start: u64, end: u64) -> Result<(), ApiError> {
    if end > start {
        return Ok(());
    }
    Err(ApiError::BadParameter("end must be greater than start".to_owned()))
}

/// `end` is what the cutoff left of it.
fn check_window(start: u64, end: u64, settings: &ApiSettings) -> Result<(), ApiError> {
    if end <= start {
        return Err(ApiError::BadParameter("query window falls entirely within query_end_cutoff".to_owned()));
    }
    let longest = settings.max_metrics_range;
    if !longest.is_zero() && u128::from(end - start) > longest.as_nanos() {
        let longest = go::duration_text(longest.as_nanos() as i64);
        let text = format!("metrics query time range exceeds the maximum allowed duration of {longest}");
        return Err(ApiError::BadParameter(text));
    }
    Ok(())
}

/// The step of a range for which none was asked.
fn default_step(range: u64) -> u64 {
    const FINEST: u64 = SECOND / 20;
    let even = range / DEFAULT_SAMPLES;
    if range < 60 * SECOND {
        return (even / FINEST * FINEST).max(FINEST);
    }
    STEP_UNITS.into_iter().find(|unit| even > *unit).map_or(SECOND, |unit| even / unit * unit)
}

/// The hint goes before the parameter; neither goes beyond the limit.
fn exemplars(asked: u32, query: &ast::Query, settings: &ApiSettings) -> usize {
    let most = settings.max_exemplars as usize;
    let hinted = query.hints.iter().filter(|hint| hint.name == "exemplars").find_map(|hint| match hint.value {
        ast::Static::Int(count) => Some(usize::try_from(count).unwrap_or(0)),
        ast::Static::Bool(wanted) => Some(if wanted { most } else { 0 }),
        _ => None,
    });
    let asked = if asked == 0 { most } else { asked as usize };
    hinted.unwrap_or(asked).min(most)
}

/// For searches: whether a metrics query computes with series, of which no spans can be shown.
pub(crate) fn is_math(query: &Arc<ast::Query>) -> bool {
    fn walk(metrics: &ast::MetricsExpr) -> bool {
        match metrics {
            ast::MetricsExpr::Query(_) => false,
            ast::MetricsExpr::Stage { input, .. } => walk(input),
            ast::MetricsExpr::Math { .. } | ast::MetricsExpr::ScalarMath { .. } => true,
        }
    }
    matches!(&query.root, ast::Root::Metrics(metrics) if walk(metrics))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_steps() {
        let second = SECOND as f64;
        let steps = [
            (1.0, 0.05),
            (59.0, 0.2),
            (60.0, 1.0),
            (300.0, 1.0),
            (3600.0, 15.0),
            (6.0 * 3600.0, 60.0),
            (24.0 * 3600.0, 300.0),
            (7.0 * 24.0 * 3600.0, 2400.0),
        ];
        for (range, step) in steps {
            assert_eq!(default_step((range * second) as u64), (step * second) as u64, "{range}");
        }
    }
}
