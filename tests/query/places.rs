//! Answers do not depend on where spans lie.

use std::time::Duration;

use serde_json::Value as Json;

use super::shop::{SECOND, SPANS, Shop, TRACES, fails, root_millis};
use crate::harness::ask::{exemplified, expect_same_series, ids, list, matched, number, sum, value};
use crate::harness::server::{Server, Setup};

const SEARCHES: [&str; 24] = [
    "{}",
    "{ status = error }",
    "{ span.user.id = `u3` } | select(span.http.method, resource.service.version)",
    "{ trace:duration > 1s }",
    "{ span.db.query.text =~ `.*stock.*` }",
    "{ resource.service.name = `checkout` && status = error }",
    "{ rootServiceName = `frontend` && kind = consumer }",
    "{ event.exception.message = `connection refused` } | select(event.exception.type)",
    "{ name = `GET /cart` } > { name = `call checkout` }",
    "{ kind = server } >> { span.db.system.name = `postgresql` }",
    "{ name = `INSERT orders` } << { status = error }",
    "{ name = `SELECT stock` } ~ { name = `INSERT orders` }",
    "{ status = error } && { resource.service.name = `mail` }",
    "{ status = error } || { name = `smtp send` }",
    "({ nestedSetParent < 0 } &>> { kind = server }) | select(nestedSetLeft, nestedSetRight, nestedSetParent)",
    "{ nestedSetParent < 0 } !>> { status = error }",
    "{} | count() > 6",
    "{} | by(resource.service.name) | avg(duration) > 30ms",
    "{} | by(kind) | count() >= 2 | max(duration) > 10ms",
    "{ resource.service.name = `mail` } | sum(span.mail.bytes) > 1030",
    "{ .vulture-string-01 = `v1` } | min(.load) >= 2",
    "{ span:childCount > 1 }",
    "{ instrumentation:name = `tests` } | coalesce()",
    "{ span.http.status_code >= 500 || duration > 2s } with (most_recent=true)",
];

const SERIES: [&str; 21] = [
    "{} | count_over_time()",
    "{} | rate() by (resource.service.name)",
    "{ status = error } | rate() by (name, span.http.status_code)",
    "{} | count_over_time() by (span:kind)",
    "{} | min_over_time(duration) by (resource.service.name)",
    "{} | max_over_time(duration)",
    "{} | avg_over_time(duration) by (name)",
    "{ span.mail.bytes > 0 } | sum_over_time(span.mail.bytes)",
    "{} | histogram_over_time(duration)",
    "{} | quantile_over_time(duration, 0.5, 0.9, 0.99) by (resource.service.name)",
    "{} | rate() by (span.user.id) | topk(3)",
    "{} | rate() by (name) | bottomk(2)",
    "{} | count_over_time() by (name) > 1",
    "{ nestedSetParent < 0 } | compare({ status = error })",
    "{ nestedSetParent < 0 } | compare({ duration >= 1s }, 5)",
    "{ status = error } >> { kind = client } | rate() by (name)",
    "{ rootName = `GET /cart` } | count_over_time() by (trace:rootName)",
    "({ status = error } | count_over_time()) / ({} | count_over_time())",
    "{ event:name = `exception` } | count_over_time() by (event.exception.type)",
    "{ span:childCount > 1 } | count_over_time()",
    "{} | by(resource.service.name) | avg(duration) > 30ms | rate()",
];

/// Everything that is asked.
#[derive(Debug)]
struct Answers {
    searches: Vec<Vec<Json>>,
    ranges: Vec<Vec<Json>>,
    instants: Vec<Vec<Json>>,
}

async fn ask_all(server: &Server, shop: &Shop) -> Answers {
    let (start, end) = (shop.range().0.to_string(), shop.range().1.to_string());
    let range = [("start", &*start), ("end", &*end)];
    let (mut searches, mut ranges, mut instants) = (Vec::new(), Vec::new(), Vec::new());
    for query in SEARCHES {
        for more in [("limit", "1000"), ("spss", "100")] {
            let parameters = [&range[..], &[more]].concat();
            searches.push(server.search(query, &parameters).await);
        }
    }
    for query in SERIES {
        let parameters = [&range[..], &[("step", "10s")]].concat();
        ranges.push(server.series("query_range", query, &parameters).await);
        instants.push(server.series("query", query, &range).await);
    }
    Answers { searches, ranges, instants }
}

fn expect_same(found: &Answers, expected: &Answers, place: &str) {
    for (at, (found, expected)) in found.searches.iter().zip(&expected.searches).enumerate() {
        assert_eq!(ids(found), ids(expected), "traces of {} {place}", SEARCHES[at / 2]);
        for (found, expected) in found.iter().zip(expected) {
            assert_eq!(found, expected, "{} {place}", SEARCHES[at / 2]);
        }
    }
    for (at, query) in SERIES.iter().enumerate() {
        expect_same_series(&format!("{query} {place}"), &found.ranges[at], &expected.ranges[at]);
        expect_same_series(&format!("{query} at once {place}"), &found.instants[at], &expected.instants[at]);
    }
}

/// Blocks that a search over everything looks at.
async fn blocks(server: &Server) -> u64 {
    number(&server.whole("/api/search", &[("q", "{}")]).await["metrics"]["totalBlocks"]) as u64
}

/// Ends the server well, so that all it has is in blocks, and starts another.
async fn flushed(setup: &Setup, server: Server) -> Server {
    server.terminate(Duration::from_secs(30)).await;
    let server = setup.start().await;
    assert_eq!(server.metric("spanhouse_ingester_live_spans").await.unwrap_or(0.0), 0.0);
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_the_same_live_in_blocks_and_half_and_half() {
    let shop = Shop::new();
    let setup = Setup::new().with("FLUSH_MAX_AGE", "1h");
    let server = setup.start().await;
    shop.send_all(&server).await;
    // No waiting: what is acknowledged is found.
    let live = ask_all(&server, &shop).await;
    assert_eq!(blocks(&server).await, 0);
    for (query, found) in SEARCHES.iter().zip(live.searches.chunks(2)) {
        assert!(!found[0].is_empty(), "nothing for {query}");
    }
    for (query, found) in SERIES.iter().zip(&live.ranges) {
        assert!(sum(found) > 0.0, "nothing for {query}");
    }
    expect_right(&server, &shop).await;
    let server = flushed(&setup, server).await;
    assert!(blocks(&server).await > 0);
    expect_same(&ask_all(&server, &shop).await, &live, "in blocks");
    expect_right(&server, &shop).await;

    // Each trace begins in a block and goes on live.
    let setup = Setup::new().with("FLUSH_MAX_AGE", "1h");
    let server = setup.start().await;
    shop.send(&server, 0..3).await;
    let server = flushed(&setup, server).await;
    shop.send(&server, 3..SPANS).await;
    assert!(blocks(&server).await > 0);
    expect_same(&ask_all(&server, &shop).await, &live, "half and half");
    expect_right(&server, &shop).await;
    // And then lies in two blocks.
    let server = flushed(&setup, server).await;
    assert!(blocks(&server).await > 1);
    expect_same(&ask_all(&server, &shop).await, &live, "in two blocks");
    expect_right(&server, &shop).await;
}

/// What is known of the answers without asking an engine.
async fn expect_right(server: &Server, shop: &Shop) {
    let (start, end) = (shop.range().0.to_string(), shop.range().1.to_string());
    let range = [("start", &*start), ("end", &*end)];
    let with = |more: &[(&'static str, &'static str)]| [&range[..], more].concat();

    // Limits: 20 and 3 unless told, and the newest.
    let all = server.search("{}", &range).await;
    assert_eq!(ids(&all), shop.newest(|_| true)[..20]);
    for trace in &all {
        assert_eq!(trace["spanSet"], trace["spanSets"][0]);
        assert_eq!((list(&trace["spanSet"]["spans"]).len(), number(&trace["spanSet"]["matched"])), (3, SPANS as f64));
        assert_eq!(trace["rootServiceName"], "frontend");
        assert_eq!(number(&trace["serviceStats"]["checkout"]["spanCount"]), 3.0);
    }
    let few = server.search("{ kind = client }", &with(&[("limit", "7"), ("spss", "2")])).await;
    assert_eq!(ids(&few), shop.newest(|_| true)[..7]);
    assert!(few.iter().all(|trace| list(&trace["spanSets"][0]["spans"]).len() == 2));

    let limit = with(&[("limit", "1000")]);
    let expect = async |query: &str, wanted: &dyn Fn(usize) -> bool| {
        assert_eq!(ids(&server.search(query, &limit).await), shop.newest(wanted), "{query}");
    };
    expect("{ status = error }", &fails).await;
    expect("{ span.user.id = `u3` }", &|n| n % 7 == 3).await;
    expect("{ span.user.id = `nobody` }", &|_| false).await;
    expect("{ trace:duration > 1s }", &|n| root_millis(n) > 1000).await;
    expect("{ name = `POST /orders` } >> { status = error && kind = server }", &|n| fails(n) && n % 2 == 1).await;
    expect("{ status = error } && { span.mail.bytes >= 1030 }", &|n| fails(n) && n >= 30).await;
    expect("{ status = error } | count() > 1", &fails).await;
    expect("{ nestedSetParent < 0 } >> { status = error }", &fails).await;
    expect("{ nestedSetParent < 0 } !>> { kind = consumer }", &|_| false).await;
    // The failing roots themselves.
    expect("{ nestedSetParent < 0 } !>> { status = error }", &fails).await;

    // Grouping: a set for each service, of which the group is told.
    let grouped = server.search("{} | by(resource.service.name)", &limit).await;
    assert_eq!(grouped.len(), TRACES);
    for trace in &grouped {
        let groups = list(&trace["spanSets"]).iter();
        let mut groups: Vec<(&str, f64)> = groups
            .map(|set| {
                let key = "by(resource.service.name)";
                let service = value(&set["attributes"], key).and_then(Json::as_str).expect("the group");
                (service, number(&set["matched"]))
            })
            .collect();
        groups.sort_unstable_by_key(|(service, _)| *service);
        assert_eq!(groups, [("checkout", 3.0), ("frontend", 2.0), ("mail", 2.0)]);
    }

    // Metrics: every span counts once, on a grid of multiples of the step.
    for step in ["1s", "10s", "7s", "1m"] {
        let counted =
            server.series("query_range", "{} | count_over_time()", &[&range[..], &[("step", step)]].concat()).await;
        assert_eq!((counted.len(), sum(&counted)), (1, shop.spans() as f64), "{step}");
        let times: Vec<u64> = list(&counted[0]["samples"]).iter().map(|s| number(&s["timestampMs"]) as u64).collect();
        let millis = if step == "1m" { 60_000 } else { 1000 * step[..step.len() - 1].parse::<u64>().expect("seconds") };
        assert!(times.iter().all(|time| time.is_multiple_of(millis)), "{step}: {times:?}");
        assert!(times.windows(2).all(|pair| pair[1] - pair[0] == millis), "{step}: {times:?}");
        assert_eq!(times[0], shop.range().0 * 1000 / millis * millis, "{step}");
        assert_eq!(*times.last().expect("samples"), (shop.range().1 * 1000).div_ceil(millis) * millis, "{step}");
    }
    // Ten traces begin in each ten seconds.
    let counted =
        server.series("query_range", "{ nestedSetParent < 0 } | count_over_time()", &with(&[("step", "10s")])).await;
    for sample in list(&counted[0]["samples"]) {
        let seconds = number(&sample["timestampMs"]) as u64 / 1000;
        let begun = shop.start / SECOND;
        let expected = if (begun + 10..=begun + 60).contains(&seconds) { 10.0 } else { 0.0 };
        assert_eq!(number(&sample["value"]), expected, "{seconds} of {begun}");
    }
    let known: std::collections::BTreeSet<u128> = shop.newest(|_| true).into_iter().collect();
    let exemplars = exemplified(&counted);
    assert!(!exemplars.is_empty() && exemplars.is_subset(&known), "{exemplars:?}");
    let instant = server.series("query", "{} | count_over_time() by (resource.service.name)", &range).await;
    let of = |service: &str| {
        let found = instant.iter().find(|one| value(&one["labels"], "resource.service.name").is_some_and(|v| v == service));
        number(&found.unwrap_or_else(|| panic!("no {service}"))["value"])
    };
    assert_eq!([of("frontend"), of("checkout"), of("mail")], [2, 3, 2].map(|n| (n * TRACES) as f64));

    // A comparison: failing roots against the others, with totals.
    let compared = server.series("query", "{ nestedSetParent < 0 } | compare({ status = error })", &range).await;
    let total = |kind: &str| -> f64 {
        let of = |one: &&Json| {
            value(&one["labels"], "__meta_type").is_some_and(|v| v == kind)
                && one["labels"].as_array().is_some_and(|labels| labels.iter().any(|label| label["key"] == "kind"))
        };
        compared.iter().filter(of).map(|one| number(&one["value"])).sum()
    };
    let failed = (0..TRACES).filter(|n| fails(*n)).count() as f64;
    assert_eq!((total("selection"), total("baseline")), (failed, TRACES as f64 - failed), "{compared:?}");
    assert_eq!((total("selection_total"), total("baseline_total")), (failed, TRACES as f64 - failed));
}

/// Fails unless each span is seen once.
async fn expect_once(server: &Server, shop: &Shop, place: &str) {
    let (start, end) = (shop.range().0.to_string(), shop.range().1.to_string());
    let range = [("start", &*start), ("end", &*end), ("limit", "1000"), ("step", "10s")];
    let found = server.search("{}", &range[..3]).await;
    assert_eq!((found.len(), matched(&found)), (TRACES, shop.spans() as f64), "{place}");
    assert!(found.iter().all(|trace| number(&trace["serviceStats"]["mail"]["spanCount"]) == 2.0), "{place}");
    for query in ["{} | count() > 7", "{ span:childCount > 2 }"] {
        assert!(server.search(query, &range[..3]).await.is_empty(), "{query} {place}");
    }
    let counted = server.series("query_range", "{} | count_over_time()", &range).await;
    assert_eq!(sum(&counted), shop.spans() as f64, "{place}");
    let instant = server.series("query", "{} | count_over_time()", &range[..2]).await;
    assert_eq!(number(&instant[0]["value"]), shop.spans() as f64, "{place}");
    let sums = server.series("query", "{ span.mail.bytes > 0 } | sum_over_time(span.mail.bytes)", &range[..2]).await;
    let expected: usize = (0..TRACES).map(|n| 1000 + n).sum();
    assert_eq!(number(&sums[0]["value"]), expected as f64, "{place}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_twice_counts_once() {
    let shop = Shop::new();
    let server = Setup::new().with("FLUSH_MAX_AGE", "3s").start().await;
    shop.send_all(&server).await;
    shop.send_all(&server).await;
    expect_once(&server, &shop, "live").await;
    server.until_metric("spanhouse_ingester_live_spans", |live| live == 0.0).await;
    expect_once(&server, &shop, "in blocks").await;
    shop.send_all(&server).await;
    expect_once(&server, &shop, "in blocks and live").await;
    server.until_metric("spanhouse_ingester_live_spans", |live| live == 0.0).await;
    expect_once(&server, &shop, "in several blocks").await;
}

/// A sender that saw no acknowledgement because the server stopped.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_again_after_a_restart_counts_once() {
    let shop = Shop::new();
    let setup = Setup::new().with("FLUSH_MAX_AGE", "1h");
    let server = setup.start().await;
    shop.send_all(&server).await;
    server.kill();
    let server = setup.start().await;
    shop.send_all(&server).await;
    expect_once(&server, &shop, "live after a replay").await;
    let server = flushed(&setup, server).await;
    expect_once(&server, &shop, "in blocks").await;
}
