//! Merging under kill -9, with writers and readers at work: nothing acknowledged is lost, nothing is seen twice, nothing is left.
//!
//! Blocks are made every second and merged three at a time, so that kills meet every step: fetching, merging, each put, the commit,
//! packing, the sweep. A reader checks closed books all the while, so that it reads across the swaps.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use object_store::ObjectStore;
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use spanhouse_common::fail_points;
use spanhouse_common::id::{BlockId, TenantId};
use spanhouse_common::manifest::{BlockEntry, Change, ManifestState, ManifestStore, Manifests};
use spanhouse_common::store::paths::{TenantPaths, block_of};
use spanhouse_common::store::tenants::TenantRegistry;
use spanhouse_common::time::SystemClock;

use crate::crash::{Book, Driver, check, rows_in_blocks};
use crate::harness::otlp::new_id;
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

/// The manifest of a tenant's data, opened beside whoever has it.
pub(crate) async fn manifest(data_dir: &Path, tenant: &TenantId) -> (Arc<dyn ObjectStore>, Arc<ManifestStore>) {
    let url = data_dir.join("blocks").to_string_lossy().into_owned();
    let store = spanhouse_common::store::open(&url, &Default::default()).expect("the store opens");
    let clock = SystemClock::shared();
    let tenants = TenantRegistry::open(Arc::clone(&store), Arc::clone(&clock) as _, 10).await.expect("tenants");
    let manifests = Manifests::new(Arc::clone(&store), clock, tenants);
    let manifest = manifests.for_reading(tenant).await.expect("a manifest").expect("a tenant");
    (store, manifest)
}

/// The manifest's newest state and the blocks that have objects.
async fn stored(data_dir: &Path) -> (Arc<ManifestState>, BTreeSet<BlockId>) {
    let (store, manifest) = manifest(data_dir, &TenantId::single()).await;
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

/// What a store must be after any number of kills. Returns how many of its blocks were merged.
async fn expect_whole(setup: &Setup, server: Server, all: &Book) -> usize {
    check(&server, all).await.expect_clean("after the last kill");
    // The graces pass, the sweeps come: what is there then is what the manifest names.
    let swept = eventually_within(Duration::from_secs(90), "nothing but the manifest's blocks is left", async || {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let (state, objects) = stored(setup.data_dir()).await;
        objects.iter().all(|id| state.blocks.contains_key(id)).then_some(state)
    })
    .await;
    let merged = swept.blocks.values().filter(|block| block.level > 0).count();
    assert!(merged > 0, "no block was ever merged: {} blocks", swept.blocks.len());
    let verdict = check(&server, all).await;
    verdict.expect_clean("at the end");
    server.terminate(Duration::from_secs(35)).await;
    assert_eq!(rows_in_blocks(setup.data_dir()).await, verdict.found as u64, "spans are stored twice");
    setup.said(&["blocks", "verify"]);
    merged
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
    let merged = expect_whole(&setup, server, &all).await;
    println!("{cycles} kills, {} spans acknowledged, {reads} reads, {merged} merged blocks", all.acked_spans());
}

/// Deletes traces nobody sent, until the server goes.
async fn delete_on(client: reqwest::Client, url: String) {
    let url = url.trim_end_matches('/');
    loop {
        let Ok(answer) = Answer::of(client.delete(format!("{url}/api/traces/{:032x}", new_id()))).await else { return };
        assert!(matches!(answer.status, 204 | 503), "{}", answer.text());
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_doubled_by_a_death_at_any_fail_point() {
    let setup = merging_often().with("DELETION_ENABLED", "true");
    let mut random = SmallRng::from_rng(&mut rand::rng());
    let mut all = Book::default();
    let mut reads = 0;
    for name in fail_points::NAMES {
        let nth = random.random_range(1..=2);
        let mut book = Book::default();
        // One that dies before it listens has nothing to be asked.
        if let Some(mut server) = setup.clone().dying_at(name, nth).start_dying().await {
            let driver = Driver::start(&server, false);
            let last = Arc::new(all.clone());
            let reader = read_beside(&server, &last);
            let deleter = tokio::spawn(delete_on(server.client.clone(), server.query_url("")));
            let status = server.process.ended(Duration::from_secs(120)).await;
            assert_eq!(status.signal(), Some(6), "{name}: it ended otherwise: {status}\n{}", server.process.log());
            book = driver.book().await;
            reads += reader.await.unwrap_or_else(|error| panic!("{name}: {error}"));
            deleter.await.unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        let server = setup.start().await;
        check(&server, &book).await.expect_clean(name);
        server.kill();
        all.merge(book);
    }
    let merged = expect_whole(&setup, setup.start().await, &all).await;
    let points = fail_points::NAMES.len();
    println!("{points} points, {} spans acknowledged, {reads} reads, {merged} merged blocks", all.acked_spans());
}

/// The checks above must be able to fail: a swap that forgets its output, and one that keeps its inputs, must be found out.
#[tokio::test(flavor = "multi_thread")]
async fn the_kill_test_sees_a_wrong_swap() {
    // What is replaced stays in the store, so that it can be put back.
    let setup = merging_often().with("COMPACTION_QUERY_GRACE", "1h").with("COMPACTION_SWEEP_GRACE", "1h");
    let server = setup.start().await;
    let driver = Driver::start(&server, false);
    server.until_metric("spanhouse_ingester_flushed_spans_total", |flushed| flushed > 0.0).await;
    let (_, manifest) = manifest(setup.data_dir(), &TenantId::single()).await;
    let mut seen = BTreeMap::new();
    // Blocks are noted before they are merged; one merge of three that were is enough.
    let is_noted = |seen: &BTreeMap<BlockId, Arc<BlockEntry>>, entry: &BlockEntry| {
        entry.level > 0 && entry.replaces.iter().all(|id| seen.contains_key(id))
    };
    let output = eventually_within(Duration::from_secs(60), "a merge of noted blocks", async || {
        let state = manifest.refresh().await.expect("a version");
        let output = state.blocks.values().find(|entry| is_noted(&seen, entry)).cloned();
        seen.extend(state.blocks.iter().map(|(id, entry)| (*id, Arc::clone(entry))));
        output
    })
    .await;
    let book = driver.book().await;
    server.terminate(Duration::from_secs(35)).await;
    let setup = setup.with("COMPACTION_ENABLED", "false");
    let expected = rows_in_blocks(setup.data_dir()).await;
    let newest = manifest.refresh().await.expect("a version");
    let now = newest.blocks.values().find(|entry| entry.id == output.id || entry.replaces.contains(&output.id));
    let now = Arc::clone(now.expect("the output or what replaced it"));

    let forgotten = Change { remove: vec![now.id], ..Change::default() };
    manifest.commit(forgotten).await.expect("a version");
    let server = setup.start().await;
    assert!(!check(&server, &book).await.lost.is_empty(), "a merged block is gone and nobody missed it");
    server.terminate(Duration::from_secs(35)).await;

    let input = BlockEntry::clone(&seen[&output.replaces[0]]);
    manifest.commit(Change { add: vec![BlockEntry::clone(&now), input], ..Change::default() }).await.expect("a version");
    let server = setup.start().await;
    let verdict = check(&server, &book).await;
    verdict.expect_clean("a block beside its copy");
    server.terminate(Duration::from_secs(35)).await;
    assert_eq!(verdict.found as u64, expected, "the data is another");
    assert!(rows_in_blocks(setup.data_dir()).await > expected, "spans are stored twice and nobody counted");
    let verified = setup.command(&["blocks", "verify"]);
    assert!(!verified.status.success(), "two blocks with the same spans are no finding: {verified:?}");
    let finding = format!("it was made of block {}, which is there too", output.replaces[0]);
    assert!(String::from_utf8_lossy(&verified.stdout).contains(&finding), "{verified:?}");
}
