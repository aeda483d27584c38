//! What is damaged on the disk is left out, and every answer says that something is missing.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use parquet::file::metadata::ParquetMetaDataReader;
use serde_json::Value as Json;
use spanhouse_proto::tempopb;

use super::shop::{SECOND, Shop};
use super::stream::{collect, dial};
use crate::harness::ask::{PARTIAL, ids, list, number, sum};
use crate::harness::server::{Server, Setup};

/// All files of spans in a store, oldest first.
pub(super) fn blocks(setup: &Setup) -> Vec<PathBuf> {
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

/// Changes bytes in all pages of the columns that are chosen; what tells where they are stays.
pub(super) fn damage_pages(bytes: &mut [u8], chosen: impl Fn(&str) -> bool) {
    let metadata = ParquetMetaDataReader::new().parse_and_finish(&Bytes::copy_from_slice(bytes)).expect("a Parquet file");
    let mut damaged = 0;
    for column in metadata.row_groups().iter().flat_map(|group| group.columns()) {
        if chosen(&column.column_path().string()) {
            let (from, len) = column.byte_range();
            bytes[from as usize..(from + len) as usize].iter_mut().step_by(20).for_each(|byte| *byte ^= 0x5a);
            damaged += 1;
        }
    }
    assert!(damaged > 0, "no column was chosen");
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
    if !is_metrics {
        assert_eq!(number(&jobs["completedJobs"]) < number(&jobs["totalJobs"]), partial, "{what}: {jobs}");
    } else {
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
    for query in
        ["{ name != `` }", "{ status = error }", "{ span.user.id != nil }", "{} | count() > 1", "{} >> { kind = client }"]
    {
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

/// Damages the older block and asks; returns what `ask` returns.
async fn ask_damaged(setup: &Setup, shops: &[Shop; 2], damage: impl FnOnce(&mut Vec<u8>)) -> (usize, usize) {
    let block = blocks(setup).remove(0);
    let whole = std::fs::read(&block).expect("a block");
    let mut bytes = whole.clone();
    damage(&mut bytes);
    std::fs::write(&block, bytes).expect("the damage is done");
    let server = setup.clone().expecting("damaged").start().await;
    let cold = ask(&server, shops).await;
    let warm = ask(&server, shops).await;
    assert_eq!(cold, warm, "damage that is known already");
    // What is whole is answered whole.
    let (id, spans) = &shops[1].traces[3];
    let answer = server.get_with(&format!("/api/v2/traces/{id:032x}"), &[("accept", "application/json")]).await;
    assert_eq!((answer.status, answer.text().matches("parentSpanId").count()), (200, spans.len() - 1), "{}", answer.text());
    server.kill();
    std::fs::write(&block, &whole).expect("the block is repaired");
    cold
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_told_and_the_rest_is_answered() {
    let (setup, shops) = two_blocks().await;
    let server = setup.start().await;
    assert_eq!(ask(&server, &shops).await.0, 0, "nothing is damaged");
    server.kill();
    // Names are in every answer of a search, and in groups of one metric.
    let (said, _) = ask_damaged(&setup, &shops, |bytes| damage_pages(bytes, |column| column == "name")).await;
    assert!(said >= 9, "{said} answers tell that names are damaged");
    let (said, asked) = ask_damaged(&setup, &shops, |bytes| damage_footer(bytes)).await;
    assert_eq!(said, asked, "answers that tell of a damaged footer");
    let server = setup.start().await;
    assert_eq!(ask(&server, &shops).await.0, 0, "all is repaired");
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_of_trace_ids_is_told_and_the_rest_is_answered() {
    let (setup, shops) = two_blocks().await;
    let (said, asked) = ask_damaged(&setup, &shops, |bytes| damage_pages(bytes, |column| column == "trace_id")).await;
    assert_eq!(said, asked);
    let (said, asked) = ask_damaged(&setup, &shops, |bytes| damage_pages(bytes, |_| true)).await;
    assert_eq!(said, asked);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_file_is_told_and_the_rest_is_answered() {
    let (setup, shops) = two_blocks().await;
    let (said, asked) = ask_damaged(&setup, &shops, |bytes| bytes.truncate(bytes.len() / 3)).await;
    assert_eq!(said, asked);
}
