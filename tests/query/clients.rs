//! What real clients ask: the texts of Grafana's Traces Drilldown, the checks of tempo-vulture, spans of a real SDK, and the
//! filter of trace by id.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use prost::Message;
use serde_json::Value as Json;
use spanhouse_proto::tempopb::TraceByIdResponse;

use super::shop::{SECOND, SPANS, Shop, TRACES, fails, root_millis};
use crate::harness::ask::{PARTIAL, exemplified, ids, list, matched, number, sum, value};
use crate::harness::otlp::span_id;
use crate::harness::query::spans;
use crate::harness::server::{Server, Setup};
use crate::harness::tools;

/// Measured by Drilldown, as its panels write it.
const MEASURED: [&str; 26] = [
    "{nestedSetParent<0 && true} | rate() with(sample=true)",
    "{nestedSetParent<0 && true && status=error} | rate() with(sample=true)",
    "{nestedSetParent<0 && true} | histogram_over_time(duration) with(sample=true)",
    "{nestedSetParent<0 && true && resource.service.name != nil} | rate() by(resource.service.name)",
    "{nestedSetParent<0 && true && status=error && resource.service.name != nil} | rate() by(resource.service.name)",
    "{nestedSetParent<0 && true && resource.service.name != nil} | quantile_over_time(duration, 0.9) by(resource.service.name)",
    "{nestedSetParent<0 && true && name != nil} | quantile_over_time(duration, 0.5,0.9,0.95,0.99) by(name)",
    "{nestedSetParent<0 && resource.service.name=\"frontend\"&&span.http.status_code=500} | rate() with(sample=true)",
    "{true && true && kind != nil} | rate() by(kind)",
    "{true && true && status != nil} | rate() by(status)",
    "{true && true && statusMessage != nil} | rate() by(statusMessage)",
    "{true && true && rootServiceName != nil} | rate() by(rootServiceName)",
    "{true && true && span.http.status_code != nil} | rate() by(span.http.status_code)",
    "{kind=server && true} | rate() with(sample=true)",
    "{kind=consumer && true} | histogram_over_time(duration) with(sample=true)",
    "{span.db.system.name!=\"\" && true} | rate() with(sample=true)",
    "{span.db.system.name!=\"\" && true && span.db.system.name != nil} | quantile_over_time(duration, 0.9) by(span.db.system.name)",
    "{nestedSetParent<0 && true && resource.service.name=\"frontend\"} | rate() by(resource.service.name)",
    "{nestedSetParent<0 && true} | compare({status = error}, 10)",
    "{nestedSetParent<0 && true} | compare({duration >= 2s}, 10)",
    "{nestedSetParent<0 && true} | compare({duration >= 256ms && duration <= 2s}, 10, 1728987791000000000, 1728988006000000000)",
    "{nestedSetParent<0 && true} | compare({}, 10)",
    "{} | rate()",
    "{} | count_over_time() by(span:kind)",
    "{status=error} | select(span.http.status_code) | rate()",
    "{true} | rate() by(resource.service.name) | topk(10)",
];

/// Of the structure tab: one span set per trace, with its place in the tree.
const STRUCTURE: [&str; 3] = [
    "({nestedSetParent<0 && true } &>> { kind = server }) || ({nestedSetParent<0 && true }) | select(status, resource.service.name, name, nestedSetParent, nestedSetLeft, nestedSetRight)",
    "({nestedSetParent<0 && true && status = error} &>> { status = error }) || ({nestedSetParent<0 && true && status = error}) | select(status, resource.service.name, name, nestedSetParent, nestedSetLeft, nestedSetRight)",
    "({nestedSetParent<0 && true && duration > 2s} &>> { duration > 614ms }) || ({nestedSetParent<0 && true && duration > 2s}) | select(status, resource.service.name, name, nestedSetParent, nestedSetLeft, nestedSetRight)",
];

/// Searches of Drilldown, of the query builder, of links and by hand; whether the shop has such traces.
const SEARCHED: [(&str, bool); 17] = [
    ("{nestedSetParent<0 && true}", true),
    ("{nestedSetParent<0 && true && status = error}", true),
    ("{nestedSetParent<0 && true&& duration > 2s}", true),
    (
        "{nestedSetParent<0 && true&& duration >= 256ms && duration <= 2s} | select(span.http.method,resource.service.version)",
        true,
    ),
    (
        "{nestedSetParent<0 && true && status = error} | select(resource.service.name, event.exception.message,event.exception.stacktrace,event.exception.type) with(most_recent=true)",
        true,
    ),
    (
        "{nestedSetParent<0 && true && status = error && event.exception.message = \"connection refused\" && event.exception.type = \"IOError\"} | select(resource.service.name)",
        true,
    ),
    (
        "{nestedSetParent<0 && true && status = error && event.exception.message =~ \"^connection\\\\s+refused$\"} | select(name)",
        true,
    ),
    (
        "{nestedSetParent<0 && true && status = error && event.exception.message =~ \"^timeout\\\\s+after\\\\s+[0-9]+ms$\"} | select(name)",
        false,
    ),
    ("{}", true),
    (
        "{resource.service.name=\"shop-backend\" && name=\"article-to-cart\" && status=error && duration>100ms && traceDuration<2s}",
        false,
    ),
    ("{span.http.method=~\"GET|POST\" && (span.http.status_code=500 || span.http.status_code=503)}", true),
    ("{.http.url!~\"/health.*\" && event.name=\"x\"}", false),
    (
        "{span.db.name=\"svc\" || span.db.system=\"svc\" || span.peer.service=\"checkout\" || span.messaging.system=\"svc\" || span.net.peer.name=\"svc\"}",
        true,
    ),
    ("{instrumentation.tailsampling.policy!=nil}", false),
    ("{resource.service.name=\"frontend\"} >> {resource.service.name=\"checkout\" && status=error}", true),
    ("{trace:id=\"abc\"}", false),
    ("{status=error} | select(span.http.status_code) | rate()", true),
];

async fn with_shop() -> (Server, Shop) {
    let server = Setup::new().with("FLUSH_MAX_AGE", "1s").start().await;
    let shop = Shop::new();
    shop.send_all(&server).await;
    (server, shop)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_queries_of_drilldown() {
    let (server, shop) = with_shop().await;
    let (start, end) = (shop.range().0.to_string(), shop.range().1.to_string());
    let range = [("start", &*start), ("end", &*end)];
    for query in MEASURED {
        // As its panels, and as a comparison: one step.
        for step in ["2s", "140s"] {
            let series = server.series("query_range", query, &[&range[..], &[("step", step)]].concat()).await;
            assert!(sum(&series) > 0.0, "{query}");
            let ungrouped = !query.contains("by(") && !query.contains("compare(") && !query.contains("histogram");
            assert!(!ungrouped || series.len() <= 1, "{query}: {series:?}");
            if query.contains("histogram") {
                let buckets = series.iter().map(|one| number(value(&one["labels"], "__bucket").expect("a bucket")));
                let buckets: Vec<f64> = buckets.collect();
                assert!(buckets.is_sorted() && series.iter().all(|one| list(&one["labels"]).len() == 1), "{query}");
            }
        }
        server.series("query", query, &range).await;
    }
    for (query, found) in SEARCHED {
        let traces = server.search(query, &[&range[..], &[("limit", "200"), ("spss", "10")]].concat()).await;
        assert_eq!(!traces.is_empty(), found, "{query}");
        assert!(traces.iter().flat_map(|t| list(&t["spanSets"])).all(|set| !list(&set["spans"]).is_empty()), "{query}");
    }
    for (query, wanted) in STRUCTURE.iter().zip([&(|_| true) as &dyn Fn(usize) -> bool, &fails, &|n| root_millis(n) > 2000])
    {
        let traces = server.search(query, &[&range[..], &[("limit", "200"), ("spss", "20")]].concat()).await;
        assert_eq!(ids(&traces), shop.newest(wanted), "{query}");
        for trace in &traces {
            assert_eq!(list(&trace["spanSets"]).len(), 1, "{query}");
            for span in list(&trace["spanSets"][0]["spans"]) {
                let of = |key| value(&span["attributes"], key).map(number).unwrap_or_else(|| panic!("no {key} in {span}"));
                let (parent, left, right) = (of("nestedSetParent"), of("nestedSetLeft"), of("nestedSetRight"));
                assert!(left >= 1.0 && left < right && (parent == -1.0) == (left == 1.0), "{query}: {span}");
                assert!(span["name"].is_string() && value(&span["attributes"], "service.name").is_some(), "{query}: {span}");
            }
        }
    }
    // Ill-typed, but typed by people all the same: no search, and no reason to offer no values.
    for query in ["{duration>\"100ms\"}", "{kind=\"server\"}"] {
        let typed = server.ask("/api/search", &[("q", query)]).await;
        assert!(typed.status == 400 && typed.text().contains("operate on the same type"), "{}", typed.text());
        let path = "/api/v2/search/tag/resource.service.name/values";
        let values = server.whole(path, &[&range[..], &[("q", query)]].concat()).await;
        assert!(!list(&values["tagValues"]).is_empty(), "{query}: {values}");
    }
    for (query, text) in [
        ("{nestedSetParent<0 && true && undefined != nil} | rate() by(undefined)", "unknown identifier: undefined"),
        ("{nestedSetParent<0 && true && } | rate()", "parse error at line 1, col 31"),
    ] {
        for endpoint in ["/api/metrics/query_range", "/api/metrics/query", "/api/search"] {
            let answer = server.ask(endpoint, &[("q", query)]).await;
            assert!(answer.status == 400 && answer.text().contains(text), "{endpoint} {query}: {}", answer.text());
        }
    }
}

/// What the checker asks for each attribute of a trace it wrote.
#[tokio::test(flavor = "multi_thread")]
async fn the_checks_of_vulture() {
    let (server, shop) = with_shop().await;
    let (start, end) = ((shop.start / SECOND - 1800).to_string(), (shop.start / SECOND + 1800).to_string());
    let range = [("start", &*start), ("end", &*end)];
    for _ in ["live or in blocks", "in blocks"] {
        for (key, text, expected) in [
            ("vulture-string-01", "v1", SPANS * TRACES / 4),
            ("user.id", "u2", TRACES.div_ceil(7)),
            ("db.query.text", "INSERT INTO orders", TRACES),
            ("service.name", "mail", 2 * TRACES),
            ("service.version", "2", 2 * TRACES),
        ] {
            let query = format!("{{.{key} = \"{text}\"}}");
            let found = server.search(&query, &[&range[..], &[("limit", "1000"), ("spss", "3")]].concat()).await;
            let count = format!("{query} | count_over_time()");
            let series = server.series("query_range", &count, &[&range[..], &[("step", "10s")]].concat()).await;
            assert_eq!(series.len(), 1, "{query}");
            assert_eq!((sum(&series), matched(&found)), (expected as f64, expected as f64), "{query}");
            let tags = format!("{key}=\"{text}\"");
            let tagged = server.whole("/api/search", &[&range[..], &[("tags", &tags), ("limit", "1000")]].concat()).await;
            let tagged = list(&tagged["traces"]);
            assert_eq!(ids(tagged), ids(&found), "{tags}");
            assert!(tagged.iter().all(|trace| trace.get("spanSets").is_none()), "{tags}");
        }
        // All tags in one resource, and a bound on the whole trace.
        let both = [("tags", "service.name=frontend user.id=u2"), ("minDuration", "1s"), ("limit", "1000")];
        let found = server.whole("/api/search", &[&range[..], &both].concat()).await;
        assert_eq!(ids(list(&found["traces"])), shop.newest(|n| n % 7 == 2 && root_millis(n) >= 1000));
        let apart = [("tags", "service.name=mail user.id=u2")];
        assert!(list(&server.whole("/api/search", &[&range[..], &apart].concat()).await["traces"]).is_empty());
        server.until_flushed(shop.spans()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_of_the_python_sdk_are_found() {
    let python = match tools::python() {
        Ok(python) => python,
        Err(why) => return tools::not_run("spans_of_the_python_sdk_are_found", &why),
    };
    let server = Setup::new().with("FLUSH_MAX_AGE", "1s").start().await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tools/send.py");
    let endpoints = [format!("http://{}", server.ports.grpc), server.otlp_url()];
    let output = Command::new(python).arg(script).args(endpoints).output().expect("the script runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let sent: Vec<Json> = serde_json::from_slice(&output.stdout).expect("the script prints JSON");
    let times = |name: &str| sent.iter().map(|span| number(&span[name]) as u64 / SECOND).collect::<Vec<_>>();
    let first = times("start").into_iter().min().expect("spans") - 1;
    let last = times("end").into_iter().max().expect("spans") + 2;
    let (start, end) = (first.to_string(), last.to_string());
    let range = [("start", &*start), ("end", &*end)];
    for place in ["live or in blocks", "in blocks"] {
        for service in ["python-grpc", "python-http"] {
            let of: Vec<&Json> = sent.iter().filter(|span| span["service"] == service).collect();
            let query = format!("{{ resource.service.name = \"{service}\" }}");
            let found = server.search(&query, &[&range[..], &[("limit", "1000")]].concat()).await;
            let traces: BTreeSet<&str> = of.iter().filter_map(|span| span["trace"].as_str()).collect();
            let known: BTreeSet<u128> = traces.iter().map(|id| u128::from_str_radix(id, 16).expect("hex")).collect();
            assert_eq!(ids(&found).into_iter().collect::<BTreeSet<_>>(), known, "{service} {place}");
            assert_eq!(matched(&found), of.len() as f64, "{service} {place}");
            let counted = server.series("query", &format!("{query} | count_over_time()"), &range).await;
            assert_eq!(number(&counted[0]["value"]), of.len() as f64, "{service} {place}");
            let failed = of.iter().filter(|span| span["status"]["code"] == 2).count();
            let counted = server.search(&format!("{query} && {{ status = error }}"), &range).await;
            assert_eq!(counted.is_empty(), failed == 0, "{service} {place}");
            let series = server.series("query_range", &format!("{query} | rate()"), &range).await;
            assert!(exemplified(&series).is_subset(&known), "{service} {place}");
        }
        server.until_flushed(sent.len()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_is_shown_in_part() {
    let (server, shop) = with_shop().await;
    let (id, all) = &shop.traces[5];
    let ask = async |parameters: &[(&str, &str)]| {
        let path = crate::harness::ask::path(&format!("/api/v2/traces/{id:032x}"), parameters);
        let answer = server.get_with(&path, &[("accept", "application/protobuf")]).await;
        assert_eq!((answer.status, answer.header(PARTIAL)), (200, None), "{}", answer.text());
        let response = TraceByIdResponse::decode(&answer.body[..]).expect("a TraceByIDResponse");
        let trace = response.trace.unwrap_or_default().resource_spans;
        let mut ids: Vec<Vec<u8>> = spans(&trace).map(|span| span.span_id.clone()).collect();
        ids.sort_unstable();
        for span in spans(&trace) {
            assert!(all.contains(span), "{span:?}");
        }
        (ids, response.status, response.message)
    };
    let numbers = |numbers: &[u64]| numbers.iter().map(|n| span_id(*n)).collect::<Vec<_>>();
    let filtered = "Trace filtered, only a subset of spans matching the filter is returned";
    for _ in ["live or in blocks", "in blocks"] {
        let expect = async |query: &str, more: &[(&str, &str)], expected: &[u64]| {
            let parameters = [&[("q", query)], more].concat();
            assert_eq!(ask(&parameters).await, (numbers(expected), 1, filtered.to_owned()), "{parameters:?}");
        };
        expect("{ status = error }", &[], &[1, 3]).await;
        expect("{ span.db.query.text =~ \"SELECT.*\" }", &[("keep_hierarchy", "false"), ("ancestor_depth", "x")], &[4])
            .await;
        expect("{ name = \"SELECT stock\" }", &[("keep_hierarchy", "true")], &[1, 2, 3, 4]).await;
        expect("{ name = \"SELECT stock\" }", &[("keep_hierarchy", "true"), ("ancestor_depth", "1")], &[3, 4]).await;
        let below = [("keep_hierarchy", "true"), ("ancestor_depth", "0"), ("match_depth", "1")];
        expect("{ name = \"call checkout\" }", &below, &[2, 3]).await;
        let all_below = [("keep_hierarchy", "true"), ("ancestor_depth", "0"), ("match_depth", "-1")];
        expect("{ name = \"call checkout\" }", &all_below, &[2, 3, 4, 5]).await;
        expect("{ resource.service.name = \"mail\" }", &[], &[6, 7]).await;
        expect("{ name = \"nothing\" }", &[("keep_hierarchy", "true")], &[]).await;
        for whole in [&[][..], &[("q", " ")], &[("q", "{}")], &[("keep_hierarchy", "true")]] {
            assert_eq!(ask(whole).await, (numbers(&[1, 2, 3, 4, 5, 6, 7]), 0, String::new()), "{whole:?}");
        }
        server.until_flushed(shop.spans()).await;
    }
    for query in ["{} | count() > 1", "{} >> {}", "{ trace:duration > 1s }", "{ nestedSetLeft > 1 }", "{"] {
        let answer = server.ask(&format!("/api/v2/traces/{id:032x}"), &[("q", query)]).await;
        assert!(answer.status == 400 && answer.text().starts_with("invalid TraceQL filter: "), "{query}: {}", answer.text());
    }
}
