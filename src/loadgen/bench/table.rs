//! What a run came to, for people and for programs.

use std::fmt;

use serde::Serialize;

use crate::loadgen::report::grouped;

/// One query.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    pub query: String,
    /// Traces, series, names or values.
    pub results: u64,
    /// Why these are not all, or none.
    pub complaint: Option<String>,
    pub repetitions: usize,
    /// The first time: what is read then may be kept for the others.
    pub first_ms: f64,
    pub median_ms: f64,
    pub p90_ms: f64,
}

impl Measured {
    pub(super) fn new(query: String, results: u64, complaint: Option<String>, mut millis: Vec<f64>) -> Self {
        let first_ms = millis.first().copied().unwrap_or(0.0);
        millis.sort_unstable_by(f64::total_cmp);
        // The nearest rank.
        let rank = |part: f64| {
            let at = (part * millis.len() as f64).ceil() as usize;
            millis.get(at.saturating_sub(1)).copied().unwrap_or(0.0)
        };
        Self { query, results, complaint, repetitions: millis.len(), first_ms, median_ms: rank(0.5), p90_ms: rank(0.9) }
    }
}

/// All queries of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What was asked about, in seconds since 1970.
    pub start: u64,
    pub end: u64,
    pub repeat: u32,
    pub queries: Vec<Measured>,
}

impl Report {
    /// Whether every query was answered whole: the exit code.
    pub fn is_clean(&self) -> bool {
        self.queries.iter().all(|query| query.complaint.is_none())
    }

    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
    }
}

/// Three digits say enough.
fn millis(value: f64) -> String {
    let places = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.places$} ms")
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = ["query", "results", "first", "median", "p90", "repetitions"].map(str::to_owned);
        let row = |query: &Measured| {
            let results = match &query.complaint {
                Some(complaint) => format!("{} ({complaint})", grouped(query.results)),
                None => grouped(query.results),
            };
            let times = [query.first_ms, query.median_ms, query.p90_ms].map(millis);
            let [first, median, p90] = times;
            [query.query.clone(), results, first, median, p90, query.repetitions.to_string()]
        };
        let rows: Vec<[String; 6]> = std::iter::once(head).chain(self.queries.iter().map(row)).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: [usize; 6] = std::array::from_fn(width);
        for (at, row) in rows.iter().enumerate() {
            write!(f, "{:<width$}", row[0], width = widths[0])?;
            for (cell, width) in row.iter().zip(widths).skip(1) {
                write!(f, "  {cell:>width$}")?;
            }
            if at + 1 < rows.len() {
                writeln!(f)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let times = (1..=10).rev().map(f64::from).collect();
        let queries = vec![
            Measured::new("{}, all".into(), 52_000, None, times),
            Measured::new("{} ~ {}, newest".into(), 20, Some("partial".into()), vec![123.4]),
            Measured::new("{} | rate()".into(), 0, Some("HTTP 422".into()), Vec::new()),
        ];
        Report { start: 1, end: 2, repeat: 10, queries }
    }

    #[test]
    fn columns_are_aligned() {
        let expected = "\
query                       results     first    median       p90  repetitions
{}, all                      52,000   10.0 ms   5.00 ms   9.00 ms           10
{} ~ {}, newest        20 (partial)    123 ms    123 ms    123 ms            1
{} | rate()            0 (HTTP 422)   0.00 ms   0.00 ms   0.00 ms            0";
        let lines: Vec<String> = report().to_string().lines().map(str::to_owned).collect();
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(
            lines.iter().map(|line| words(line)).collect::<Vec<_>>(),
            expected.lines().map(words).collect::<Vec<_>>()
        );
        let ends: std::collections::BTreeSet<usize> = lines.iter().map(String::len).collect();
        assert_eq!(ends.len(), 1, "{lines:#?}");
        assert!(lines.iter().all(|line| !line.ends_with(' ')));
    }

    #[test]
    fn what_lacks_something_is_not_clean() {
        let mut report = report();
        assert!(!report.is_clean());
        report.queries.truncate(1);
        assert!(report.is_clean());
        let json: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
        let query = &json["queries"][0];
        assert_eq!((&query["first_ms"], &query["median_ms"], &query["p90_ms"]), (&10.0.into(), &5.0.into(), &9.0.into()));
    }
}
