//! `blocks rebuild-manifest`: a lost or damaged manifest made again from the blocks that can be read.
//!
//! Owns finding and reading the blocks, and making lost filters again. Does not own which blocks come back
//! ([`spanhouse_common::manifest::rebuild`]). Deletes nothing. Packs of filters do not come back: the compactor packs anew, and
//! sweeps the old ones.
//!
//! Crash story: filters are put first, the manifest version last and in one write. A kill before it leaves the old manifest.

use std::io::Write;
use std::sync::Arc;

use anyhow::{Context, ensure};
use bytes::Bytes;
use futures::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use serde::Serialize;
use spanhouse_common::block::TraceIdFilter;
use spanhouse_common::deletion::recorded_tombstones;
use spanhouse_common::fs::DataDirLock;
use spanhouse_common::id::{BlockId, TenantId};
use spanhouse_common::manifest::{BlockEntry, rebuild, write_rebuilt};
use spanhouse_common::store::paths::block_of;
use spanhouse_common::store::{BlockObject, TenantPaths};

use super::check::{self, Checked, Findings};
use super::{BlocksDeps, catalog};

#[derive(Debug, Serialize)]
struct Unreadable {
    block: BlockId,
    why: String,
}

/// What became of one tenant.
#[derive(Debug, Serialize)]
struct Report {
    tenant: TenantId,
    /// `None`: the tenant has neither blocks nor a manifest.
    manifest_version: Option<u64>,
    blocks: usize,
    spans: u64,
    superseded: Vec<BlockId>,
    /// Pairs that came back and may hold the same spans.
    doubtful: Vec<(BlockId, BlockId)>,
    unreadable: Vec<Unreadable>,
    /// Blocks that came back although not all they say of themselves is true.
    damaged: Vec<Unreadable>,
    filters_made: Vec<BlockId>,
    /// Traces that stay deleted, by the records of deletions.
    deleted_traces: usize,
}

/// Whether every block could be read and is sound.
pub(super) async fn run(
    deps: &BlocksDeps,
    tenant: Option<&TenantId>,
    json: bool,
    out: &mut impl Write,
) -> anyhow::Result<bool> {
    let _lock = DataDirLock::acquire(&deps.data_dir)
        .context("rebuilding a manifest needs all writers stopped, as it would forget what they are about to commit")?;
    if deps.store_url.contains("://") && !deps.store_url.starts_with("file://") {
        eprintln!(
            "warning: {} may have writers on other machines, which this one cannot see: make sure that every ingester and \
             compactor is stopped",
            deps.store_url
        );
    }
    let mut reports = Vec::new();
    for tenant in catalog::tenants(deps, tenant).await? {
        if let Ok(blocks) = catalog::blocks_of(deps, &tenant).await
            && blocks.damage.is_none()
            && blocks.state.version > 0
        {
            eprintln!(
                "warning: the manifest of tenant {tenant} is whole (version {}); blocks that it retired come back if their \
                 objects are still there",
                blocks.state.version
            );
        }
        reports.push(of_tenant(deps, &tenant).await.with_context(|| format!("rebuilding the manifest of tenant {tenant}"))?);
    }
    if json {
        serde_json::to_writer_pretty(&mut *out, &reports)?;
        writeln!(out)?;
    } else {
        reports.iter().try_for_each(|report| print(report, out))?;
    }
    Ok(reports.iter().all(|report| report.unreadable.is_empty() && report.damaged.is_empty()))
}

fn print(report: &Report, out: &mut impl Write) -> std::io::Result<()> {
    let Report { tenant, blocks, spans, .. } = report;
    match report.manifest_version {
        None => writeln!(out, "tenant {tenant}: no blocks, nothing to do")?,
        Some(version) => writeln!(out, "tenant {tenant}: manifest version {version} names {blocks} blocks, {spans} spans")?,
    }
    for id in &report.superseded {
        writeln!(out, "  left out: block {id}, which another readable block replaces")?;
    }
    for Unreadable { block, why } in &report.unreadable {
        writeln!(out, "  skipped: block {block} cannot be read: {why}")?;
    }
    for Unreadable { block, why } in &report.damaged {
        writeln!(out, "  damaged: block {block} is back, but {why}")?;
    }
    for id in &report.filters_made {
        writeln!(out, "  made again: the trace-id filter of block {id}")?;
    }
    if report.deleted_traces > 0 {
        writeln!(out, "  deleted: {} traces stay deleted, by the records of deletions", report.deleted_traces)?;
    }
    for (a, b) in &report.doubtful {
        writeln!(out, "  perhaps the same spans twice: blocks {a} and {b}")?;
    }
    Ok(())
}

async fn of_tenant(deps: &BlocksDeps, tenant: &TenantId) -> anyhow::Result<Report> {
    let store = Arc::clone(deps.manifests.store());
    let paths = TenantPaths::new(tenant);
    let objects: Vec<_> = store.list(Some(&paths.blocks())).try_collect().await.context("listing the blocks")?;
    let spans = objects.iter().filter_map(|object| match block_of(&object.location)? {
        (id, BlockObject::Spans) => Some((id, object.size)),
        (_, BlockObject::Filter) => None,
    });
    let spans: Vec<(BlockId, u64)> = spans.collect();
    let mut report = Report {
        tenant: tenant.clone(),
        manifest_version: None,
        blocks: 0,
        spans: 0,
        superseded: Vec::new(),
        doubtful: Vec::new(),
        unreadable: Vec::new(),
        damaged: Vec::new(),
        filters_made: Vec::new(),
        deleted_traces: 0,
    };
    let bar = catalog::progress(&format!("read {tenant}"), spans.iter().map(|(_, size)| size).sum());
    let mut readable: Vec<(BlockEntry, Option<Bytes>)> = Vec::new();
    for (id, size) in spans {
        match read(store.as_ref(), &paths, tenant, id).await {
            Ok((entry, filter, findings)) => {
                readable.push((entry, filter));
                if !findings.is_empty() {
                    report.damaged.push(Unreadable { block: id, why: findings.join("; ") });
                }
            }
            Err(error) => report.unreadable.push(Unreadable { block: id, why: format!("{error:#}") }),
        }
        bar.inc(size);
    }
    bar.finish_and_clear();
    if objects.is_empty() && store.list(Some(&paths.versions())).try_next().await?.is_none() {
        return Ok(report);
    }
    let mut rebuilt = rebuild(readable.iter().map(|(entry, _)| entry.clone()));
    // Also of attempts that did not complete: whoever made them wanted the trace gone.
    let tombstones = recorded_tombstones(store.as_ref(), tenant).await.context("listing the records of deletions")?;
    report.deleted_traces = tombstones.len();
    rebuilt.state.tombstones = Arc::new(tombstones);
    for (entry, filter) in &readable {
        let Some(filter) = filter.as_ref().filter(|_| rebuilt.state.blocks.contains_key(&entry.id)) else { continue };
        store.put(&paths.block(entry.id, BlockObject::Filter), PutPayload::from(filter.clone())).await?;
        report.filters_made.push(entry.id);
    }
    report.manifest_version = Some(write_rebuilt(store, tenant, deps.clock.as_ref(), &rebuilt).await?);
    report.blocks = rebuilt.state.blocks.len();
    report.spans = rebuilt.state.blocks.values().map(|entry| entry.rows).sum();
    report.superseded = rebuilt.superseded;
    report.doubtful = rebuilt.doubtful;
    Ok(report)
}

/// What the manifest should say of a block, its filter if the one in the store is of no use, and what else is wrong with it.
/// Every row is read: a block that cannot be must not keep out those it replaces.
async fn read(
    store: &dyn ObjectStore,
    paths: &TenantPaths,
    tenant: &TenantId,
    id: BlockId,
) -> anyhow::Result<(BlockEntry, Option<Bytes>, Vec<String>)> {
    let parquet = store.get(&paths.block(id, BlockObject::Spans)).await?.bytes().await?;
    let mut findings = Findings::default();
    let Checked { meta, tail_bytes, filter, trace_ids } = check::check(&parquet, &mut findings).await?;
    ensure!(meta.origin.id == id, "its footer says that it is block {}", meta.origin.id);
    ensure!(meta.origin.tenant == *tenant, "its footer says that it belongs to tenant {}", meta.origin.tenant);
    let stored = match store.get(&paths.block(id, BlockObject::Filter)).await {
        Ok(object) => Some(object.bytes().await?),
        Err(object_store::Error::NotFound { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let usable = |bytes: &Bytes| {
        let filter = TraceIdFilter::from_bytes(bytes);
        filter.is_ok_and(|filter| trace_ids.iter().all(|id| filter.may_contain(*id)))
    };
    match stored.filter(usable) {
        Some(stored) => Ok((
            meta.full_entry(parquet.len() as u64, crc32c::crc32c(&parquet), tail_bytes, stored.len() as u64),
            None,
            findings.finish(),
        )),
        None => Ok((
            meta.full_entry(parquet.len() as u64, crc32c::crc32c(&parquet), tail_bytes, filter.len() as u64),
            Some(filter),
            findings.finish(),
        )),
    }
}
