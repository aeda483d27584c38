//! What is damaged on the disk is left out, and every answer says that something is missing.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value as Json;
use spanhouse_proto::tempopb;

use super::shop::{SECOND, Shop};
use super::stream::{collect, dial};
use crate::harness::ask::{PARTIAL, ids, list, number, path, sum};
use crate::harness::server::{Server, Setup};

/// All files of spans in a store, oldest first.
fn blocks(setup: &Setup) -> Vec<PathBuf> {
    let (mut files, mut dirs) = (Vec::new(), vec![setup.data_dir().join("blocks")]);
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|name| name == "parquet") {
                files.push(path);
            }
        }
    }
    // Names are ids that ascend with time.
    files.sort_by_key(|path| path.file_name().map(ToOwned::to_owned));
    files
}

/// Changes a byte in a hundred of the pages; what tells where they are stays.
fn damage_pages(bytes: &mut [u8]) {
    let footer = u32::from_le_bytes(bytes[bytes.len() - 8..bytes.len() - 4].try_into().expect("four bytes")) as usize;
    let pages = (bytes.len() - 8 - footer) / 2;
    bytes[4..pages].iter_mut().step_by(100).for_each(|byte| *byte ^= 0x5a);
}

fn damage_footer(bytes: &mut [u8]) {
    let end = bytes.len() - 8;
    let footer = u32::from_le_bytes(bytes[end..end + 4].try_into().expect("four bytes")) as usize;
    bytes[end - footer..end].iter_mut().step_by(7).for_each(|byte| *byte ^= 0x5a);
}

/// Two blocks with the traces of one shop each.
async fn two_blocks() -> (Setup, [Shop; 2]) {
    let setup = Setup::new().with("FLUSH_MAX_AGE", "1h");
    let shops = [Shop::new(), Shop::new()];
    for shop in &shops {
        let server = setup.start().await;
        shop.send_all(&server).await;
        server.terminate(Duration::from_secs(30)).await;
    }
    assert_eq!(blocks(&setup).len(), 2);
    (setup, shops)
}

/// Whether an answer says that it is not complete, in each way it can.
fn says_partial(answer: &crate::harness::server::Answer, is_metrics: bool, what: &str) -> bool {
    assert_eq!(answer.status, 200, "{what}: {}", answer.text());
    let json: Json = serde_json::from_slice(&answer.body).expect("JSON");
    let jobs = &json["metrics"];
    let partial = answer.header(PARTIAL).is_some();
    assert_eq!(number(&jobs["completedJobs"]) < number(&jobs["totalJobs"]), partial, "{what}: {jobs}");
    if is_metrics {
        assert_eq!(json["status"] == "PARTIAL", partial, "{what}: {json}");
        assert_eq!(json["message"].as_str(), answer.header(PARTIAL), "{what}");
    }
    partial
}

/// Asks everything; returns how many answers said that they are partial, and how many there were.
async fn ask(server: &Server, shops: &[Shop; 2]) -> (usize, usize) {
    let (start, end) = (shops[0].range().0, shops[1].range().1);
    let (from, to) = (start.to_string(), end.to_string());
    let range = [("start", &*from), ("end", &*to), ("limit", "1000"), ("step", "10s")];
    let mut said = Vec::new();
    let all = (shops[0].spans() + shops[1].spans()) as f64;
    for query in ["{ name != `` }", "{ status = error }", "{ span.user.id != nil }", "{} | count() > 1", "{} >> { kind = client }"] {
        let answer = server.ask("/api/search", &[&range[..3], &[("q", query)]].concat()).await;
        let partial = says_partial(&answer, false, query);
        said.push(partial);
        // The healthy block is answered whole.
        let json: Json = serde_json::from_slice(&answer.body).expect("JSON");
        let found = ids(list(&json["traces"]));
        let failing = |n: usize| query != "{ status = error }" || super::shop::fails(n);
        assert!(shops[1].newest(failing).iter().all(|id| found.contains(id)), "{query}");
        let missing = shops[0].newest(failing).iter().filter(|id| !found.contains(id)).count();
        assert!(partial || missing == 0, "{missing} traces are missing and the answer does not say so: {query}");
    }
    for query in ["{} | count_over_time() by (name)", "{} | avg_over_time(duration)", "{ span.user.id != nil } | rate()"] {
        for endpoint in ["query_range", "query"] {
            let answer = server.ask(&format!("/api/metrics/{endpoint}"), &[&range[..], &[("q", query)]].concat()).await;
            let partial = says_partial(&answer, true, query);
            said.push(partial);
            if (endpoint, query) == ("query_range", "{} | count_over_time() by (name)") {
                let json: Json = serde_json::from_slice(&answer.body).expect("JSON");
                let counted = sum(list(&json["series"]));
                assert!(counted == all || (partial && counted >= all / 2.0 && counted < all), "{counted} of {all}");
            }
        }
    }
    let tags = server.ask("/api/search", &[&range[..3], &[("tags", "user.id=u1")]].concat()).await;
    said.push(says_partial(&tags, false, "tags"));
    // Over gRPC it is a trailer, and jobs that are not done.
    let request = tempopb::SearchRequest {
        query: "{ name != `` }".into(),
        limit: 1000,
        start: start as u32,
        end: end as u32,
        ..Default::default()
    };
    let stream = dial(server.ports.query).await.search(request).await.expect("a stream").into_inner();
    let (messages, trailer) = collect(stream).await;
    let metrics = messages.last().and_then(|message| message.metrics.clone()).expect("metrics");
    assert_eq!(metrics.completed_jobs < metrics.total_jobs, trailer.is_some(), "{metrics:?} {trailer:?}");
    said.push(trailer.is_some());
    let request = tempopb::QueryRangeRequest {
        query: "{} | count_over_time() by (name)".into(),
        start: start * SECOND,
        end: end * SECOND,
        ..Default::default()
    };
    let stream = dial(server.ports.query).await.metrics_query_range(request).await.expect("a stream").into_inner();
    let (messages, trailer) = collect(stream).await;
    assert_eq!(messages.last().map(|message| message.status), Some(i32::from(trailer.is_some())));
    said.push(trailer.is_some());
    (said.iter().filter(|partial| **partial).count(), said.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_told_and_the_rest_is_answered() {
    let (setup, shops) = two_blocks().await;
    let server = setup.start().await;
    let (said, _) = ask(&server, &shops).await;
    assert_eq!(said, 0, "nothing is damaged");
    server.terminate(Duration::from_secs(30)).await;

    let block = blocks(&setup).remove(0);
    let whole = std::fs::read(&block).expect("a block");
    let setup = setup.expecting("damaged");
    for (what, damage) in
        [("pages", damage_pages as fn(&mut [u8])), ("the footer", damage_footer)]
    {
        let mut bytes = whole.clone();
        damage(&mut bytes);
        std::fs::write(&block, bytes).expect("the damage is done");
        let server = setup.start().await;
        for _ in ["cold", "warm"] {
            let (said, asked) = ask(&server, &shops).await;
            assert_eq!(said, asked, "answers that tell of the damage of {what}");
        }
        // Trace by id says so too, and what is whole is answered whole.
        let (id, spans) = &shops[1].traces[3];
        let answer = server.get_with(&path(&format!("/api/v2/traces/{id:032x}"), &[]), &[("accept", "application/json")]).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(answer.text().matches("spanId").count() >= spans.len());
        assert_eq!(server.get("/api/echo").await.status, 200);
        server.kill();
    }
    // A file that is cut off, and one that is gone.
    std::fs::write(&block, &whole[..whole.len() / 3]).expect("the damage is done");
    let server = setup.clone().expecting("query failed").start().await;
    let (said, asked) = ask(&server, &shops).await;
    assert_eq!(said, asked, "a short file");
    server.kill();
    std::fs::write(&block, &whole).expect("the block is repaired");
    let server = setup.start().await;
    assert_eq!(ask(&server, &shops).await.0, 0);
}
