//! One trace as a waterfall: its tree at the left, when each span ran at the right.
//!
//! Owns what becomes of broken trees: spans whose parent is missing stand at the top, those in a circle follow at the end,
//! so that every span has its line.

use std::collections::{BTreeSet, HashMap};

use serde_json::Value;

use super::json::{any_value, list, text, whole};
use super::text::{Screen, clean, duration, fit, time};

/// Columns of a duration.
const DURATION_WIDTH: usize = 8;

#[derive(Debug)]
struct Span {
    service: String,
    name: String,
    start: u64,
    end: u64,
    failed: bool,
    /// As the server writes ids; they are only compared.
    id: String,
    parent: String,
}

/// A span's place in the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    span: usize,
    depth: usize,
    /// The last one of its parent.
    last: bool,
    /// Its parent is not there.
    orphan: bool,
}

/// The lines of a trace; `None` if it has no span.
pub(super) fn show(body: &Value, id: &str, screen: Screen) -> Option<String> {
    let spans = read(&body["trace"]);
    let first = spans.iter().map(|span| span.start).min()?;
    let last = spans.iter().map(|span| span.end).max()?.max(first);
    let services: BTreeSet<&str> = spans.iter().map(|span| span.service.as_str()).collect();
    let failed = spans.iter().filter(|span| span.failed).count();
    let count = |count: usize, one: &str| format!("{count} {one}{}", if count == 1 { "" } else { "s" });
    let mut out = format!(
        "Trace {}  {}  {}  {}, {}",
        id.to_ascii_lowercase(),
        time(first),
        duration(last - first),
        count(spans.len(), "span"),
        count(services.len(), "service"),
    );
    if failed > 0 {
        out.push_str(&format!(", {}", screen.red(&count(failed, "error"))));
    }
    out.push_str("\n\n");

    let places = tree(&spans);
    // The tree takes what it needs, but leaves half of the width to the bars.
    let most = screen.width() / 2 - 2;
    let rails = rails(&places, most / 4);
    let label_of = |place: &Place| format!("{}: {}", spans[place.span].service, spans[place.span].name);
    let needed = places.iter().zip(&rails).map(|(place, rail)| rail.chars().count() + label_of(place).chars().count());
    let label_width = needed.max().unwrap_or(0).min(most);
    let bar_width = screen.width().saturating_sub(label_width + DURATION_WIDTH + 6).max(8);
    let scale = scale(last - first, bar_width);
    out.push_str(&screen.dim(&format!("{}{scale}\n", " ".repeat(label_width + DURATION_WIDTH + 5))));
    let tints: HashMap<&str, usize> = services.iter().enumerate().map(|(at, service)| (*service, at)).collect();
    for (place, rail) in places.iter().zip(&rails) {
        let span = &spans[place.span];
        let room = label_width.saturating_sub(rail.chars().count());
        let label = fit(&label_of(place), room);
        let tint = tints.get(span.service.as_str()).copied().unwrap_or(0);
        let mark = if span.failed { screen.red("!") } else { " ".into() };
        let bar = bar(span.start - first, span.end.saturating_sub(first), last - first, bar_width);
        let bar = if span.failed { screen.red(&bar) } else { screen.tint(tint, &bar) };
        let took = duration(span.end.saturating_sub(span.start));
        let label = if span.failed { screen.red(&label) } else { label };
        out.push_str(&format!("{}{label} {mark} {took:>DURATION_WIDTH$}  {bar}\n", screen.dim(rail)));
    }
    let orphans = places.iter().filter(|place| place.orphan).count();
    if orphans > 0 {
        out.push_str(&format!("\n? {} whose parent is not stored (yet)\n", count(orphans, "span")));
    }
    Some(out)
}

fn read(trace: &Value) -> Vec<Span> {
    let mut out = Vec::new();
    // Tempo's first API says `batches`.
    for resource in list(trace, "resourceSpans").iter().chain(list(trace, "batches")) {
        let attributes = list(&resource["resource"], "attributes");
        let service = attributes.iter().find(|pair| text(pair, "key") == "service.name");
        let service = service.map_or_else(|| "unknown".to_owned(), |pair| any_value(&pair["value"]));
        for span in list(resource, "scopeSpans").iter().flat_map(|scope| list(scope, "spans")) {
            let (start, end) = (whole(span, "startTimeUnixNano"), whole(span, "endTimeUnixNano"));
            out.push(Span {
                service: service.clone(),
                name: clean(text(span, "name")),
                start,
                end: end.max(start),
                failed: matches!(&span["status"]["code"], Value::String(code) if code == "STATUS_CODE_ERROR")
                    || span["status"]["code"] == 2,
                id: text(span, "spanId").to_owned(),
                parent: text(span, "parentSpanId").to_owned(),
            });
        }
    }
    out.sort_by_key(|span| (span.start, std::cmp::Reverse(span.end)));
    out
}

/// All spans, parents before their children, these by start.
fn tree(spans: &[Span]) -> Vec<Place> {
    let mut by_id: HashMap<&str, usize> = HashMap::new();
    for (at, span) in spans.iter().enumerate() {
        by_id.entry(&span.id).or_insert(at);
    }
    let (mut tops, mut children) = (Vec::new(), vec![Vec::new(); spans.len()]);
    for (at, span) in spans.iter().enumerate() {
        match by_id.get(span.parent.as_str()).filter(|parent| **parent != at && !span.parent.is_empty()) {
            Some(parent) => children[*parent].push(at),
            None => tops.push(at),
        }
    }
    let (mut out, mut seen) = (Vec::with_capacity(spans.len()), vec![false; spans.len()]);
    // What no top leads to is a circle: it is entered at its earliest span.
    for top in tops.into_iter().chain(0..spans.len()) {
        let parent = spans[top].parent.as_str();
        let orphan = !parent.is_empty() && !by_id.contains_key(parent);
        let mut open = vec![Place { span: top, depth: 0, last: true, orphan }];
        while let Some(place) = open.pop() {
            if std::mem::replace(&mut seen[place.span], true) {
                continue;
            }
            out.push(place);
            for (at, child) in children[place.span].iter().rev().enumerate() {
                open.push(Place { span: *child, depth: place.depth + 1, last: at == 0, orphan: false });
            }
        }
    }
    out
}

/// What stands before each span to show whose child it is. Only so many levels are indented; deeper ones stand at the last of
/// them and say how deep they are.
fn rails(places: &[Place], levels: usize) -> Vec<String> {
    // Whether a sibling follows on each level.
    let mut follows: Vec<bool> = Vec::new();
    let mut out = Vec::with_capacity(places.len());
    for place in places {
        follows.truncate(place.depth);
        let mut rail = String::new();
        for follows in follows.iter().skip(1).take(levels) {
            rail.push_str(if *follows { "│ " } else { "  " });
        }
        if place.depth > levels {
            rail.push_str(&format!("{}> ", place.depth));
        } else if place.depth > 0 {
            rail.push_str(if place.last { "└ " } else { "├ " });
        } else if place.orphan {
            rail.push_str("? ");
        }
        follows.push(!place.last);
        out.push(rail);
    }
    out
}

/// When a span ran, to an eighth of a column; the shortest is still seen.
fn bar(start: u64, end: u64, total: u64, width: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let steps = |nanos: u64| (u128::from(nanos) * (width as u128 * 8) / u128::from(total.max(1))) as usize;
    let from = (steps(start) / 8).min(width - 1);
    let length = steps(end.saturating_sub(start)).clamp(1, (width - from) * 8);
    format!("{}{}{}", " ".repeat(from), "█".repeat(length / 8), EIGHTHS[length % 8])
}

/// Times above the bars: the start, the middle and the end.
fn scale(total: u64, width: usize) -> String {
    let (middle, end) = (duration(total / 2), duration(total));
    let (middle_width, end_width) = (middle.chars().count(), end.chars().count());
    let gap = width / 2 - 1;
    match width.checked_sub(1 + gap + middle_width + end_width) {
        Some(rest @ 1..) => format!("0{}{middle}{}{end}", " ".repeat(gap), " ".repeat(rest)),
        _ => format!("{end:>width$}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn span(id: &str, parent: &str, name: &str, start: u64, end: u64) -> Value {
        let base = 1_700_000_000_000_000_000;
        json!({ "traceId": "AAA=", "spanId": id, "parentSpanId": parent, "name": name, "status": {},
            "startTimeUnixNano": (base + start * 1_000_000).to_string(), "endTimeUnixNano": (base + end * 1_000_000).to_string() })
    }

    fn trace(groups: &[(&str, Vec<Value>)]) -> Value {
        let groups: Vec<Value> = groups
            .iter()
            .map(|(service, spans)| {
                json!({ "resource": { "attributes": [{ "key": "service.name", "value": { "stringValue": service } }] },
                    "scopeSpans": [{ "scope": {}, "spans": spans }] })
            })
            .collect();
        json!({ "trace": { "resourceSpans": groups }, "metrics": {} })
    }

    #[test]
    fn a_trace_as_a_waterfall() {
        let mut failed = span("c", "b", "SELECT", 30, 35);
        failed["status"] = json!({ "code": "STATUS_CODE_ERROR", "message": "x" });
        let body = trace(&[
            ("shop", vec![span("a", "", "GET /cart", 0, 100), span("d", "a", "render", 80, 100)]),
            ("cart", vec![span("b", "a", "load", 20, 60), failed, span("e", "z", "late", 99, 99)]),
        ]);
        let text = show(&body, "ABC", Screen::plain(60)).unwrap();
        let expected = "\
Trace abc  2023-11-14T22:13:20.000Z  100ms  5 spans, 2 services, 1 error

                               0             50ms      100ms
shop: GET /cart       100ms  ██████████████████████████████
├ cart: load           40ms        ████████████
│ └ cart: SELECT !      5ms           █▌
└ shop: render         20ms                          ██████
? cart: late            0ns                               ▏

? 1 span whose parent is not stored (yet)
";
        assert_eq!(lines(&text), lines(expected), "\n{text}");
        assert_eq!(show(&json!({ "trace": {}, "metrics": {} }), "1", Screen::plain(80)), None);
    }

    /// Words and bars without the spaces between, which the width decides.
    fn lines(text: &str) -> Vec<Vec<&str>> {
        text.lines().map(|line| line.split_whitespace().collect()).collect()
    }

    #[test]
    fn every_span_has_a_line_whatever_its_parent() {
        // A circle, a span that is its own parent, two of one id, and a deep chain.
        let mut spans = vec![span("x", "y", "x", 5, 6), span("y", "x", "y", 6, 7), span("s", "s", "self", 1, 2)];
        spans.extend([span("t", "", "one", 1, 2), span("t", "t", "two", 1, 2)]);
        spans.push(span("n0", "", "deep 0", 0, 100));
        spans.extend((1..50).map(|n| span(&format!("n{n}"), &format!("n{}", n - 1), &format!("deep {n}"), n, 100)));
        let text = show(&trace(&[("s", spans)]), "1", Screen::plain(80)).unwrap();
        for name in ["s: x ", "s: y ", "s: self ", "s: one ", "s: two ", "s: deep 0 ", "49> s: deep 49 "] {
            assert!(text.contains(name), "{name} in\n{text}");
        }
        assert_eq!(text.lines().skip(3).filter(|line| line.contains("ms  ")).count(), 55, "{text}");
        assert!(text.lines().skip(2).all(|line| line.chars().count() <= 80), "{text}");
    }

    #[test]
    fn bars_are_where_the_span_was() {
        for ((start, end), expected) in [
            ((0, 80), "██████████"),
            ((0, 0), "▏"),
            ((80, 80), "         ▏"),
            ((40, 60), "     ██▌"),
            ((8, 12), " ▌"),
            ((0, u64::MAX), "██████████"),
        ] {
            assert_eq!(bar(start, end, 80, 10), expected, "{start} to {end}");
        }
        assert_eq!(bar(0, 0, 0, 10), "▏");
    }

    #[test]
    fn the_scale_fits_any_width() {
        for total in [0, 24_600_000, 100_000_000, 1_704_067_200_000_000_000] {
            for width in 8..120 {
                let text = scale(total, width);
                assert!(text.chars().count() >= width.min(9), "{width}: {text}");
                assert!(!text.starts_with('0') || text.chars().count() == width, "{width}: {text}");
            }
        }
    }
}
