//! Deleting traces of a running server: gone from every answer, wherever their spans are and whenever they come.

use std::collections::BTreeSet;
use std::time::Duration;

use reqwest::Method;
use serde_json::Value as Json;
use spanhouse_proto::otlp_common::any_value::Value;
use spanhouse_proto::otlp_trace::Span;

use crate::harness::ask::{exemplified, ids, list, number};
use crate::harness::eventually;
use crate::harness::otlp::{attribute, new_id, now, request, span};
use crate::harness::server::{Answer, Server, Setup};

const SPANS: u64 = 9;

/// Spans of a trace with a value that no other has.
fn marked(trace: u128, numbers: impl Iterator<Item = u64>) -> Vec<Span> {
    let mark = |n| {
        let mut span = span(trace, n);
        span.attributes.push(attribute(&format!("only.{trace:032x}"), Value::IntValue(1)));
        span.attributes.push(attribute("owner", Value::StringValue(format!("{trace:032x}"))));
        span
    };
    numbers.map(mark).collect()
}

async fn send(server: &Server, trace: u128, numbers: impl Iterator<Item = u64>) {
    server.send(&request(marked(trace, numbers))).await;
}

async fn delete(server: &Server, trace: u128) -> Answer {
    let url = server.query_url(&format!("/api/traces/{trace:032x}"));
    Answer::of(server.client.request(Method::DELETE, url)).await.expect("an answer")
}

/// Everything that can be asked says: these traces are there, and no others.
async fn expect_only(server: &Server, there: &[u128], gone: &[u128], place: &str) {
    let seconds = now() / 1_000_000_000;
    let (start, end) = ((seconds - 600).to_string(), (seconds + 60).to_string());
    let range = [("start", &*start), ("end", &*end)];
    let expected: BTreeSet<u128> = there.iter().copied().collect();
    for query in ["{}", "{} > {}", "{ span.owner != nil } | count() > 2", "{ trace:duration > 0ns }"] {
        let found = ids(&server.search(query, &[&range[..], &[("limit", "1000")]].concat()).await);
        assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), expected, "{query} {place}");
    }
    for id in gone {
        assert_eq!(server.trace_v1(*id).await, None, "{place}");
        assert!(server.trace(*id).await.is_empty(), "{place}");
        assert!(server.search(&format!("{{ span.owner = `{id:032x}` }}"), &range).await.is_empty(), "{place}");
    }
    for id in there {
        assert!(server.trace_v1(*id).await.is_some_and(|trace| !trace.is_empty()), "{place}");
    }
    let counted = server.series("query", "{} | count_over_time()", &range).await;
    let counted: f64 = counted.iter().map(|series| number(&series["value"])).sum();
    assert_eq!(counted, (there.len() as u64 * SPANS) as f64, "{place}");
    let steps = [&range[..], &[("step", "10s")]].concat();
    let by_owner = server.series("query_range", "{} | rate() by (span.owner)", &steps).await;
    assert_eq!(by_owner.len(), there.len(), "{place}");
    let exemplars = exemplified(&server.series("query_range", "{} | rate()", &steps).await);
    assert!(!exemplars.is_empty() && exemplars.is_subset(&expected), "{place}");

    let compared = server.series("query", "{} | compare({ status = error }, 1000)", &range).await;
    let compared = serde_json::to_string(&compared).expect("JSON");
    let names = server.whole("/api/v2/search/tags", &range).await.to_string();
    let filter = [&range[..], &[("q", "{ duration >= 0ns }")]].concat();
    let filtered = server.whole("/api/v2/search/tags", &filter).await.to_string();
    let values = server.whole("/api/v2/search/tag/span.owner/values", &range).await;
    assert_eq!(list(&values["tagValues"]).len(), there.len(), "{values} {place}");
    let values = values.to_string();
    for (what, text) in [("compare", &compared), ("names", &names), ("names", &filtered), ("values", &values)] {
        for id in gone {
            assert!(!text.contains(&format!("{id:032x}")), "{what} {place}");
        }
        let all = there.iter().all(|id| text.contains(&format!("{id:032x}")));
        assert!(all, "{what} {place}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_trace_is_gone_live_in_blocks_in_both_and_for_good() {
    let setup = Setup::new().with("FLUSH_MAX_AGE", "1h").with("DELETION_ENABLED", "true");
    let server = setup.start().await;
    let all: Vec<u128> = (0..6).map(|_| new_id()).collect();
    let [in_block, in_both, late, live, stays, stays_live] = all[..] else { unreachable!() };
    for id in [in_block, in_both, late, stays] {
        let half = if id == in_both { 1..=SPANS / 2 } else { 1..=SPANS };
        send(&server, id, half).await;
    }
    // All of it goes to one block.
    server.terminate(Duration::from_secs(30)).await;
    let server = setup.start().await;
    send(&server, in_both, SPANS / 2 + 1..=SPANS).await;
    send(&server, live, 1..=SPANS).await;
    send(&server, stays_live, 1..=SPANS).await;
    expect_only(&server, &all, &[], "before").await;

    for (n, id) in [live, in_block, in_both].into_iter().enumerate() {
        assert_eq!(delete(&server, id).await.status, 204);
        let gone = &[live, in_block, in_both][..=n];
        let there: Vec<u128> = all.iter().copied().filter(|id| !gone.contains(id)).collect();
        expect_only(&server, &there, gone, &format!("after {n}")).await;
    }
    // What comes late stays hidden, of one never seen before as well.
    let never = new_id();
    assert_eq!(delete(&server, late).await.status, 204);
    assert_eq!(delete(&server, never).await.status, 204);
    send(&server, late, 20..=25).await;
    send(&server, never, 1..=SPANS).await;
    let gone = [in_block, in_both, late, live, never];
    expect_only(&server, &[stays, stays_live], &gone, "late arrivals").await;
    assert_eq!(server.metric("spanhouse_querier_deletions_total").await, Some(5.0));

    // Replayed from the WAL, and then in blocks.
    server.kill();
    let server = setup.start().await;
    expect_only(&server, &[stays, stays_live], &gone, "after kill -9").await;
    server.terminate(Duration::from_secs(30)).await;
    let server = setup.start().await;
    expect_only(&server, &[stays, stays_live], &gone, "in blocks").await;

    let listed = setup.command(&["delete", "ls", "--json"]);
    assert!(listed.status.success(), "{listed:?}");
    let listed: Json = serde_json::from_slice(&listed.stdout).expect("JSON");
    assert_eq!(list(&listed).len(), gone.len());
    assert!(list(&listed).iter().all(|one| one["hidden"] == true && one["by"] == "api"), "{listed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_deletes_beside_a_running_server_which_does_not_by_default() {
    let setup = Setup::new().with("FLUSH_MAX_AGE", "1s");
    let server = setup.start().await;
    let (one, other) = (new_id(), new_id());
    send(&server, one, 1..=SPANS).await;
    send(&server, other, 1..=SPANS).await;
    server.until_flushed(2 * SPANS as usize).await;
    let refused = delete(&server, one).await;
    assert_eq!(refused.status, 403);
    assert!(refused.text().contains("deletion.enabled"), "{}", refused.text());
    expect_only(&server, &[one, other], &[], "refused").await;

    let typo = setup.command(&["delete", "trace", &format!("{one:032x}"), "--tenant", "nobody", "--yes"]);
    assert!(!typo.status.success() && String::from_utf8_lossy(&typo.stderr).contains("no tenant `nobody`"), "{typo:?}");
    let deleted = setup.command(&["delete", "trace", &format!("{one:032x}"), "--reason", "a test"]);
    assert!(deleted.status.success(), "{deleted:?}");
    assert!(String::from_utf8_lossy(&deleted.stdout).contains("5 s"), "{deleted:?}");
    eventually("the trace is gone", async || server.trace_v1(one).await.is_none().then_some(())).await;
    expect_only(&server, &[other], &[one], "by the command").await;
    let listed = String::from_utf8(setup.command(&["delete", "ls"]).stdout).expect("UTF-8");
    assert!(listed.contains("a test") && listed.contains("cli") && listed.contains("1 deletion"), "{listed}");
}
