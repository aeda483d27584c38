//! Found traces as a table.

use serde_json::Value;

use super::json::{attributes, list, text, whole};
use super::text::{clean, duration, fit, time};
use crate::blocks::text::Table;

/// Columns of a name before it is cut.
const NAME_WIDTH: usize = 40;

/// Traces in the server's order, newest first.
pub(super) fn show(body: &Value, limit: u32, with_spans: bool, when: &str) -> String {
    let traces = list(body, "traces");
    if traces.is_empty() {
        return format!(
            "No trace matches {when}. A longer --since or fewer conditions may find some; `spanhouse query tags` lists what can \
             be asked for.\n"
        );
    }
    let mut table = Table::new(&["TRACE ID", "START", ">DURATION", "SERVICE", "ROOT", ">SPANS"]);
    for trace in traces {
        let sets = span_sets(trace);
        let matched: u64 = sets.iter().map(|set| whole(set, "matched")).sum();
        table.row([
            format!("{:0>32}", clean(text(trace, "traceID"))),
            time(whole(trace, "startTimeUnixNano")),
            duration(whole(trace, "durationMs").saturating_mul(1_000_000)),
            name(text(trace, "rootServiceName")),
            name(text(trace, "rootTraceName")),
            if sets.is_empty() { "-".into() } else { matched.to_string() },
        ]);
    }
    let mut written = Vec::new();
    // Writing to memory does not fail.
    let _ = table.write(&mut written);
    let written = String::from_utf8_lossy(&written);
    let mut out = String::new();
    for (at, line) in written.lines().enumerate() {
        out.push_str(line);
        out.push('\n');
        if with_spans && let Some(trace) = at.checked_sub(1).and_then(|at| traces.get(at)) {
            show_spans(trace, &mut out);
        }
    }
    if traces.len() as u64 >= u64::from(limit) {
        out.push_str(&format!("{limit} traces, as many as were asked for: --limit shows more.\n"));
    }
    out
}

/// All sets; servers of old have only one.
fn span_sets(trace: &Value) -> Vec<&Value> {
    match list(trace, "spanSets") {
        [] => trace.get("spanSet").into_iter().collect(),
        sets => sets.iter().collect(),
    }
}

fn show_spans(trace: &Value, out: &mut String) {
    for set in span_sets(trace) {
        let of_set = attributes(list(set, "attributes"));
        if !of_set.is_empty() {
            out.push_str(&format!("    {of_set}\n"));
        }
        let spans = list(set, "spans");
        for span in spans {
            let words = [
                clean(text(span, "spanID")),
                duration(whole(span, "durationNanos")),
                clean(text(span, "name")),
                attributes(list(span, "attributes")),
            ];
            let words: Vec<String> = words.into_iter().filter(|word| !word.is_empty()).collect();
            out.push_str(&format!("    {}\n", words.join("  ")));
        }
        let more = whole(set, "matched").saturating_sub(spans.len() as u64);
        if more > 0 {
            out.push_str(&format!("    {more} more: --spss shows them\n"));
        }
    }
}

fn name(text: &str) -> String {
    let text = if text.is_empty() { "-".to_owned() } else { clean(text) };
    fit(&text, text.chars().count().min(NAME_WIDTH))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn traces_as_a_table() {
        let span = json!({ "spanID": "563d623c76514f8e", "name": "query", "startTimeUnixNano": "1700000000035077898",
            "durationNanos": "446979497",
            "attributes": [{ "key": "http.status_code", "value": { "intValue": "500" } }] });
        let set = json!({ "spans": [span], "matched": 4, "attributes": [{ "key": "by(name)", "value": { "stringValue": "query" } }] });
        let body = json!({ "traces": [
            { "traceID": "f3e0cee77ae5dc9c17ade3689eb2e54", "rootServiceName": "shop", "rootTraceName": "GET /cart",
              "startTimeUnixNano": "1700000000000000000", "durationMs": 557, "spanSet": set, "spanSets": [set] },
            { "traceID": "1", "rootServiceName": "<root span not yet received>", "startTimeUnixNano": "1699999999000000000" },
        ] });
        let table = show(&body, 20, false, "");
        let expected = "\
TRACE ID                          START                     DURATION  SERVICE                       ROOT       SPANS
0f3e0cee77ae5dc9c17ade3689eb2e54  2023-11-14T22:13:20.000Z     557ms  shop                          GET /cart      4
00000000000000000000000000000001  2023-11-14T22:13:19.000Z       0ns  <root span not yet received>  -              -
";
        assert_eq!(table, expected);
        let spans = show(&body, 2, true, "");
        let line = "    563d623c76514f8e  447ms  query  http.status_code=500\n    3 more: --spss shows them\n";
        assert!(spans.contains(&format!("      4\n    by(name)=query\n{line}")), "{spans}");
        assert!(spans.ends_with("2 traces, as many as were asked for: --limit shows more.\n"), "{spans}");
    }
}
