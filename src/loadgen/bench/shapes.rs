//! The queries: of each kind one that people ask, in the words of `loadgen`'s spans, and what counts as its results.

use serde_json::Value as Json;
use spanhouse_common::time::UnixNanos;

use crate::query::query_string;

/// No answer is cut at fewer.
const ALL: u32 = 262_144;

/// What there is to ask about.
#[derive(Debug)]
pub(super) struct Corpus {
    /// Seconds since 1970.
    pub(super) start: u64,
    pub(super) end: u64,
    /// Ids of users with the most traces, and with the fewest.
    pub(super) frequent: String,
    pub(super) rare: String,
    /// Ids of traces, as the server writes them.
    pub(super) traces: Vec<String>,
}

/// Which of the server's ports is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Port {
    /// Tempo's API.
    Queries,
    Jaeger,
}

/// Where the results of an answer are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Results {
    Traces,
    Series,
    Tags,
    Values,
    /// Members of the list with this name.
    List(&'static str),
    /// Spans of the only trace in `data`.
    Spans,
}

/// One query, ready to be asked.
#[derive(Debug)]
pub(super) struct Asked {
    /// As the table shows it.
    pub(super) shown: String,
    pub(super) port: Port,
    /// Asked in turn. One at least.
    pub(super) paths: Vec<String>,
    pub(super) results: Results,
}

impl Results {
    pub(super) fn count(self, answer: &Json) -> u64 {
        let len = |list: &Json| list.as_array().map_or(0, |items| items.len() as u64);
        match self {
            Self::Traces => len(&answer["traces"]),
            Self::Series => len(&answer["series"]),
            Self::Values => len(&answer["tagValues"]),
            Self::List(name) => len(&answer[name]),
            Self::Spans => len(&answer["data"][0]["spans"]),
            Self::Tags => answer["scopes"].as_array().into_iter().flatten().map(|scope| len(&scope["tags"])).sum(),
        }
    }
}

impl Corpus {
    fn range(&self) -> [(&'static str, String); 2] {
        [("start", self.start.to_string()), ("end", self.end.to_string())]
    }

    fn ask(&self, shown: String, endpoint: &str, results: Results, more: &[(&'static str, String)]) -> Asked {
        let pairs = [&self.range()[..], more].concat();
        Asked { shown, port: Port::Queries, paths: vec![format!("{endpoint}?{}", query_string(&pairs))], results }
    }

    /// The newest traces, or all of them.
    fn search(&self, query: &str, limit: u32) -> Asked {
        let which = if limit == ALL { "all" } else { "newest" };
        let more = [("q", query.to_owned()), ("limit", limit.to_string())];
        self.ask(format!("{query}, {which}"), "/api/search", Results::Traces, &more)
    }

    fn series(&self, query: &str) -> Asked {
        self.ask(query.to_owned(), "/api/metrics/query_range", Results::Series, &[("q", query.to_owned())])
    }
}

/// What is measured of Jaeger's API: what its UI asks for.
pub(super) fn jaeger_shapes(corpus: &Corpus) -> Vec<Asked> {
    let ask = |shown: &str, endpoint: &str, results, pairs: &[(&'static str, String)]| {
        let path = if pairs.is_empty() { endpoint.to_owned() } else { format!("{endpoint}?{}", query_string(pairs)) };
        Asked { shown: format!("Jaeger: {shown}"), port: Port::Jaeger, paths: vec![path], results }
    };
    let micros = |seconds: u64| (seconds * 1_000_000).to_string();
    let millis = |seconds: u64| (seconds * 1000).to_string();
    let date = |seconds: u64| UnixNanos(seconds * 1_000_000_000).to_string();
    let service = || ("service", "frontend".to_owned());
    let tags = r#"{"http.response.status_code":"500"}"#;
    let found = [service(), ("limit", "20".into()), ("start", micros(corpus.start)), ("end", micros(corpus.end))];
    let summaries = [
        ("query.serviceName", "frontend".to_owned()),
        ("query.searchDepth", "20".into()),
        ("query.startTimeMin", date(corpus.start)),
        ("query.startTimeMax", date(corpus.end)),
        ("query.attributes", tags.into()),
    ];
    let hour = [("endTs", millis(corpus.end)), ("lookback", millis(3600))];
    let steps = [service(), ("quantile", "0.95".into()), ("step", millis(60)), ("ratePer", millis(600))];
    let with = |pairs: &[(&'static str, String)], more: &[(&'static str, String)]| [pairs, more].concat();
    vec![
        ask("services", "/api/services", Results::List("data"), &[]),
        ask("operations of frontend", "/api/services/frontend/operations", Results::List("data"), &[]),
        ask(
            "summaries of frontend with http.response.status_code=500, newest 20",
            "/api/v3/trace-summaries",
            Results::List("summaries"),
            &summaries,
        ),
        ask(
            "traces of frontend with http.response.status_code=500, newest 20",
            "/api/traces",
            Results::List("data"),
            &with(&found, &[("tags", tags.into())]),
        ),
        ask("traces of frontend, newest 20", "/api/traces", Results::List("data"), &found),
        Asked {
            shown: "Jaeger: trace by id, another each time".into(),
            port: Port::Jaeger,
            paths: corpus.traces.iter().map(|id| format!("/api/traces/{id}")).collect(),
            results: Results::Spans,
        },
        ask("dependencies", "/api/dependencies", Results::List("data"), &hour),
        ask("p95 of frontend", "/api/metrics/latencies", Results::List("metrics"), &with(&hour, &steps)),
        ask(
            "calls of frontend by operation",
            "/api/metrics/calls",
            Results::List("metrics"),
            &with(&with(&hour, &steps), &[("groupByOperation", "true".into())]),
        ),
    ]
}

/// What is measured of Tempo's API, in this order.
pub(super) fn shapes(corpus: &Corpus) -> Vec<Asked> {
    let user = |id: &str| format!("{{ span.user.id = \"{id}\" }}");
    let compare = "{} | compare({ status = error })";
    vec![
        corpus.search("{ status = error }", 20),
        corpus.search(&user(&corpus.frequent), ALL),
        corpus.search(&user(&corpus.rare), ALL),
        corpus.search(&user("nobody"), ALL),
        corpus.search("{ resource.service.name = \"payment\" && status = error }", 20),
        corpus.search("{ trace:duration > 1s }", ALL),
        corpus.search("{ span.db.system = \"postgresql\" }", ALL),
        corpus.search("{ span.db.query.text =~ \"SELECT .* FROM orders .*\" }", 20),
        corpus.search("{ event.exception.type != nil }", 20),
        corpus.search("{ resource.service.name = \"checkout\" } > { kind = client }", 20),
        corpus.search("{} > {}", 20),
        corpus.search("{} >> {}", 20),
        corpus.search("{} ~ {}", 20),
        corpus.search("{} | count() > 10", 20),
        corpus.search("{} | by(resource.service.name) | avg(duration) > 1ms", 20),
        corpus.ask("names of tags".into(), "/api/v2/search/tags", Results::Tags, &[]),
        corpus.ask("values of span.http.route".into(), "/api/v2/search/tag/span.http.route/values", Results::Values, &[]),
        corpus.series("{} | rate() by (resource.service.name)"),
        corpus.series("{} | quantile_over_time(duration, .5, .9, .99) by (resource.service.name)"),
        corpus.series("{} | rate() by (span.user.id) | topk(10)"),
        corpus.ask(format!("{compare}, instant"), "/api/metrics/query", Results::Series, &[("q", compare.into())]),
    ]
}

/// The hour that ends with the newest trace, in seconds.
pub(super) fn range_of(search: &Json) -> Option<(u64, u64)> {
    let trace = search["traces"].as_array()?.first()?;
    let start: u64 = trace["startTimeUnixNano"].as_str()?.parse().ok()?;
    let millis = trace["durationMs"].as_u64().unwrap_or(0);
    let end = (start / 1_000_000 + millis) / 1000 + 1;
    Some((end.saturating_sub(3600), end))
}

/// The ids of the traces a search found.
pub(super) fn ids_of(search: &Json) -> Vec<String> {
    let traces = search["traces"].as_array().into_iter().flatten();
    traces.filter_map(|trace| trace["traceID"].as_str()).map(str::to_owned).collect()
}

/// The user that a metric by user names.
pub(super) fn user_of(instant: &Json) -> Option<&str> {
    let labels = instant["series"].as_array()?.first()?["labels"].as_array()?;
    labels.iter().find(|label| label["key"] == "span.user.id")?["value"]["stringValue"].as_str()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn answers_are_counted_and_read() {
        let found = json!({
            "traces": [{ "startTimeUnixNano": "1700000000900000000", "durationMs": 1200 }, {}],
            "metrics": { "completedJobs": 1, "totalJobs": 2 }
        });
        assert_eq!(Results::Traces.count(&found), 2);
        assert_eq!(range_of(&found), Some((1_699_996_403, 1_700_000_003)));
        assert_eq!((range_of(&json!({ "traces": [] })), range_of(&Json::Null)), (None, None));
        let scopes = json!({ "scopes": [{ "tags": ["a", "b"] }, { "tags": ["c"] }, {}] });
        assert_eq!(Results::Tags.count(&scopes), 3);
        assert_eq!(Results::Values.count(&json!({ "tagValues": [{ "type": "string", "value": "x" }] })), 1);
        assert_eq!(ids_of(&json!({ "traces": [{ "traceID": "1a" }, {}] })), ["1a"]);
        assert_eq!(Results::List("data").count(&json!({ "data": ["a", "b"], "total": 2 })), 2);
        assert_eq!(Results::Spans.count(&json!({ "data": [{ "spans": [{}, {}, {}] }] })), 3);
        assert_eq!(Results::Spans.count(&json!({ "data": null })), 0);
        let user = json!({ "series": [{ "labels": [{ "key": "span.user.id", "value": { "stringValue": "u00007" } }] }] });
        assert_eq!((user_of(&user), Results::Series.count(&user)), (Some("u00007"), 1));
        assert_eq!(user_of(&json!({ "metrics": {} })), None);
    }

    #[test]
    fn each_query_has_a_line_of_its_own() {
        let (frequent, rare) = ("u00007".into(), "u00008".into());
        let corpus = Corpus { start: 1, end: 2, frequent, rare, traces: vec!["1a".into(), "2b".into()] };
        let mut all = shapes(&corpus);
        assert!(all.iter().all(|asked| asked.paths[0].contains("?start=1&end=2")));
        all.extend(jaeger_shapes(&corpus));
        let shown: std::collections::BTreeSet<&str> = all.iter().map(|asked| asked.shown.as_str()).collect();
        assert_eq!(shown.len(), all.len());
        assert!(all.iter().all(|asked| !asked.paths.is_empty() && asked.paths.iter().all(|path| !path.contains(' '))));
        let found = all.iter().find(|asked| asked.paths[0].starts_with("/api/v3/trace-summaries")).unwrap();
        assert!(found.paths[0].contains("startTimeMin=1970-01-01T00%3A00%3A01Z"), "{found:?}");
    }
}
