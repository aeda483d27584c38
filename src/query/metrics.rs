//! Series as small charts, one line of blocks each, and instant values as a table.

use serde_json::Value;

use super::json::{any_value, double, list, text, whole};
use super::text::{Screen, clean, duration, number, time};
use crate::blocks::text::Table;

const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

fn nothing(when: &str) -> String {
    format!("No series {when}: no span matches. A longer --since or fewer conditions may find some.\n")
}

/// Series over time. All charts share their times, each has its own heights.
pub(super) fn show(body: &Value, when: &str, screen: Screen) -> String {
    let series: Vec<(String, Vec<(u64, f64)>)> = list(body, "series")
        .iter()
        .map(|one| {
            let samples = list(one, "samples").iter();
            (labels(one), samples.map(|sample| (whole(sample, "timestampMs"), double(sample, "value"))).collect())
        })
        .collect();
    let times = || series.iter().flat_map(|(_, samples)| samples.iter().map(|(at, _)| *at));
    let (Some(first), Some(last)) = (times().min(), times().max()) else { return nothing(when) };
    let step = series.iter().flat_map(|(_, samples)| samples.windows(2)).map(|two| two[1].0.saturating_sub(two[0].0)).min();
    let nanos = |ms: u64| ms.saturating_mul(1_000_000);
    let mut out = format!("{} to {}", time(nanos(first)), time(nanos(last)));
    if let Some(step) = step {
        out.push_str(&format!(", every {}", duration(nanos(step))));
    }
    out.push('\n');
    for (at, (labels, samples)) in series.iter().enumerate() {
        let values = || samples.iter().map(|(_, value)| *value).filter(|value| value.is_finite());
        let (min, max) = (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max));
        out.push_str(&format!("\n{labels}\n"));
        if min > max {
            out.push_str("no number\n");
            continue;
        }
        out.push_str(&screen.tint(at, &chart(samples, (first, last), (min.min(0.0), max), step, screen.width())));
        let last = samples.last().map_or(0.0, |(_, value)| *value);
        out.push_str(&format!("\nmin {}  max {}  last {}\n", number(min), number(max), number(last)));
    }
    out
}

/// One column a sample if there is room, else the highest of several; a column without a sample stays empty.
fn chart(samples: &[(u64, f64)], times: (u64, u64), range: (f64, f64), step: Option<u64>, width: usize) -> String {
    let span = times.1 - times.0;
    let count = step.filter(|step| *step > 0).map_or(1, |step| span / step + 1);
    let width = width.min(usize::try_from(count).unwrap_or(usize::MAX)).max(1);
    let mut columns: Vec<Option<f64>> = vec![None; width];
    for (at, value) in samples.iter().filter(|(_, value)| value.is_finite()) {
        let column = (u128::from(at - times.0) * (width as u128 - 1)).div_ceil(u128::from(span.max(1))) as usize;
        let known = &mut columns[column.min(width - 1)];
        *known = Some(known.map_or(*value, |known| known.max(*value)));
    }
    let height = range.1 - range.0;
    let level = |value: f64| {
        let part = if height > 0.0 { (value - range.0) / height } else { 0.0 };
        LEVELS[((part * 8.0).ceil() as usize).clamp(1, 8) - 1]
    };
    columns.into_iter().map(|value| value.map_or(' ', level)).collect()
}

/// One value a series.
pub(super) fn show_instant(body: &Value, when: &str) -> String {
    let series = list(body, "series");
    if series.is_empty() {
        return nothing(when);
    }
    let mut table = Table::new(&[">VALUE", "SERIES"]);
    series.iter().for_each(|one| table.row([number(double(one, "value")), labels(one)]));
    let mut out = Vec::new();
    // Writing to memory does not fail.
    let _ = table.write(&mut out);
    String::from_utf8_lossy(&out).into_owned()
}

fn labels(series: &Value) -> String {
    let label = |pair: &Value| {
        let (key, value) = (clean(text(pair, "key")), &pair["value"]);
        let quote = if value.get("stringValue").is_some() { "\"" } else { "" };
        format!("{key}={quote}{}{quote}", any_value(value))
    };
    let labels: Vec<String> = list(series, "labels").iter().map(label).collect();
    if labels.is_empty() { "{}".into() } else { format!("{{{}}}", labels.join(", ")) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sample(second: u64, value: f64) -> Value {
        let timestamp = (1_700_000_000_000 + second * 1000).to_string();
        if value == 0.0 { json!({ "timestampMs": timestamp }) } else { json!({ "timestampMs": timestamp, "value": value }) }
    }

    #[test]
    fn series_as_lines_of_blocks() {
        let body = json!({ "series": [
            { "labels": [{ "key": "resource.service.name", "value": { "stringValue": "shop" } }],
              "samples": [sample(0, 0.0), sample(15, 1.0), sample(30, 4.0), sample(45, 8.0), sample(60, 2.0)] },
            { "labels": [{ "key": "p", "value": { "doubleValue": 0.99 } }, { "key": "span.code", "value": { "intValue": "200" } }],
              "samples": [sample(30, 0.5)] },
        ] });
        let expected = "\
2023-11-14T22:13:20.000Z to 2023-11-14T22:14:20.000Z, every 15s

{resource.service.name=\"shop\"}
▁▁▄█▂
min 0  max 8  last 2

{p=0.99, span.code=200}
  █  
min 0.5  max 0.5  last 0.5
";
        assert_eq!(show(&body, "", Screen::plain(80)), expected);
        assert!(show(&json!({ "series": [] }), "in the last 1h", Screen::plain(80)).starts_with("No series in the last 1h"));
    }

    #[test]
    fn many_samples_are_squeezed_and_odd_ones_bear_it() {
        let samples: Vec<(u64, f64)> = (0..1000).map(|n| (n, if n == 500 { 9.0 } else { 1.0 })).collect();
        let line = chart(&samples, (0, 999), (0.0, 9.0), Some(1), 50);
        assert_eq!(line.chars().count(), 50);
        assert_eq!(line.chars().filter(|c| *c == '█').count(), 1, "{line}");
        assert_eq!(chart(&[(5, 0.0)], (5, 5), (0.0, 0.0), None, 80), "▁");
        assert_eq!(chart(&[(0, -4.0), (1, f64::NAN), (2, 4.0)], (0, 2), (-4.0, 4.0), Some(1), 80), "▁ █");
    }

    #[test]
    fn instant_values_as_a_table() {
        let body = json!({ "series": [
            { "labels": [{ "key": "__name__", "value": { "stringValue": "rate" } }], "value": 0.5 },
            { "labels": [] },
        ], "metrics": {} });
        assert_eq!(show_instant(&body, ""), "VALUE  SERIES\n  0.5  {__name__=\"rate\"}\n    0  {}\n");
        assert!(show_instant(&json!({ "metrics": {} }), "in the last 1h").starts_with("No series"));
    }
}
