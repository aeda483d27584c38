//! The archive: a tenant of its own, which outlives kills, merges and the retention of the tenant that its traces come from.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use spanhouse_common::id::TenantId;
use spanhouse_common::manifest::{BlockEntry, Change};
use spanhouse_common::time::UnixNanos;
use spanhouse_proto::jaeger_storage_v2::TraceQueryParameters;
use tonic::Code;

use super::clients::{Jaeger, by_trace, jaeger_span};
use super::setup;
use crate::compaction::manifest;
use crate::harness::eventually_within;
use crate::harness::otlp::{new_id, of_service, span};

const SHOWN: usize = 5;
const ALONE: usize = 3;

/// Traces that were archived.
#[derive(Default)]
struct Archived {
    /// By request, so that the tenant has them too.
    shown: Vec<u128>,
    /// Written into the archive and nowhere else.
    alone: Vec<u128>,
}

impl Archived {
    /// The archive has all of them, and reads by id fall back to it. A search finds what the tenant has: the ones shown while they are
    /// young, never the others.
    async fn check(&self, jaeger: &Jaeger, is_young: bool, when: &str) {
        let shown = self.shown.iter().map(|id| (*id, SHOWN));
        for (id, spans) in shown.chain(self.alone.iter().map(|id| (*id, ALONE))) {
            let whole = BTreeMap::from([(id, spans)]);
            assert_eq!(jaeger.archived_v1(id).await, whole, "{id:032x} in the archive, {when}");
            assert_eq!(jaeger.trace_http(id).await, whole, "{id:032x} by HTTP, {when}");
            assert_eq!(jaeger.trace_v1(id).await, whole, "{id:032x} by storage v1, {when}");
            let spans_v2 = by_trace(&jaeger.traces(&[id]).await).remove(&id).map_or(0, |spans| spans.len());
            assert_eq!(spans_v2, spans, "{id:032x} by storage v2, {when}");
        }
        let query = TraceQueryParameters { service_name: "shop".into(), search_depth: 100, ..Default::default() };
        let found: BTreeSet<u128> = by_trace(&jaeger.find_v2(query).await).into_keys().collect();
        let expected = if is_young { self.shown.iter().copied().collect() } else { BTreeSet::new() };
        assert_eq!(found, expected, "found in the tenant, {when}");
    }
}

fn tenant(name: &str) -> TenantId {
    name.parse().expect("a tenant")
}

/// The blocks of a tenant as its manifest has them.
async fn blocks(data_dir: &Path, tenant: &TenantId) -> Vec<BlockEntry> {
    let (_, manifest) = manifest(data_dir, tenant).await;
    let state = manifest.refresh().await.expect("a version");
    state.blocks.values().map(|entry| BlockEntry::clone(entry)).collect()
}

/// Makes the blocks of a tenant as old as if two hours had passed. Nobody else may have the data open.
async fn age(data_dir: &Path, tenant: &TenantId) {
    let (_, manifest) = manifest(data_dir, tenant).await;
    let old = |time: UnixNanos| time.saturating_sub(Duration::from_secs(7200));
    for entry in blocks(data_dir, tenant).await {
        manifest.commit(Change { remove: vec![entry.id], ..Change::default() }).await.expect("a version");
        let aged = BlockEntry { max_start: old(entry.max_start), received_max: old(entry.received_max), ..entry };
        manifest.commit(Change { add: vec![aged], ..Change::default() }).await.expect("a version");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn archived_traces_outlive_kills_merges_and_the_retention_of_their_tenant() {
    let (from, archive) = (TenantId::single(), tenant("single-tenant-archive"));
    let setup = setup().flushing_often();
    let overrides = setup.home().join("overrides.yaml");
    let text = format!("overrides: {{{from}: {{retention: 1h}}, {archive}: {{retention: 720h}}}}\n");
    std::fs::write(&overrides, text).expect("written");
    let setup = setup
        .with("JAEGER_ARCHIVE", "-archive")
        .with("INGEST_OVERRIDES_FILE", &overrides.to_string_lossy())
        .with("COMPACTION_INTERVAL", "1s")
        .with("COMPACTION_FAN_IN", "3")
        .with("COMPACTION_QUERY_GRACE", "3s")
        .with("COMPACTION_SWEEP_GRACE", "20s")
        .with("COMPACTION_SWEEP_INTERVAL", "1s");

    let mut archived = Archived::default();
    let mut server = setup.start().await;
    for round in 0..3 {
        let jaeger = Jaeger::of(&server).await;
        let (shown, alone) = (new_id(), new_id());
        jaeger.export(vec![of_service("shop", (1..=SHOWN as u64).map(|n| span(shown, n)).collect())]).await;
        assert_eq!(jaeger.archive(shown).await, 200);
        for n in 1..=ALONE as u64 {
            jaeger.write_archive_v1(jaeger_span(alone, n)).await;
        }
        archived.shown.push(shown);
        archived.alone.push(alone);
        archived.check(&jaeger, true, &format!("round {round}, before the kill")).await;
        server.process.kill();
        drop(server);
        server = setup.start().await;
        archived.check(&Jaeger::of(&server).await, true, &format!("round {round}, after the kill")).await;
        // Replayed spans become a block of their own, so that there is something to merge.
        let covered = |blocks: &[BlockEntry]| blocks.iter().map(|block| block.rows).sum::<u64>();
        let all = ((round + 1) * (SHOWN + ALONE)) as u64;
        eventually_within(Duration::from_secs(60), "blocks of the archive", async || {
            (covered(&blocks(setup.data_dir(), &archive).await) == all).then_some(())
        })
        .await;
    }
    eventually_within(Duration::from_secs(60), "a merge in the archive", async || {
        blocks(setup.data_dir(), &archive).await.iter().any(|block| block.level > 0).then_some(())
    })
    .await;
    archived.check(&Jaeger::of(&server).await, true, "merged").await;

    server.terminate(Duration::from_secs(35)).await;
    age(setup.data_dir(), &from).await;
    age(setup.data_dir(), &archive).await;
    let server = setup.start().await;
    eventually_within(Duration::from_secs(60), "the end of what is past retention", async || {
        blocks(setup.data_dir(), &from).await.is_empty().then_some(())
    })
    .await;
    archived.check(&Jaeger::of(&server).await, false, "past the retention of the tenant").await;
    let listed = setup.said(&["tenants", "--tenant", archive.as_str(), "--json"]);
    let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
    assert_eq!((&listed[0]["spans"], &listed[0]["retention_seconds"]), (&24.into(), &(720 * 3600).into()), "{listed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_setting_there_is_no_archive() {
    let server = setup().expecting("archive span storage was not configured").start().await;
    let jaeger = Jaeger::of(&server).await;
    let id = new_id();
    jaeger.export(vec![of_service("shop", vec![span(id, 1)])]).await;
    assert_eq!(jaeger.archive(id).await, 500);
    assert_eq!(jaeger.archived_v1_code(id).await, Code::Unimplemented);
}
