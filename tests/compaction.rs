//! Merging under kill -9, with writers and readers at work: nothing acknowledged is lost, nothing is seen twice, nothing is left.
//!
//! Blocks are made every second and merged three at a time, so that kills meet every step: fetching, merging, each put, the commit,
//! packing, the sweep. A reader checks closed books all the while, so that it reads across the swaps.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use spanhouse_common::id::{BlockId, TenantId};
use spanhouse_common::manifest::{ManifestState, Manifests};
use spanhouse_common::store::paths::{TenantPaths, block_of};
use spanhouse_common::store::tenants::TenantRegistry;
use spanhouse_common::time::SystemClock;

use crate::crash::{Book, Driver, check, rows_in_blocks};
use crate::harness::query::{spans, v2};
use crate::harness::server::{Answer, Server, Setup};
use crate::harness::{eventually_within, times};

fn merging_often() -> Setup {
    Setup::new()
        .flushing_often()
        .with("COMPACTION_INTERVAL", "1s")
        .with("COMPACTION_FAN_IN", "3")
        .with("COMPACTION_QUERY_GRACE", "3s")
        .with("COMPACTION_SWEEP_GRACE", "20s")
        .with("COMPACTION_SWEEP_INTERVAL", "1s")
}

/// The manifest's newest state and the blocks that have objects.
async fn stored(data_dir: &Path) -> (Arc<ManifestState>, BTreeSet<BlockId>) {
    let url = data_dir.join("blocks").to_string_lossy().into_owned();
    let store = spanhouse_common::store::open(&url, &Default::default()).expect("the store opens");
    let clock = SystemClock::shared();
    let tenants = TenantRegistry::open(Arc::clone(&store), Arc::clone(&clock) as _, 10).await.expect("tenants");
    let manifests = Manifests::new(Arc::clone(&store), clock, tenants);
    let manifest = manifests.for_reading(&TenantId::single()).await.expect("a manifest").expect("a tenant");
    let prefix = TenantPaths::new(&TenantId::single()).blocks();
    let listed: Vec<_> = store.list(Some(&prefix)).try_collect().await.expect("a listing");
    let ids = listed.iter().filter_map(|meta| block_of(&meta.location)).map(|(id, _)| id).collect();
    (manifest.refresh().await.expect("a version"), ids)
}

/// Reads traces of a closed book until the server goes. Every answer must have exactly the acknowledged spans, or more that were sent.
async fn read_on(client: reqwest::Client, url: String, book: Arc<Book>) -> u64 {
    let mut reads = 0;
    while !book.sent.is_empty() {
        for (trace, sent) in &book.sent {
            let request = client.get(format!("{url}/api/v2/traces/{trace:032x}")).header("Accept", "application/protobuf");
            let Ok(answer) = Answer::of(request).await else { return reads };
            let acked = book.acked.get(trace).cloned().unwrap_or_default();
            assert_eq!(answer.status, 200, "{trace:032x}: {}", answer.text());
            let found = v2(&answer);
            let ids: Vec<u64> =
                spans(&found).map(|span| u64::from_be_bytes(span.span_id.as_slice().try_into().expect("8 bytes"))).collect();
            let found: BTreeSet<u64> = ids.iter().copied().collect();
            assert_eq!(found.len(), ids.len(), "{trace:032x} has a span twice");
            assert!(acked.is_subset(&found), "{trace:032x} lost {:?}", acked.difference(&found));
            assert!(found.is_subset(sent), "{trace:032x} has spans nobody sent");
            reads += 1;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    reads
}

fn read_beside(server: &Server, book: &Arc<Book>) -> tokio::task::JoinHandle<u64> {
    let url = server.query_url("");
    tokio::spawn(read_on(server.client.clone(), url.trim_end_matches('/').to_owned(), Arc::clone(book)))
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_doubled_by_kill_9_while_blocks_merge() {
    let cycles = times("SPANHOUSE_COMPACTION_KILLS", 30);
    let setup = merging_often();
    let mut random = SmallRng::from_rng(&mut rand::rng());
    let (mut all, mut last) = (Book::default(), Arc::new(Book::default()));
    let mut reads = 0;
    let mut server = setup.start().await;
    for cycle in 0..cycles {
        let driver = Driver::start(&server, false);
        let reader = read_beside(&server, &last);
        tokio::time::sleep(Duration::from_millis(random.random_range(100..=2500))).await;
        server.kill();
        let book = driver.book().await;
        reads += reader.await.unwrap_or_else(|error| panic!("cycle {cycle}: {error}"));
        server = setup.start().await;
        check(&server, &book).await.expect_clean(&format!("cycle {cycle}"));
        last = Arc::new(book.clone());
        all.merge(book);
    }
    assert!(all.acked_spans() > cycles * 50, "the driver sent next to nothing: {} spans", all.acked_spans());
    check(&server, &all).await.expect_clean("after the last kill");
    // The graces pass, the sweeps come: what is there then is what the manifest names.
    let swept = eventually_within(Duration::from_secs(90), "nothing but the manifest's blocks is left", async || {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let (state, objects) = stored(setup.data_dir()).await;
        objects.iter().all(|id| state.blocks.contains_key(id)).then_some(state)
    })
    .await;
    let merged = swept.blocks.values().filter(|block| block.level > 0).count();
    assert!(merged > 0, "no block was ever merged: {} blocks", swept.blocks.len());
    let verdict = check(&server, &all).await;
    verdict.expect_clean("at the end");
    server.terminate(Duration::from_secs(35)).await;
    assert_eq!(rows_in_blocks(setup.data_dir()).await, verdict.found as u64, "spans are stored twice");
    setup.said(&["blocks", "verify"]);
    println!("{cycles} kills, {} spans acknowledged, {reads} reads, {merged} merged blocks", all.acked_spans());
}
