//! Blocks on a real S3 server: written, merged, swept and read there, through kills of ours, with nothing kept locally but the WAL.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::SmallRng};
use serde_json::Value as Json;
use spanhouse_proto::otlp_common::any_value::Value;
use tempfile::TempDir;

use crate::crash::{Book, Driver, check};
use crate::harness::otlp::{attribute, new_id, request, span};
use crate::harness::server::Setup;
use crate::harness::{eventually_within, tools};

const BUCKET: &str = "spans";

/// SeaweedFS with one bucket, until dropped.
struct Seaweed {
    child: Child,
    url: String,
    _dir: TempDir,
}

impl Drop for Seaweed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Seaweed {
    async fn start(weed: &std::path::Path) -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        // All held until all are chosen, so that no two are the same.
        let held: Vec<TcpListener> = (0..8).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
        let ports: Vec<u16> = held.iter().map(|held| held.local_addr().expect("an address").port()).collect();
        drop(held);
        let names = ["master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc"];
        let mut command = Command::new(weed);
        command.args(["server", "-filer", "-s3", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-volume.max=50"]);
        command.args(["-master.volumeSizeLimitMB=64", "-metricsPort=0"]).arg(format!("-dir={}", dir.path().display()));
        for (name, port) in names.into_iter().chain(["s3.port", "s3.port.grpc"]).zip(&ports) {
            command.arg(format!("-{name}={port}"));
        }
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("weed starts");
        let seaweed = Self { child, url: format!("http://127.0.0.1:{}", ports[6]), _dir: dir };
        let client = reqwest::Client::new();
        eventually_within(Duration::from_secs(60), "a bucket", async || {
            let made = client.put(format!("{}/{BUCKET}", seaweed.url)).send().await.ok()?;
            made.status().is_success().then_some(())
        })
        .await;
        seaweed
    }

    fn setup(&self) -> Setup {
        Setup::new()
            .with("STORAGE_URL", &format!("s3://{BUCKET}/traces"))
            .with("STORAGE_OPTIONS_AWS_ENDPOINT", &self.url)
            .with("STORAGE_OPTIONS_AWS_ALLOW_HTTP", "true")
            .with("STORAGE_OPTIONS_AWS_REGION", "us-east-1")
            .with("STORAGE_OPTIONS_AWS_SKIP_SIGNATURE", "true")
    }
}

/// Spans that make a merged block larger than one put, whatever compresses them.
async fn send_large(server: &crate::harness::server::Server, book: &mut Book, random: &mut SmallRng) {
    for _ in 0..8 {
        let id = new_id();
        let numbers: Vec<u64> = (1..=6).collect();
        for n in &numbers {
            let mut span = span(id, *n);
            let noise: String = (0..250_000).map(|_| char::from(random.random_range(b'!'..=b'~'))).collect();
            span.attributes.push(attribute("noise", Value::StringValue(noise)));
            server.send(&request(vec![span])).await;
        }
        book.sent.entry(id).or_default().extend(&numbers);
        book.acked.entry(id).or_default().extend(&numbers);
    }
}

fn blocks(setup: &Setup) -> Vec<Json> {
    let listed = setup.said(&["blocks", "ls", "--json"]);
    let listed: Json = serde_json::from_str(&listed).expect("JSON");
    listed[0]["blocks"].as_array().expect("blocks").clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_are_merged_on_an_s3_server_through_kills() {
    let weed = match tools::weed() {
        Ok(weed) => weed,
        Err(why) => return tools::not_run("blocks_are_merged_on_an_s3_server_through_kills", &why),
    };
    let seaweed = Seaweed::start(&weed).await;
    let setup = seaweed
        .setup()
        .flushing_often()
        .with("COMPACTION_INTERVAL", "1s")
        .with("COMPACTION_FAN_IN", "3")
        .with("COMPACTION_QUERY_GRACE", "3s")
        .with("COMPACTION_SWEEP_GRACE", "20s")
        .with("COMPACTION_SWEEP_INTERVAL", "1s");
    let mut random = SmallRng::from_rng(&mut rand::rng());
    let mut all = Book::default();
    let mut server = setup.start().await;
    for cycle in 0..5 {
        let driver = Driver::start(&server, false);
        send_large(&server, &mut all, &mut random).await;
        tokio::time::sleep(Duration::from_millis(random.random_range(500..=3000))).await;
        server.kill();
        let book = driver.book().await;
        server = setup.start().await;
        check(&server, &book).await.expect_clean(&format!("cycle {cycle}"));
        all.merge(book);
    }
    // Nothing kills it now: merges come to be larger than one put.
    eventually_within(Duration::from_secs(120), "a merged block that was put in parts", async || {
        send_large(&server, &mut all, &mut random).await;
        let largest = blocks(&setup).into_iter().filter(|block| block["level"].as_u64() > Some(0));
        let largest = largest.filter_map(|block| block["size_bytes"].as_u64()).max();
        (largest > Some(8 << 20)).then_some(())
    })
    .await;
    server.until_metric("spanhouse_compactor_swept_objects_total", |swept| swept > 0.0).await;
    let verdict = check(&server, &all).await;
    verdict.expect_clean("before the end");
    server.terminate(Duration::from_secs(35)).await;
    let rows: u64 = blocks(&setup).iter().filter_map(|block| block["rows"].as_u64()).sum();
    assert_eq!(rows, verdict.found as u64, "spans are stored twice");
    assert!(!setup.data_dir().join("blocks").exists(), "blocks are on the local disk");
    setup.said(&["blocks", "verify"]);
}
